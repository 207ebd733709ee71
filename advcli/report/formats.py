"""A comparison's page on the terminal, in Markdown and in LaTeX; its numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from advcli.report import terminal
from advcli.report.comparison import Entry, Page

_MARKS = {1: ("bold green", "¹", "(1)"), 2: ("underline", "²", "(2)")}  # style, and what says so without one


def show(page: Page) -> None:
    """On a screen of 80 columns; the last line is the one that matters."""
    for line in page.above:
        terminal.OUT.print(_plain(line), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for position, name in enumerate(page.header):
        table.add_column(escape(_broken(_plain(name))), justify="right" if position else "left", overflow="fold", min_width=4)
    for row in page.rows:
        table.add_row(*map(_on_screen, row))
    terminal.OUT.print(table)
    for line in page.below:
        terminal.OUT.print(escape(_plain(line)))
    terminal.OUT.print(f"[bold]{escape(_plain(page.last))}[/bold]")


def _broken(name: str) -> str:
    """A long name of a column in lines, at its own joints."""
    return name.replace("/", "/\n").replace(":", ":\n") if len(name) > 12 else name


def _unicode() -> bool:
    return terminal.OUT.encoding.startswith("utf")


def _plain(text: str) -> str:
    """In characters that the terminal has."""
    return text if _unicode() else text.replace("±", "+-").replace("‡", "#")


def _on_screen(entry: Entry) -> str:
    detail = f"{' ' if entry.detail.startswith('±') else chr(10)}{escape(_plain(entry.detail))}" if entry.detail else ""
    text = escape(_plain(entry.text))
    if entry.place:
        style, mark, spelled = _MARKS[entry.place]
        text = f"[{style}]{text}[/{style}]{mark if _unicode() else spelled}"
    return text + detail


def markdown(page: Page) -> str:
    """A GitHub table, the best bold and the second underlined, with a line for each of its footnotes."""
    table = [_row(map(_literal, page.header)), _row(["---"] * len(page.header)), *(_row(map(_in_markdown, row)) for row in page.rows)]
    above, below = ([f"{_literal(line)}  " for line in lines] for lines in (page.above, [*page.below, page.last]))
    return "\n".join([*above, *([""] if above else []), *table, "", *below]) + "\n"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _literal(text: str) -> str:
    """Stars mark footnotes here; unescaped they would be lists and emphasis."""
    return text.replace("*", "\\*")


def _in_markdown(entry: Entry) -> str:
    text = {1: "**{}**", 2: "<u>{}</u>"}.get(entry.place or 0, "{}").format(_literal(entry.text))
    return f"{text} {_literal(entry.detail)}" if entry.detail else text


_TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "‡": r"$\ddagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(page: Page) -> str:
    r"""A tabular for \usepackage{booktabs}, the best bold and the second underlined, its footnotes under it."""
    rows = [" & ".join(map(_in_latex, row)) for row in page.rows]
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(page.header) - 1)}}}",
        "\\toprule",
        f"{' & '.join(map(_tex, page.header))} \\\\",
        "\\midrule",
        *(f"{{}}{row} \\\\" for row in rows),  # a row that begins with [ or * would be read as an argument of the line break before it
        "\\bottomrule",
        "\\end{tabular}",
    ]
    small = [*page.above, *page.below, page.last]
    return "\n".join([*lines, "\\par\\smallskip\\footnotesize", *(f"{_tex(line)}\\par" for line in small)]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _in_latex(entry: Entry) -> str:
    text = {1: "\\textbf{{{}}}", 2: "\\underline{{{}}}"}.get(entry.place or 0, "{}").format(_tex(entry.text))
    return f"{text} {{\\scriptsize {_tex(entry.detail)}}}" if entry.detail else text


def csv_table(comparison: Mapping[str, Any]) -> str:
    """A line a number: of runs a method and a column, of evaluations a pair and a reading. Accuracies are fractions."""
    rows = list(_run_lines(comparison)) if comparison["kind"] == "runs" else list(_pair_lines(comparison))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_KEPT = ("mean", "std", "seeds", "place", "verdict", "threat", "protocol", "data", "split", "n", "images")


def _run_lines(table: Mapping[str, Any]) -> Any:
    for row in table["rows"]:
        for column in table["columns"]:
            cell = row["cells"][column["name"]]
            if cell:
                low, high = cell["ci"] or (None, None)
                tested = cell.get("against_best", {})
                against = {f"against_best_{key}": tested.get(key) for key in ("difference", "p")}
                printed = {paper: (row["printed"][paper][column["name"]] or {}).get("value") for paper in table.get("papers", ())}
                numbers = {key: cell.get(key) for key in _KEPT}
                facts = {"method": row["name"], "column": column["name"], "unit": column["unit"], "upper_bound": column["upper_bound"]}
                yield {**facts, **numbers, "low": low, "high": high, **against, **printed}


def _pair_lines(table: Mapping[str, Any]) -> Any:
    folders = [row["folder"] for row in table["evaluations"]]
    for pair in table["comparisons"]:
        for reading, part in {"clean": pair["clean"], **pair["attacks"], "robust": pair["robust"]}.items():
            numbers = {key: value for key, value in part.items() if key != "ci"}
            between = {"evaluation": folders[pair["evaluation"]], "against": folders[0], "reading": reading}
            yield {**between, **numbers, "low": part["ci"][0], "high": part["ci"][1]}


def of(page: Page, form: str) -> str:
    return {"markdown": markdown, "latex": latex}[form](page)
