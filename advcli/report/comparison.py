"""Comparisons as screens of 80 columns and as Markdown tables: the same cells, so that both say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from advcli.report import terminal
from advcli.report.terminal import percent

_KIND = {"trustworthy": "worst case", "upper bound": "an upper bound", "masked": "gradients look masked: do not trust it"}


class Page(NamedTuple):
    """A table with what stands above and below it. last: the line that matters."""

    above: list[str]
    header: list[str]
    rows: list[list[str]]
    below: list[str]
    last: str


def show(page: Page) -> None:
    for line in page.above:
        terminal.OUT.print(_plain(line), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for position, name in enumerate(page.header):
        table.add_column(escape(name), justify="right" if position else "left", overflow="fold", min_width=4)
    for row in page.rows:
        table.add_row(*map(_plain, row))
    terminal.OUT.print(table)
    for line in page.below:
        terminal.OUT.print(_plain(line))
    terminal.OUT.print(f"[bold]{escape(page.last)}[/bold]")


def _plain(text: str) -> str:
    """Text that is no markup, in characters that the terminal has."""
    return escape(text if terminal.OUT.encoding.startswith("utf") else text.replace("±", "+-"))


def markdown(page: Page) -> str:
    """A GitHub table with a line for each of its footnotes."""
    table = [_row(page.header), _row(["---"] * len(page.header)), *map(_row, page.rows)]
    above, below = ([f"{_literal(line)}  " for line in lines] for lines in (page.above, [*page.below, page.last]))
    return "\n".join([*above, *([""] if above else []), *table, "", *below]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_literal(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _literal(text: str) -> str:
    """Stars mark footnotes here; unescaped they would be lists and emphasis."""
    return text.replace("*", "\\*")


def page(comparison: Mapping[str, Any]) -> Page:
    """The page of a comparison, of runs or of evaluations."""
    return _runs(comparison) if comparison["kind"] == "runs" else _evaluations(comparison)


# Runs.


def _runs(table: Mapping[str, Any]) -> Page:
    columns = table["columns"]
    header = ["method", "seeds", *(f"{c['name']} %{'*' if c['upper_bound'] else ''}" for c in columns), "verdict"]
    rows = []
    for row in table["rows"]:
        cells = [_cell(row["cells"][column["name"]], column) for column in columns]
        rows.append([row["name"], str(len(row["runs"])), *cells, row["verdict"] or "-"])
    text = "\n".join(cell for row in [header, *rows] for cell in row)
    below = [foot for mark, foot in _FEET if mark in text] + [f"note {note}" for note in table["notes"]]
    return Page([], header, rows, below, _conditions(table))


_FEET = (
    ("±", "± the sample standard deviation over seeds"),
    ("[", "[] 95 % Wilson interval of one network"),
    ("*", "* an upper bound: a few fixed attacks, one attack alone, or a network that needs attacks of its own"),
    ("!", "! gradients look masked: do not trust this number"),
)


def _cell(cell: Mapping[str, Any] | None, column: Mapping[str, Any]) -> str:
    if cell is None:
        return "-"
    mark = "!" if cell["verdict"] == "masked" else "*" if cell["verdict"] == "upper bound" and not column["upper_bound"] else ""
    if cell["ci"] is not None:
        return f"{percent(cell['mean'])}{mark}\n{_interval(cell['ci'])}"
    return f"{percent(cell['mean'])}{mark} ± {percent(cell['std'])}"


def _conditions(table: Mapping[str, Any]) -> str:
    """Threat, data and n, once where all numbers share them."""
    cells = [cell for row in table["rows"] for cell in row["cells"].values() if cell]
    if not cells:
        return "no evaluation to show"
    data = _one_of(f"{cell['data']} {cell['split']}" for cell in cells)
    threat = _one_of(cell["threat"] for cell in cells if "threat" in cell)
    sizes = {}
    for column in table["columns"]:
        found = [row["cells"][column["name"]] for row in table["rows"] if row["cells"][column["name"]]]
        if found:
            sizes[column["name"]] = _one_of(str(cell["n"]) for cell in found)
    same = len(set(sizes.values())) == 1
    n = f"n = {next(iter(sizes.values()))}" if same else "n = " + ", ".join(f"{size} for {name}" for name, size in sizes.items())
    return ", ".join(part for part in (threat, data, n) if part)


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


def _difference_rows(comparison: Mapping[str, Any], several: bool) -> list[list[str]]:
    """A row a reading; against several, clean and robust alone."""
    number = comparison["evaluation"] + 1
    parts = {"clean": comparison["clean"], **({} if several else comparison["attacks"]), "robust": comparison["robust"]}
    return [
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


def _headline(comparison: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    number, part = comparison["evaluation"], comparison["robust"]
    verdicts = {table["evaluations"][row]["verdict"] for row in (0, number)}
    of = " of masked numbers" if "masked" in verdicts else " of upper bounds" if "upper bound" in verdicts else ""
    return f"robust {number + 1} - 1: {100 * part['difference']:+.1f} points{of}, p {part['p']:.2g}"


def _interval(ends: Sequence[float]) -> str:
    return f"[{percent(ends[0])}, {percent(ends[1])}]"
