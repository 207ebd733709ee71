"""Runs side by side: a row a method, seeds folded, a column a suite's worst case or one reading of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advcli.errors import ResourceError, UsageError
from advcli.evaluation.masking import SEVERITY, UPPER_BOUNDS, Verdict, worst
from advcli.evaluation.pairs import threat_words
from advcli.evaluation.stored import Evaluation, Run
from advcli.measures import wilson
from advcli.runs import folder as run_folder

WORST = "worst"


class Column(NamedTuple):
    """suite: `` for clean accuracy, which any suite measures. reading: `worst`, or one attack's."""

    suite: str
    reading: str

    @property
    def name(self) -> str:
        return self.suite if self.reading == WORST else f"{self.suite}/{self.reading}" if self.suite else self.reading

    def right(self, evaluation: Evaluation) -> NDArray[np.bool_] | None:
        """(n,) bool: who is right under this reading; None where the suite has it not."""
        if self == CLEAN:
            return evaluation.outcomes.correct
        return evaluation.outcomes.robust if self.reading == WORST else evaluation.outcomes.left.get(self.reading)

    def value(self, evaluation: Evaluation) -> float:
        right = self.right(evaluation)
        assert right is not None, "only evaluations that have the reading are asked"
        return float(right.mean())


CLEAN = Column("", "clean")


class Condition(NamedTuple):
    """What evaluations must share for their numbers to stand in one mean; threat and protocol do not touch clean accuracy."""

    threat: str
    protocol: str
    data: str
    split: str
    n: int
    images: str


@dataclass(frozen=True)
class Method:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]


def parse_column(text: str) -> Column:
    """SUITE/READING, or SUITE for its worst case. A reading's own name may hold a slash."""
    suite, _, reading = text.partition("/")
    if not suite or (not reading and "/" in text):
        raise UsageError(f"{text!r} names no column", where="--column", next="write SUITE/READING, such as quick/pgd-20 or aa/worst")
    return Column(suite, reading or WORST)


def tabulate(runs: Sequence[Run], columns: Sequence[Column]) -> dict[str, Any]:
    """{kind, columns, rows, notes}. No columns: the worst case of every suite that is found.

    A cell of a row's `cells` is None, or {mean, std (sample, None for one seed), ci (95 % Wilson, None for several), seeds, verdict,
    the condition, evaluations: [{run, folder, value}]}; accuracies are fractions.
    """
    methods = _methods(runs)
    columns = list(dict.fromkeys(columns)) or _found(runs)
    tables = {column: _fill(column, methods) for column in (CLEAN, *columns)}
    rows = []
    for number, method in enumerate(methods):
        cells = {column.name: tables[column].cells[number] for column in tables}
        seeds = [run.recipe.seed for run in method.runs if run.recipe]
        facts = {"name": method.name, "runs": [str(run.folder) for run in method.runs], "seeds": seeds}
        rows.append({**facts, "verdict": _verdict_of_row(cells.values()), "cells": cells})
    notes = [note for column in columns or [CLEAN] for note in tables[column].notes] + [note for run in runs for note in _run_notes(run)]
    described = [{"name": c.name, "suite": c.suite, "reading": c.reading, "upper_bound": _is_upper(c, tables[c].cells)} for c in tables]
    return {"kind": "runs", "columns": described, "rows": rows, "notes": list(dict.fromkeys(notes))}


