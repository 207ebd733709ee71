"""advcli compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Json
from advcli.cli.output import print_json
from advcli.errors import UsageError


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN-OR-EVAL...", help="Run folders, or evaluation folders.", show_default=False)
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE/READING", help="Of runs: show this, such as quick/pgd-20 or aa/worst. Repeatable.", show_default=False),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a GitHub table.")] = False,
    json: Json = False,
) -> None:
    """Runs side by side, a row a method with its seeds folded; or evaluations, paired image by image with exact tests.

    Example: advcli compare runs/quickstart runs/undefended
    """
    from advcli.evaluation import comparison
    from advcli.report import comparison as screens

    if json and markdown:
        raise UsageError("one of --json and --markdown", where="--json, --markdown")
    found = comparison.gather(folders, column or [])
    if json:
        print_json(found)
    elif markdown:
        sys.stdout.write(screens.markdown(screens.page(found)))
    else:
        screens.show(screens.page(found))
