"""advcli report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Json
from advcli.cli.output import print_json


def report(
    place: Annotated[
        Path, typer.Argument(metavar="EVAL-OR-RUN", help="An evaluation folder, or a run folder with its evaluations.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Left out: report.html in that folder.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """One self-contained HTML page from the receipts of an evaluation or a run.

    Example: advcli report runs/quickstart
    """
    from advcli.report import page, subject, terminal

    found = subject.of(place)
    file = page.write(found, out)
    told = found.evaluation.report if found.evaluation else None
    if json:
        print_json({"file": str(file), "evaluation": str(found.evaluation.folder) if found.evaluation else None, "report": told})
    else:
        terminal.show_page(str(file), told)
