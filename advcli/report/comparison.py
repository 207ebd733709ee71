"""Comparisons as pages: the same cells for every format, so that all say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from advcli.report.papers import CITATIONS
from advcli.report.terminal import percent

_KIND = {"trustworthy": "worst case", "upper bound": "an upper bound", "masked": "gradients look masked: do not trust it"}


class Entry(NamedTuple):
    """A cell of a table. detail: what stands small beside or under the text. place: 1 the best of its column, 2 the second."""

    text: str
    detail: str = ""
    place: int | None = None


class Page(NamedTuple):
    """A table with what stands above and below it. last: the line that matters."""

    above: list[str]
    header: list[str]
    rows: list[list[Entry]]
    below: list[str]
    last: str


def page(comparison: Mapping[str, Any]) -> Page:
    """The page of a comparison, of runs or of evaluations."""
    return _runs(comparison) if comparison["kind"] == "runs" else _evaluations(comparison)


# Runs.


def _runs(table: Mapping[str, Any]) -> Page:
    columns = table["columns"]
    beside = [(column, paper) for column in columns for paper in table.get("papers", ()) if _prints(table, paper, column)]
    header = ["method", "seeds"]
    for column in columns:
        header.append(f"{column['name']}{_UNITS[column['unit']]}{'*' if column['upper_bound'] else ''}")
        header += [f"{column['name']} in {paper}" for other, paper in beside if other is column]
    rows = []
    for row in table["rows"]:
        entries = [Entry(row["name"]), Entry(str(len(row["runs"])))]
        for column in columns:
            entries.append(_entry(row["cells"][column["name"]], column))
            entries += [_printed(row["printed"][paper][column["name"]], column) for other, paper in beside if other is column]
        rows.append([*entries, Entry(row["verdict"] or "-")])
    below = _feet([*header, *(entry.text + entry.detail for entries in rows for entry in entries)], rows)
    below += _against(table) + _papers_notes(table) + [f"note {note}" for note in table["notes"]]
    return Page([], [*header, "verdict"], rows, below, _conditions(table))


_UNITS = {"percent": " %", "hours": ""}
_FEET = (
    ("±", "± the sample standard deviation over seeds"),
    ("[", "[] 95 % Wilson interval of one network"),
    ("*", "* an upper bound: a few fixed attacks, one attack alone, or a network that needs attacks of its own"),
    ("!", "! gradients look masked: do not trust this number"),
    ("‡", "‡ printed for another data set, network or threat than the run's"),
)
MARKED = "best and second of a column are marked, among numbers of one kind under one condition"


def _feet(texts: Iterable[str], rows: Sequence[Sequence[Entry]]) -> list[str]:
    whole = "\n".join(texts)
    marked = any(entry.place for entries in rows for entry in entries)
    return [foot for mark, foot in _FEET if mark in whole] + ([MARKED] if marked else [])


def _entry(cell: Mapping[str, Any] | None, column: Mapping[str, Any]) -> Entry:
    if cell is None:
        return Entry("-")
    show = percent if column["unit"] == "percent" else _hours
    mark = "!" if cell["verdict"] == "masked" else "*" if cell["verdict"] == "upper bound" and not column["upper_bound"] else ""
    detail = _interval(cell["ci"]) if cell["ci"] else f"± {show(cell['std'])}" if cell["std"] is not None else ""
    return Entry(f"{show(cell['mean'])}{mark}", detail, cell.get("place"))


def _hours(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _prints(table: Mapping[str, Any], paper: str, column: Mapping[str, Any]) -> bool:
    return any(row["printed"][paper][column["name"]] for row in table["rows"])


def _printed(cell: Mapping[str, Any] | None, column: Mapping[str, Any]) -> Entry:
    if cell is None:
        return Entry("-")
    text = f"{100 * cell['value']:.2f}" if column["unit"] == "percent" else f"{cell['value']:g}"
    return Entry(f"{text}{'' if cell['same'] else '‡'}")


def _papers_notes(table: Mapping[str, Any]) -> list[str]:
    """Whose numbers stand in the columns of papers, under which conditions, and what is odd about them."""
    notes = []
    for paper in table.get("papers", ()):
        cells = [(row["name"], cell) for row in table["rows"] for cell in row["printed"][paper].values() if cell]
        where = dict.fromkeys(f"table {cell['table']} ({cell['data']}, {cell['network'] or 'network not named'})" for _, cell in cells)
        notes.append(f"{paper}: {CITATIONS[paper]}, {', '.join(where) or 'has none of these methods'}")
        odd = dict.fromkeys(f"{paper}, {name}: {cell['remark']}" for name, cell in cells if cell["remark"])
        notes += [f"note {text}" for text in odd]
    return notes


def _against(table: Mapping[str, Any]) -> list[str]:
    """Exact tests of single networks against the best of their column, image by image."""
    lines = []
    for column in table["columns"]:
        tested = [(row["name"], row["cells"][column["name"]]) for row in table["rows"] if row["cells"][column["name"]]]
        words = [
            f"{name} {100 * c['against_best']['difference']:+.1f} (p {c['against_best']['p']:.2g})"
            for name, c in tested
            if "against_best" in c
        ]
        if words and len(tested) <= _TESTED:
            lines.append(f"{column['name']} against the best, points and exact McNemar p: {', '.join(words)}")
    return lines


_TESTED = 6  # rows, more are in --format json and csv alone


def _conditions(table: Mapping[str, Any]) -> str:
    """Threat, data and n, once where all numbers share them."""
    cells = [cell for row in table["rows"] for cell in row["cells"].values() if cell]
    if not cells:
        return "no evaluation to show"
    cells = [cell for cell in cells if "data" in cell]
    data = _one_of(f"{cell['data']} {cell['split']}" for cell in cells)
    threat = _one_of(cell["threat"] for cell in cells if "threat" in cell)
    sizes: dict[str, list[str]] = {}
    for column in table["columns"]:
        found = [cell for row in table["rows"] if (cell := row["cells"][column["name"]]) and "n" in cell]
        if found:
            sizes.setdefault(_one_of(str(cell["n"]) for cell in found), []).append(column["name"])
    n = "n = " + ", ".join(sizes if len(sizes) == 1 else (f"{size} for {_several(names)}" for size, names in sizes.items()))
    return ", ".join(part for part in (threat, data, n) if part)


def _several(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} columns"


def _one_of(values: Any) -> str:
    return " or ".join(dict.fromkeys(values))


# Evaluations.


def _evaluations(table: Mapping[str, Any]) -> Page:
    above = [line for number, row in enumerate(table["evaluations"], 1) for line in _described(number, row)]
    several = len(table["comparisons"]) > 1
    header = ["reading", "1 %", "its %", "its - 1", "95 %", "only 1/its", "p"] if several else _PAIR
    rows = [row for comparison in table["comparisons"] for row in _difference_rows(comparison, several)]
    below = ["differences in points, paired by image: bootstrap interval, exact McNemar p"] + [f"note {note}" for note in table["notes"]]
    images = table["images"]
    last = f"{images['data']} {images['split']}, n = {images['n']}; " + "; ".join(_headline(row, table) for row in table["comparisons"])
    return Page(above, header, rows, below, last)


_PAIR = ["reading", "1 %", "2 %", "2 - 1", "95 %", "only 1/2", "p"]


def _described(number: int, row: Mapping[str, Any]) -> list[str]:
    what = f"{row['threat']['norm']} eps {row['threat']['eps']}, {row['protocol']}"
    clean = f"clean {percent(row['clean'])} % {_interval(row['clean_ci'])}"
    robust = f"robust {percent(row['robust'])} % {_interval(row['ci'])}"
    return [f"{number} {row['folder']}", f"  {what}", f"  {clean}, {robust}", f"  {_KIND[row['verdict']]}"]


def _difference_rows(comparison: Mapping[str, Any], several: bool) -> list[list[Entry]]:
    """A row a reading; against several, clean and robust alone."""
    number = comparison["evaluation"] + 1
    parts = {"clean": comparison["clean"], **({} if several else comparison["attacks"]), "robust": comparison["robust"]}
    texts = [
        [
            f"{name} of {number}" if several else name,
            percent(part["first"]),
            percent(part["this"]),
            f"{100 * part['difference']:+.1f}",
            "[{:+.1f}, {:+.1f}]".format(*(100 * end for end in part["ci"])),
            f"{part['only_first']}/{part['only_this']}",
            f"{part['p']:.2g}",
        ]
        for name, part in parts.items()
    ]
    return [[Entry(text) for text in row] for row in texts]


def _headline(comparison: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    number, part = comparison["evaluation"], comparison["robust"]
    verdicts = {table["evaluations"][row]["verdict"] for row in (0, number)}
    of = " of masked numbers" if "masked" in verdicts else " of upper bounds" if "upper bound" in verdicts else ""
    return f"robust {number + 1} - 1: {100 * part['difference']:+.1f} points{of}, p {part['p']:.2g}"


def _interval(ends: Sequence[float]) -> str:
    return f"[{percent(ends[0])}, {percent(ends[1])}]"
