"""Arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c ...]", help="Changes to the recipe; ~a.b takes a key out.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Out = Annotated[Path | None, typer.Option(help="Folder to write; it must be new or empty.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the newest folder of this recipe's name, or --out, stopped.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe, sizes and cost, run one step, make no run folder.")]
