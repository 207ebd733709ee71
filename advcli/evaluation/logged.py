"""Cells that are read off the training logs: accuracies on held-out images, and hours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from advcli.evaluation.columns import HOURS, VALIDATION, Column
from advcli.evaluation.methods import Method
from advcli.evaluation.stored import Run
from advcli.measures import wilson

Cell = dict[str, Any]


def fold(values: Sequence[float]) -> Cell:
    """Mean and sample standard deviation over seeds; None for the latter where there is one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None, "seeds": len(values)}


def logged(column: Column, method: Method) -> Cell | None:
    """Of the selected or the last epoch; None where no log has it as a number."""
    found = [(run, value) for run in method.runs if (value := _value(column, run)) is not None and math.isfinite(value)]
    if not found:
        return None
    values = [value for _, value in found]
    cell = {**fold(values), "ci": None, "verdict": None, "evaluations": [{"run": str(run.place), "value": value} for run, value in found]}
    return cell if column == HOURS else cell | _on_held_out(column, found[0][0], values)


def _value(column: Column, run: Run) -> float | None:
    if column == HOURS:
        return run.hours
    measured = _measured(run, last=column.last)
    return float(measured[_key(column)]) if measured else None


def _key(column: Column) -> str:
    return "clean" if column.reading == "clean" else "robust"


def _measured(run: Run, *, last: bool) -> dict[str, Any]:
    """What was measured on validation images of the weights that were selected, or of the last ones; empty where nothing was."""
    events = [event for event in run.log if event.get(VALIDATION) and (last or event.get("selected"))]
    return events[-1][VALIDATION] if events else {}


def _on_held_out(column: Column, run: Run, values: Sequence[float]) -> Cell:
    """The conditions: PGD from one start on a part of the training split, which is an upper bound."""
    measured = _measured(run, last=column.last)
    n = int(measured["n"])
    where = {"data": run.recipe.data.name if run.recipe else "None", "split": VALIDATION, "n": n, "images": ""}
    ci = list(wilson(round(values[0] * n), n)) if len(values) == 1 else None
    if _key(column) == "clean":
        return {"ci": ci, **where}
    return {"ci": ci, "verdict": "upper bound", "protocol": measured["attack"], **where}
