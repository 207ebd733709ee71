"""Runs side by side: a row a method, seeds folded, a column a suite's worst case or one reading of it; the best ones marked."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from advcli.evaluation import methods as grouping
from advcli.evaluation.cells import Filled, fill
from advcli.evaluation.columns import AVERAGE, CLEAN, HOURS, VALIDATION, WORST, Column, expand
from advcli.evaluation.logged import Cell, fold
from advcli.evaluation.masking import SEVERITY, UPPER_BOUNDS, Verdict, worst
from advcli.evaluation.methods import Method, own
from advcli.evaluation.pairs import discordant
from advcli.evaluation.stored import Evaluation, Run
from advcli.recipe.signature import signature

_SAME = ("threat", "protocol", "data", "split", "n", "images")


def tabulate(runs: Sequence[Run], columns: Sequence[Column]) -> dict[str, Any]:
    """{kind, columns, rows, notes}. No columns: the worst case of every suite that is found.

    A cell of a row's `cells` is None, or {mean, std (sample, None for one seed), ci (95 % Wilson, None for several and for the worst
    class), seeds, verdict, the condition, evaluations: [{run, folder, value}], place (1 best, 2 second, else None), and where one seed
    stands against one on the same images against_best: {difference, only_best, only_this, p}}; accuracies are fractions.
    """
    methods = grouping.grouped(runs)
    chosen = expand(columns, (e for run in runs for e in own(run))) or _found(runs)
    tables = {column: fill(column, methods) for column in dict.fromkeys((CLEAN, *chosen)) if column != AVERAGE}
    if AVERAGE in chosen:
        tables[AVERAGE] = _averages(tables)
        tables = {column: tables[column] for column in dict.fromkeys((CLEAN, *chosen))}
    described = [_describe(column, table) for column, table in tables.items()]
    for column, table in tables.items():
        _rank(column, table, upper=_is_upper(column, table.cells))
    rows = [_row(method, {column.name: table.cells[number] for column, table in tables.items()}) for number, method in enumerate(methods)]
    notes = [note for column in chosen or [CLEAN] for note in tables[column].notes]
    notes += [note for method in methods for note in grouping.settled_notes(method)]
    notes += [note for run in runs for note in grouping.notes(run)]
    return {"kind": "runs", "columns": described, "rows": rows, "notes": list(dict.fromkeys(notes))}


def _found(runs: Iterable[Run]) -> list[Column]:
    """The suites of all evaluations that count, those of a few fixed attacks first."""
    suites = {evaluation.suite for run in runs for evaluation in own(run)}
    weak = [name for name in UPPER_BOUNDS if name in suites]
    return [Column(suite, WORST) for suite in (*weak, *sorted(suites.difference(weak)))]


def _describe(column: Column, table: Filled) -> dict[str, Any]:
    names = {"name": column.name, "suite": column.suite, "reading": column.reading, "last": column.last}
    return {**names, "unit": "hours" if column == HOURS else "percent", "upper_bound": _is_upper(column, table.cells)}


def _row(method: Method, cells: dict[str, Cell | None]) -> dict[str, Any]:
    """trains: what to look the method up by in papers; None where there is no recipe."""
    recipe = method.runs[0].recipe
    trains = None
    if recipe:
        m, t = recipe.model, recipe.threat
        trains = {"method": signature(recipe), "data": recipe.data.name, "network": m.arch, "width": float(m.width)}
        trains |= {"norm": t.norm, "eps": float(t.eps)}
    return {
        "name": method.name,
        "runs": [str(run.place) for run in method.runs],
        "seeds": [run.recipe.seed for run in method.runs if run.recipe],
        "trains": trains,
        "verdict": _verdict_of_row(cells.values()),
        "cells": cells,
    }


def _verdict_of_row(cells: Iterable[Cell | None]) -> Verdict | None:
    """`masked` if any number of the row is; else that of its strictest column."""
    said: list[Verdict] = [cell["verdict"] for cell in cells if cell and cell["verdict"]]
    return "masked" if "masked" in said else min(said, key=SEVERITY.index, default=None)


def _is_upper(column: Column, cells: Iterable[Cell | None]) -> bool:
    """Whether every number of the column is an upper bound by what it is, whatever the network."""
    if column.clean or column == HOURS or (column.suite == VALIDATION and column.reading == "clean"):
        return False
    present = [cell["verdict"] for cell in cells if cell]
    whole = column.reading == WORST or column.of_classes
    return not whole or column.suite in (*UPPER_BOUNDS, VALIDATION) or (bool(present) and set(present) == {"upper bound"})


def _averages(tables: dict[Column, Filled]) -> Filled:
    """The mean over a row's robust columns, seed by seed (ANCRA's AVG); None in rows that lack one."""
    parts = [t for column, t in tables.items() if not (column.clean or column.logged or column.last or column.of_classes)]
    count = len(next(iter(tables.values())).cells)
    cells = [_average([part.cells[row] for part in parts]) for row in range(count)]
    return Filled(cells, [[] for _ in cells], [])


def _average(parts: Sequence[Cell | None]) -> Cell | None:
    present = [part for part in parts if part]
    if not parts or len(present) < len(parts):
        return None
    by_run: dict[str, list[float]] = {}
    for part in present:
        for evaluation in part["evaluations"]:
            by_run.setdefault(evaluation["run"], []).append(evaluation["value"])
    means = {run: statistics.fmean(values) for run, values in by_run.items() if len(values) == len(parts)}
    if not means:
        return None
    verdict = worst([*(part["verdict"] for part in present), "upper bound"])
    rows = [{"run": run, "value": value} for run, value in means.items()]
    conditions = {key: _joined([part[key] for part in present if key in part]) for key in _SAME}
    return {**fold(list(means.values())), "ci": None, "verdict": verdict, **conditions, "evaluations": rows}


def _joined(values: Sequence[Any]) -> Any:
    """The one value that all parts share, or all of them in words."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else " and ".join(map(str, distinct))


def _rank(column: Column, table: Filled, *, upper: bool) -> None:
    """Write `place` and `against_best` into the cells.

    Only numbers of one kind are ranked: all under one condition, none that looks masked, no upper bound among numbers that are none,
    and none through gates, which hide the gradient, among numbers that are not.
    """
    present = [(cell, chosen) for cell, chosen in zip(table.cells, table.chosen, strict=True) if cell]
    for cell, _ in present:
        cell["place"] = None
    if column == HOURS or len({tuple(cell.get(key) for key in _SAME) for cell, _ in present}) != 1:
        return
    ranked = [(c, e) for c, e in present if c["verdict"] != "masked" and (upper or c["verdict"] != "upper bound")]
    if column != CLEAN and not all(map(_through_gates, ranked)):
        ranked = [pair for pair in ranked if not _through_gates(pair)]
    places = {value: place for place, value in enumerate(sorted({c["mean"] for c, _ in ranked}, reverse=True), 1)}
    if len(ranked) < 2 or len(places) < 2:
        return
    best = next(evaluations for cell, evaluations in ranked if places[cell["mean"]] == 1)
    for cell, evaluations in ranked:
        place = places[cell["mean"]]
        cell["place"] = place if place <= 2 else None
        if len(best) == len(evaluations) == 1 and evaluations[0] is not best[0]:
            a, b = column.right(best[0]), column.right(evaluations[0])
            if a is not None and b is not None:
                cell["against_best"] = discordant(a, b)


def _through_gates(cell: tuple[Cell, list[Evaluation]]) -> bool:
    return any(evaluation.report["gated"] for evaluation in cell[1])
