"""The numbers of the four papers' tables as data (papers.csv), and which of them belong beside a run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from advcli.errors import UsageError

CITATIONS = {
    "again": "Yin et al., AGAIN, CVPR 2023",
    "ancra": "Zhou et al., ANCRA",
    "arrest": "Suzuki et al., ARREST, ICCV 2023",
    "stayfocused": "Chen et al., StayFocused, ACM MM 2024",
}


class Printed(NamedTuple):
    """One cell of a table. paper, table, row, column: where it stands. value: as printed, in `unit`, percent for accuracies.

    reading: what it measures, in the names of this program's suites: `clean`, `pgd-20@eps/10`, `aa`, `mean` of the row's attacks, ...
    `-joint` where the gates' heads were attacked too. data, network, eps: as recipes write them; empty where the paper does not say.
    method: the recipe.signature of what trains this; empty where none does. weights: best or last, where the table has both.
    setting: any other condition. remark: what does not add up in the paper, or cannot be what it is called.
    """

    paper: str
    table: str
    row: str
    column: str
    value: float
    unit: str
    reading: str
    data: str
    network: str
    method: str
    eps: str
    weights: str
    setting: str
    remark: str


@cache
def numbers() -> tuple[Printed, ...]:
    """All of them, in the order of papers and tables."""
    with Path(__file__).with_name("papers.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Printed(**{**row, "value": float(row["value"])}) for row in csv.DictReader(file))  # type: ignore[arg-type]


def find(cells: Iterable[Printed] | None = None, **fields: str) -> list[Printed]:
    """The cells whose fields are these: find(paper="again", table="2", reading="aa")."""
    chosen = numbers() if cells is None else cells
    return [cell for cell in chosen if all(getattr(cell, name) == value for name, value in fields.items())]


def beside(table: Mapping[str, Any], papers: Iterable[str]) -> dict[str, Any]:
    """A table of runs with what papers print for the same methods.

    Adds `papers`, and to every row `printed`: {paper: {column: None or {value, table, row, data, network, setting, remark, same}}}.
    value: a fraction, or hours. same: whether data set, network and threat are the row's; where a paper has no such number, its
    nearest one is shown.
    """
    names = list(dict.fromkeys(papers))
    for name in names:
        if name not in CITATIONS:
            raise UsageError(f"there is no paper {name!r}", where="--paper", next=f"one of {', '.join(CITATIONS)}")
    rows = [{**row, "printed": {name: _of_row(name, row, table["columns"]) for name in names}} for row in table["rows"]]
    return {**table, "papers": names, "rows": rows}


def _of_row(paper: str, row: Mapping[str, Any], columns: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {column["name"]: _beside(paper, row["trains"], column) if row["trains"] else None for column in columns}


def _beside(paper: str, trains: Mapping[str, Any], column: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of several tables the one with most of the run's conditions, then the first."""
    weights = ("last",) if column["last"] else ("", "best")
    found = [c for c in find(paper=paper, method=trains["method"]) if c.weights in weights and _measures(c, column)]
    if not found:
        return None

    def distance(cell: Printed) -> tuple[bool, bool, bool]:
        return cell.data != trains["data"], cell.network != trains["network"], bool(cell.weights) != column["last"]

    cell = min(found, key=distance)
    same = distance(cell)[:2] == (False, False) and trains["width"] == 1
    same &= not cell.eps or (trains["norm"], trains["eps"]) == ("linf", 8 / 255)  # the papers' one threat
    value = round(cell.value / 100, 6) if cell.unit == "percent" else cell.value
    facts = {name: getattr(cell, name) for name in ("table", "row", "data", "network", "setting", "remark")}
    return {"value": value, **facts, "same": same}


_WHOLE = {"aa": "aa", "aa-plus": "aa", "adaptive": "aa-joint"}  # suites whose worst case the papers have a number for


def _measures(cell: Printed, column: Mapping[str, Any]) -> bool:
    """Whether a cell has what a column has; of an attack, one of its name, whatever the step size."""
    if cell.setting.startswith("transfer"):
        return False
    if not column["suite"]:
        return cell.reading == ("mean" if column["reading"] == "average" else str(column["reading"]))
    if column["reading"] == "worst":
        return cell.reading == _WHOLE.get(column["suite"])
    return _stem(cell.reading) == _stem(column["reading"])


def _stem(reading: str) -> str:
    """An attack's name without its step size; C&W without its number of steps, which only one paper tells."""
    stem = reading.partition("@")[0]
    joint = stem.endswith("-joint")
    return ("cw-joint" if joint else "cw") if stem.startswith("cw") else stem