def _methods(runs: Sequence[Run]) -> list[Method]:
    """In the order of first appearance. UsageError where a seed would count twice."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"{run_folder.method(run.recipe)} {_start(run)}" if run.recipe else str(run.folder), []).append(run)
    for group in groups.values():
        _check_seeds(group)
    names = _names([group[0] for group in groups.values()])
    return [Method(name, tuple(group)) for name, group in zip(names, groups.values(), strict=True)]


def _start(run: Run) -> str:
    """The name of what it was finetuned from: runs from different beginnings are different methods."""
    start = (run.header or {}).get("init")
    return str(start.get("name")) if isinstance(start, dict) else ""


def _check_seeds(group: Sequence[Run]) -> None:
    seen: dict[int, Path] = {}
    for run in group:
        seed = run.recipe.seed if run.recipe else 0
        if seed in seen:
            raise UsageError(
                f"two runs of one recipe and one seed, {seed}: a mean would count it twice",
                where=f"{seen[seed]} and {run.folder}",
                next="name one of them",
            )
        seen[seed] = run.folder


def _names(firsts: Sequence[Run]) -> list[str]:
    """Recipe names, with what tells them apart where two share one; the folder where there is no recipe."""
    same: dict[str, list[Run]] = {}
    for run in firsts:
        if run.recipe:
            same.setdefault(run.recipe.name, []).append(run)
    names: dict[int, str] = {}
    for name, group in same.items():
        for run, values in zip(group, run_folder.telling_apart([run.recipe for run in group if run.recipe]), strict=True):
            words = ", ".join(f"{key}={value}" for key, value in values.items())
            names[id(run)] = f"{name} ({words})" if words else name
    return [names.get(id(run), str(run.folder)) for run in firsts]


def _found(runs: Iterable[Run]) -> list[Column]:
    """The suites of all evaluations that count, those of a few fixed attacks first."""
    suites = {evaluation.suite for run in runs for evaluation in _own(run)}
    weak = [name for name in UPPER_BOUNDS if name in suites]
    return [Column(suite, WORST) for suite in (*weak, *sorted(suites.difference(weak)))]


def _own(run: Run) -> list[Evaluation]:
    """Evaluations on the test split of the data set and under the threat that the run was trained for."""
    return [evaluation for evaluation in run.evaluations if not _foreign(run, evaluation)]


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


class _Filled(NamedTuple):
    cells: list[dict[str, Any] | None]
    notes: list[str]


def _fill(column: Column, methods: Sequence[Method]) -> _Filled:
    """The cells of a column, a method each, all from evaluations under one condition where there is one that all methods have."""
    candidates = [[_candidates(column, run) for run in method.runs] for method in methods]
    _check_reading(column, methods, candidates)
    ranked = _ranked(column, candidates)
    cells: list[dict[str, Any] | None] = []
    notes: list[str] = []
    for method, lists in zip(methods, candidates, strict=True):
        missing = [run for run, found in zip(method.runs, lists, strict=True) if not found]
        notes += [_missing_note(column, run) for run in missing if not _attacked(column, run)]
        if len(missing) == len(method.runs):
            cells.append(None)
            continue
        if missing:
            notes.append(f"{column.name} of {method.name}: {len(method.runs) - len(missing)} of {len(method.runs)} seeds")
        condition = _common(column, method, lists, ranked)
        chosen = [_lowest(column, condition, run, found, notes) for run, found in zip(method.runs, lists, strict=True) if found]
        cells.append(_cell(column, condition, [run for run in method.runs if run not in missing], chosen))
    return _Filled(cells, notes + _differing_rows(column, methods, cells))


def _candidates(column: Column, run: Run) -> list[Evaluation]:
    if column == CLEAN:  # any radius measures it
        return [e for e in run.evaluations if e.report["split"] == "test" and _own_data(run, e)]
    return [e for e in _own(run) if e.suite == column.suite and column.right(e) is not None]


def _own_data(run: Run, evaluation: Evaluation) -> bool:
    return run.recipe is None or evaluation.report["data"] in (None, run.recipe.data.name)


def _check_reading(column: Column, methods: Sequence[Method], candidates: Sequence[Sequence[Sequence[Evaluation]]]) -> None:
    """UsageError where the suite was run and nowhere has that reading."""
    known = [e for method in methods for run in method.runs for e in _own(run) if e.suite == column.suite]
    if known and not any(found for lists in candidates for found in lists):
        readings = list(dict.fromkeys(name for e in known for name in e.outcomes.left))
        raise UsageError(
            f"suite {column.suite} has no reading {column.reading!r}", where="--column", next=f"it has {', '.join([*readings, WORST])}"
        )


def _condition(column: Column, evaluation: Evaluation) -> Condition:
    report = evaluation.report
    threat, protocol = ("", "") if column == CLEAN else (threat_words(evaluation), evaluation.protocol)
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
        rows += [f"{run.folder}: {words}"] if found else []
    raise ResourceError(
        f"the {column.name} numbers of {method.name} were measured differently, and no mean over them means anything\n" + "\n".join(rows),
        where=", ".join(str(run.folder) for run in method.runs),
        next="attack all with the same --n, --seed and --suite",
    )


def _words(c: Condition) -> str:
    parts = [c.threat, c.protocol, f"{c.data} {c.split}", f"n = {c.n}", f"images {c.images[:8]}"]
    return ", ".join(part for part in parts if part)


def _lowest(column: Column, condition: Condition, run: Run, found: Sequence[Evaluation], notes: list[str]) -> Evaluation:
    """Of several under one condition (other draws, other batch sizes) the one that is worst for the network."""
    same = [evaluation for evaluation in found if _condition(column, evaluation) == condition]
    if len(same) > 1 and column != CLEAN:
        notes.append(f"{len(same)} {column.suite} evaluations of {run.folder} on these images: the lowest number is shown")
    return min(same, key=lambda evaluation: (column.value(evaluation), str(evaluation.folder)))


def _cell(column: Column, condition: Condition, runs: Sequence[Run], chosen: Sequence[Evaluation]) -> dict[str, Any]:
    values = [column.value(evaluation) for evaluation in chosen]
    rows = [{"run": str(r.folder), "folder": str(e.folder), "value": v} for r, e, v in zip(runs, chosen, values, strict=True)]
    one = len(values) == 1
    return {
        "mean": statistics.fmean(values),
        "std": None if one else statistics.stdev(values),
        "ci": list(wilson(round(values[0] * condition.n), condition.n)) if one else None,
        "seeds": len(values),
        "verdict": None if column == CLEAN else _verdict(column, chosen),
        **{key: value for key, value in condition._asdict().items() if value != ""},
        "evaluations": rows,
    }


def _verdict(column: Column, chosen: Iterable[Evaluation]) -> Verdict:
    """The worst among the seeds; one attack alone is an upper bound in any suite."""
    said: list[Verdict] = [evaluation.report["verdict"] for evaluation in chosen]
    return worst(said if column.reading == WORST else [*said, "upper bound"])


def _verdict_of_row(cells: Iterable[dict[str, Any] | None]) -> Verdict | None:
    """`masked` if any number of the row is; else that of its strictest column."""
    said: list[Verdict] = [cell["verdict"] for cell in cells if cell and cell["verdict"]]
    return "masked" if "masked" in said else min(said, key=SEVERITY.index, default=None)


def _is_upper(column: Column, cells: Iterable[dict[str, Any] | None]) -> bool:
    """Whether every number of the column is an upper bound by what it is, whatever the network."""
    if column == CLEAN:
        return False
    present = [cell["verdict"] for cell in cells if cell]
    return column.reading != WORST or column.suite in UPPER_BOUNDS or (bool(present) and set(present) == {"upper bound"})


def _attacked(column: Column, run: Run) -> bool:
    """Whether the suite was run, and merely has not that reading of this network, as joint losses of one without auxiliary heads."""
    return column != CLEAN and any(evaluation.suite == column.suite for evaluation in _own(run))


def _missing_note(column: Column, run: Run) -> str:
    if column == CLEAN:
        return f"no evaluation: advcli attack {run.folder} --suite aa"
    return f"no {column.suite} evaluation: advcli attack {run.folder} --suite {column.suite}"


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


def _run_notes(run: Run) -> list[str]:
    """What a reader of the row must know: training that was not finished, evaluations that do not count."""
    notes = []
    if run.recipe and run.epoch is not None and run.epoch < run.recipe.schedule.epochs:
        notes.append(f"{run.folder} is not trained to its end: epoch {run.epoch} of {run.recipe.schedule.epochs}")
    foreign = [(e.folder, why) for e in run.evaluations if (why := _foreign(run, e))]
    return notes + [f"passed over {path}: {why}" for path, why in (*foreign, *run.passed_over)]
