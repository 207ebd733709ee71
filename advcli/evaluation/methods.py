"""Run folders as methods: what was asked for with another seed alone is one method, and which evaluations are a run's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from advcli.errors import UsageError
from advcli.evaluation.pairs import threat_words
from advcli.evaluation.stored import Evaluation, Run
from advcli.runs import folder as run_folder


@dataclass(frozen=True)
class Method:
    """Runs of which the same was asked but for the seed, whatever each machine made of `auto`."""

    name: str
    runs: tuple[Run, ...]


def grouped(runs: Sequence[Run]) -> list[Method]:
    """In the order of first appearance. UsageError where a seed would count twice."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run_folder.method(run.asked)} {_start(run)}" if run.asked else str(run.place), []).append(run)
    for group in groups.values():
        _check_seeds(group)
    names = _names([group[0] for group in groups.values()])
    return [Method(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)]


def _start(run: Run) -> str:
    """The name of what it was finetuned from: runs from different beginnings are different methods."""
    start = (run.header or {}).get("init")
    return str(start.get("name")) if isinstance(start, dict) else ""


def _check_seeds(group: Sequence[Run]) -> None:
    seen: dict[int, Run] = {}
    for run in group:
        seed = run.recipe.seed if run.recipe else 0
        if seed in seen:
            raise UsageError(
                f"two runs of one recipe and one seed, {seed}: a mean would count it twice",
                where=f"{seen[seed].place} and {run.place}",
                next="name one of them"
                if seen[seed].recipe == run.recipe
                else "name one of them; to compare precisions, ask for each by name",
            )
        seen[seed] = run


def _names(firsts: Sequence[Run]) -> list[str]:
    """Recipe names, with what tells them apart where two share one; the folder where there is no recipe."""
    same: dict[str, list[Run]] = {}
    for run in firsts:
        if run.recipe:
            same.setdefault(run.recipe.name, []).append(run)
    names: dict[int, str] = {}
    for name, group in same.items():
        for run, values in zip(group, run_folder.telling_apart([run.asked for run in group if run.asked]), strict=True):
            words = ", ".join(f"{key}={value}" for key, value in values.items())
            names[id(run)] = f"{name} ({words})" if words else name
    return [names.get(id(run), str(run.place)) for run in firsts]


def settled_notes(method: Method) -> list[str]:
    """In what `auto` came to something else on the machines of one method's runs."""
    outcomes = [(run, run_folder.settled(run.recipe)) for run in method.runs if run.asked and run.recipe]
    said = []
    for key in sorted({key for _, values in outcomes for key in values}):
        places: dict[str, list[str]] = {}
        for run, values in outcomes:
            value = values.get(key)
            places.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(str(run.place))
        if len(places) > 1:
            words = "; ".join(f"{value} in {', '.join(runs)}" for value, runs in places.items())
            said.append(f"{method.name}: {key} was settled differently from run to run: {words}")
    return said


def own(run: Run, *, last: bool = False) -> list[Evaluation]:
    """Evaluations on the test split of the data set and under the threat that the run was trained for.

    last: of the last epoch's weights.
    """
    return [evaluation for evaluation in (run.of_last if last else run.evaluations) if not _foreign(run, evaluation)]


def _foreign(run: Run, evaluation: Evaluation) -> str:
    """What makes an evaluation another experiment than the run's own; empty where nothing does."""
    recipe = run.recipe
    if recipe and evaluation.threat != (recipe.threat.norm, float(recipe.threat.eps)):
        return f"at {threat_words(evaluation)}, not the run's {recipe.threat.norm} eps {recipe.threat.eps.text}"
    if evaluation.report["split"] != "test":
        return f"on {evaluation.report['split']} images"
    if recipe and evaluation.report["data"] not in (None, recipe.data.name):
        return f"on {evaluation.report['data']}, not {recipe.data.name}"
    return ""


def notes(run: Run) -> list[str]:
    """What a reader of the row must know: training that was not finished, evaluations that do not count."""
    said = []
    if run.recipe and run.epoch is not None and run.epoch < run.recipe.schedule.epochs:
        said.append(f"{run.place} is not trained to its end: epoch {run.epoch} of {run.recipe.schedule.epochs}")
    foreign = [(e.folder, why) for e in run.evaluations if (why := _foreign(run, e))]
    return said + [f"passed over {path}: {why}" for path, why in (*foreign, *run.passed_over)]
