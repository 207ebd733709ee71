"""A metric against a field of the recipe, over run folders (ANCRA, figures 8 and 9; StayFocused, figures 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from advcli.errors import ResourceError, UsageError
from advcli.evaluation import columns as naming
from advcli.evaluation.stored import open_place
from advcli.evaluation.table import tabulate
from advcli.recipe.number import parse_number
from advcli.report.figures import style
from advcli.report.figures.data import FigureData

# In these, runs of one sweep differ anyway: their names and seeds, where things lie, and how often they were saved.
_ASIDE = {"name", "seed", "data.root", "data.download", "model.init", "train.save_every"}


def gather(runs: Sequence[Path], field: str | None = None, columns: Sequence[str] = ()) -> FigureData:
    """Rows: {series, value, column, unit, mean, std, low, high, seeds, verdict}, a column of a value's runs each, seeds folded as in
    compare.

    field: as overrides name it, `objective.terms.0.alpha`; left out, the one in which the recipes differ. value: as the recipe has
    it. series: what else tells the runs apart. columns: as in compare. low, high: 95 % Wilson interval of one seed. Accuracies are
    fractions. UsageError for a field that no recipe has, or that has one value; ResourceError where nothing was measured.
    """
    opened = [open_place(run) for run in runs]
    bare = [str(run.folder) for run in opened if run.recipe is None]
    if bare:
        raise ResourceError("there is no recipe to sweep over", where=", ".join(bare), next="name run folders that advcli wrote")
    table = tabulate(opened, [naming.parse(column) for column in columns])
    flat = {str(run.folder): _flat(run.asked.model_dump(mode="json")) for run in opened if run.asked}
    firsts = [flat[row["runs"][0]] for row in table["rows"]]
    differing = [key for key in dict.fromkeys(key for one in firsts for key in one) if len({str(one.get(key)) for one in firsts}) > 1]
    name = _field(field, [key for key in differing if key not in _ASIDE], firsts)
    rows = []
    for row, one in zip(table["rows"], firsts, strict=True):
        series = ", ".join(f"{key}={one[key]}" for key in differing if key in one and key != name and key not in _ASIDE)
        cells = {column["name"]: (column["unit"], row["cells"][column["name"]]) for column in table["columns"]}
        facts = {"series": series, "value": one.get(name)}
        rows += [{**facts, "column": key, "unit": unit, **_numbers(cell)} for key, (unit, cell) in cells.items() if cell]
    if not rows:
        raise ResourceError("none of the runs was attacked", where=", ".join(map(str, runs)), next="advcli attack RUN --suite quick")
    rows.sort(key=lambda row: (row["series"], row["column"], _order(row["value"])))
    return FigureData("sweep", rows, _headline(rows, name), table["notes"], {"field": name})


def _field(asked: str | None, differing: Sequence[str], recipes: Sequence[dict[str, Any]]) -> str:
    """The field that was asked for, or the only one that differs."""
    words = f"they differ in {', '.join(differing) or 'nothing'}"
    if asked is None and len(differing) != 1:
        raise UsageError("the runs' recipes do not differ in one field alone", where="--field", next=f"name one: {words}")
    if asked is None:
        return differing[0]
    if not any(asked in recipe for recipe in recipes):
        raise UsageError(f"no recipe of these has the field {asked}", where="--field", next=words)
    if asked not in differing:
        raise UsageError(f"{asked} is the same in every run", where="--field", next=words)
    return asked


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted name to value, parts of lists by their position."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return {path: value}
    return {key: leaf for name, child in parts for key, leaf in _flat(child, f"{path}.{name}" if path else str(name)).items()}


def _numbers(cell: dict[str, Any]) -> dict[str, Any]:
    low, high = cell["ci"] or (None, None)
    return {"mean": cell["mean"], "std": cell["std"], "low": low, "high": high, "seeds": cell["seeds"], "verdict": cell["verdict"]}


def _number(value: Any) -> float | None:
    """A value of a recipe as a number; None where it is none."""
    try:
        return float(parse_number(value))
    except ValueError:
        return None


def _order(value: Any) -> tuple[bool, float, str]:
    number = _number(value)
    return number is None, number or 0.0, str(value)


def _headline(rows: Sequence[dict[str, Any]], field: str) -> str:
    """The value with the highest number of the last column, the one that the others lead up to."""
    last = next((row["column"] for row in reversed(rows) if row["column"] != "clean"), rows[-1]["column"])
    best = max((row for row in rows if row["column"] == last), key=lambda row: row["mean"])
    number = f"{100 * best['mean']:.1f} %" if best["unit"] == "percent" else f"{best['mean']:.2g} {best['unit']}"
    series = f" ({best['series']})" if best["series"] else ""
    return f"highest {last}: {number} at {field}={best['value']}{series}"


@style.styled
def draw(data: FigureData) -> Figure:
    """A line a column and series, over a scale of numbers, or side by side where the values are none. Bars: deviation or interval."""
    values = sorted({str(row["value"]): row["value"] for row in data.rows}.values(), key=_order)
    numbers = [number for value in values if (number := _number(value)) is not None]
    place = dict(zip(map(str, values), numbers if len(numbers) == len(values) else range(len(values)), strict=True))
    lines = list(dict.fromkeys((row["series"], row["column"], row["unit"]) for row in data.rows))
    units = list(dict.fromkeys(unit for _, _, unit in lines))
    figure = style.new_figure(5.5, 1.2 + 2.4 * len(units))
    panels = dict(zip(units, figure.subplots(len(units), 1, squeeze=False, sharex=True).flat, strict=True))
    for number, (series, column, unit) in enumerate(lines):
        rows = [row for row in data.rows if (row["series"], row["column"]) == (series, column)]
        scale = 100 if unit == "percent" else 1
        x, y = [place[str(row["value"])] for row in rows], [scale * row["mean"] for row in rows]
        reach = [_reach(row) for row in rows]
        ends = [[scale * below for below, _ in reach], [scale * above for _, above in reach]]
        label = f"{column}, {series}" if series else column
        look: dict[str, Any] = {"color": style.colour(number), "marker": style.marker(number), "markersize": 4, "capsize": 2}
        panels[unit].errorbar(x, y, yerr=ends, label=label, elinewidth=0.8, **look)
        panels[unit].set_ylabel(_UNITS[unit])
    last = panels[units[-1]]
    last.set_xticks(list(place.values()), list(place))
    last.set_xlabel(data.more["field"])
    figure.legend(loc="outside upper left", ncols=2)
    words = "Bars: 95 % Wilson interval of one seed, sample deviation over several. Fixed attacks, and gates, give upper bounds."
    style.note(figure, [*data.notes, words])
    return figure


_UNITS = {"percent": "accuracy, %", "hours": "training, hours"}


def _reach(row: dict[str, Any]) -> tuple[float, float]:
    """How far the bar goes below and above the mean."""
    if row["low"] is not None:
        return row["mean"] - row["low"], row["high"] - row["mean"]
    return row["std"] or 0.0, row["std"] or 0.0
