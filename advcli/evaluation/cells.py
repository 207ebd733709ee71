"""The cells of a column: for each method the evaluations under one condition, folded over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from advcli.errors import ResourceError, UsageError
from advcli.evaluation.columns import CLASSES, HOURS, WORST, WORST_CLASS, Column
from advcli.evaluation.logged import Cell, fold, logged
from advcli.evaluation.masking import Verdict, worst
from advcli.evaluation.methods import Method, own
from advcli.evaluation.pairs import threat_words
from advcli.evaluation.stored import Evaluation, Run
from advcli.measures import wilson

_FEW = 3  # runs that are named one by one where they lack a number


class Condition(NamedTuple):
    """What evaluations must share for their numbers to stand in one mean; threat and protocol do not touch clean accuracy."""

    threat: str
    protocol: str
    data: str
    split: str
    n: int
    images: str


class Filled(NamedTuple):
    """A cell a method, None where it has no number; chosen: the evaluations behind each, a seed each."""

    cells: list[Cell | None]
    chosen: list[list[Evaluation]]
    notes: list[str]


def fill(column: Column, methods: Sequence[Method]) -> Filled:
    """The cells of a column, a method each, all from evaluations under one condition where there is one that all methods have."""
    if column.logged:
        cells = [logged(column, method) for method in methods]
        return Filled(cells, [[] for _ in methods], [] if column == HOURS else _differing_rows(column, methods, cells))
    candidates = [[_candidates(column, run) for run in method.runs] for method in methods]
    _check_reading(column, methods, candidates)
    ranked = _ranked(column, candidates)
    cells = []
    picked: list[list[Evaluation]] = []
    absent: list[Run] = []
    notes: list[str] = []
    for method, lists in zip(methods, candidates, strict=True):
        missing = [run for run, found in zip(method.runs, lists, strict=True) if not found]
        absent += [run for run in missing if not _attacked(column, run)]
        if len(missing) == len(method.runs):
            cells.append(None)
            picked.append([])
            continue
        if missing:
            notes.append(f"{column.name} of {method.name}: {len(method.runs) - len(missing)} of {len(method.runs)} seeds")
        condition = _common(column, method, lists, ranked)
        chosen = [_lowest(column, condition, run, found, notes) for run, found in zip(method.runs, lists, strict=True) if found]
        cells.append(_cell(column, condition, [run for run in method.runs if run not in missing], chosen))
        picked.append(chosen)
    return Filled(cells, picked, _missing_notes(column, absent) + notes + _differing_rows(column, methods, cells))


def _candidates(column: Column, run: Run) -> list[Evaluation]:
    if column.clean:  # any radius measures it
        pool = run.of_last if column.last else run.evaluations
        return [e for e in pool if e.report["split"] == "test" and _own_data(run, e)]
    return [e for e in own(run, last=column.last) if e.suite == column.suite and column.tally(e) is not None]


def _own_data(run: Run, evaluation: Evaluation) -> bool:
    return run.recipe is None or evaluation.report["data"] in (None, run.recipe.data.name)


def _check_reading(column: Column, methods: Sequence[Method], candidates: Sequence[Sequence[Sequence[Evaluation]]]) -> None:
    """UsageError where the suite was run and nowhere has that reading."""
    known = [e for method in methods for run in method.runs for e in own(run, last=column.last) if e.suite == column.suite]
    if known and not any(found for lists in candidates for found in lists):
        readings = list(dict.fromkeys(name for e in known for name in e.outcomes.left))
        raise UsageError(
            f"suite {column.suite} has no reading {column.reading!r}",
            where="--column",
            next=f"it has {', '.join([*readings, WORST, WORST_CLASS, CLASSES])}",
        )


def _condition(column: Column, evaluation: Evaluation) -> Condition:
    report = evaluation.report
    threat, protocol = ("", "") if column.clean else (threat_words(evaluation), evaluation.protocol)
    return Condition(threat, protocol, str(report["data"]), str(report["split"]), evaluation.n, evaluation.images)


def _ranked(column: Column, candidates: Sequence[Sequence[Sequence[Evaluation]]]) -> list[Condition]:
    """All conditions, best first: had by the most methods in full, then on the most images, then native."""
    counts: dict[Condition, int] = {}
    for lists in candidates:
        for condition in _shared(column, lists):
            counts[condition] = counts.get(condition, 0) + 1
    return sorted(counts, key=lambda c: (-counts[c], -c.n, not c.protocol.endswith("native"), c))


def _shared(column: Column, lists: Sequence[Sequence[Evaluation]]) -> set[Condition]:
    """Conditions under which every run that has the column at all has it."""
    sets = [{_condition(column, evaluation) for evaluation in found} for found in lists if found]
    return set.intersection(*sets) if sets else set()


def _common(column: Column, method: Method, lists: Sequence[Sequence[Evaluation]], ranked: Sequence[Condition]) -> Condition:
    shared = _shared(column, lists)
    for condition in ranked:
        if condition in shared:
            return condition
    rows = []
    for run, found in zip(method.runs, lists, strict=True):
        words = "; ".join(_words(_condition(column, evaluation)) for evaluation in found)
        rows += [f"{run.place}: {words}"] if found else []
    raise ResourceError(
        f"the {column.name} numbers of {method.name} were measured differently, and no mean over them means anything\n" + "\n".join(rows),
        where=", ".join(str(run.place) for run in method.runs),
        next="attack all with the same --n, --seed and --suite",
    )


def _words(c: Condition) -> str:
    parts = [c.threat, c.protocol, f"{c.data} {c.split}", f"n = {c.n}", f"images {c.images[:8]}"]
    return ", ".join(part for part in parts if part)


def _lowest(column: Column, condition: Condition, run: Run, found: Sequence[Evaluation], notes: list[str]) -> Evaluation:
    """Of several under one condition (other draws, other batch sizes) the one that is worst for the network."""
    same = [evaluation for evaluation in found if _condition(column, evaluation) == condition]
    if len(same) > 1 and not column.clean:
        notes.append(f"{len(same)} {column.suite} evaluations of {run.place} on these images: the lowest number is shown")
    return min(same, key=lambda evaluation: (column.value(evaluation), str(evaluation.folder)))


def _cell(column: Column, condition: Condition, runs: Sequence[Run], chosen: Sequence[Evaluation]) -> Cell:
    values = [column.value(evaluation) for evaluation in chosen]
    rows = [{"run": str(r.place), "folder": str(e.folder), "value": v} for r, e, v in zip(runs, chosen, values, strict=True)]
    return {
        **fold(values),
        "ci": _interval(column, chosen[0]) if len(values) == 1 else None,
        "verdict": None if column.clean else _verdict(column, chosen),
        **{key: value for key, value in condition._asdict().items() if value != ""},
        "evaluations": rows,
    }


def _interval(column: Column, evaluation: Evaluation) -> list[float] | None:
    """None for the worst class: it was picked by its number, which an interval for a class named beforehand does not know."""
    found = column.tally(evaluation)
    return list(wilson(*found)) if found and column.reading != WORST_CLASS else None


def _verdict(column: Column, chosen: Iterable[Evaluation]) -> Verdict:
    """The worst among the seeds; one attack alone is an upper bound in any suite."""
    said: list[Verdict] = [evaluation.report["verdict"] for evaluation in chosen]
    return worst(said if column.reading == WORST or column.of_classes else [*said, "upper bound"])


def _attacked(column: Column, run: Run) -> bool:
    """Whether the suite was run, and merely has not that reading of this network, as joint losses of one without auxiliary heads."""
    return not column.clean and any(evaluation.suite == column.suite for evaluation in own(run, last=column.last))


def _missing_notes(column: Column, runs: Sequence[Run]) -> list[str]:
    """What to run for the numbers that are missing: a line a run, or one line for more than a few."""
    suite, what = ("aa", "evaluation") if column.clean else (column.suite, f"{column.suite} evaluation")
    what = f"no {what}{' of the last epoch' if column.last else ''}"
    networks = [f"{run.place}/last.safetensors" if column.last else str(run.place) for run in runs]
    if len(networks) > _FEW:
        return [f"{what} of {len(networks)} runs, {networks[0]} to {networks[-1]}: advcli attack RUN --suite {suite}"]
    return [f"{what}: advcli attack {network} --suite {suite}" for network in networks]


def _differing_rows(column: Column, methods: Sequence[Method], cells: Sequence[dict[str, Any] | None]) -> list[str]:
    """Rows that may not be compared with one another, and in what they differ."""
    present = [(method.name, cell) for method, cell in zip(methods, cells, strict=True) if cell]
    kinds: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("threat", lambda c: str(c.get("threat", ""))),
        ("protocol", lambda c: str(c.get("protocol", ""))),
        ("data", lambda c: f"{c['data']} {c['split']}"),
        ("n", lambda c: str(c["n"])),
        ("images", lambda c: str(c["images"])[:8]),
    )
    for kind, of in kinds:
        if len({of(cell) for _, cell in present}) > 1:
            words = ", ".join(f"{name} {of(cell)}" for name, cell in present)
            return [f"{column.name}: rows differ in {kind}: {words}"]
    return []
