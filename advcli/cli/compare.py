"""advcli compare."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Json
from advcli.cli.output import print_json
from advcli.errors import UsageError


class Format(StrEnum):
    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


_COLUMN = "Of runs: quick/pgd-20, aa/worst, aa/worst-class, aa/classes, last:aa, validation, hours, average, ... Repeatable."


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN-OR-EVAL...", help="Run folders, or evaluation folders.", show_default=False)
    ],
    column: Annotated[list[str] | None, typer.Option(metavar="SUITE/READING", help=_COLUMN, show_default=False)] = None,
    paper: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of runs: what again, ancra, arrest or stayfocused prints. Repeatable.", show_default=False),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="latex is a booktabs table; csv has a line a number.")] = Format.terminal,
    json: Json = False,
) -> None:
    """Runs side by side, a row a method with its seeds folded; or evaluations, paired image by image with exact tests.

    Example: advcli compare runs/quickstart runs/undefended
    """
    from advcli.evaluation import comparison
    from advcli.report import comparison as pages
    from advcli.report import formats, papers

    if json and form not in (Format.terminal, Format.json):
        raise UsageError("one of --json and --format", where="--json, --format")
    found = comparison.gather(folders, column or [])
    if paper and found["kind"] != "runs":
        raise UsageError("papers have numbers of methods, and these are evaluations", where="--paper", next="name run folders")
    if paper:
        found = papers.beside(found, paper)
    if json or form is Format.json:
        print_json(found)
    elif form is Format.csv:
        sys.stdout.write(formats.csv_table(found))
    elif form is Format.terminal:
        formats.show(pages.page(found))
    else:
        sys.stdout.write(formats.of(pages.page(found), form.value))
