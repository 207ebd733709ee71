"""advcli recipe list, show, copy, validate, schema: all without torch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Json, Overrides, RecipeArgument
from advcli.cli.output import print_json
from advcli.errors import UsageError

app = typer.Typer(help="Shipped recipes and what a recipe may say.", no_args_is_help=True)


@app.command("list")
def list_(json: Json = False) -> None:
    """Every shipped recipe with the first line of its head."""
    from advcli.recipe import shipped
    from advcli.report import terminal

    rows = [(name, shipped.summary(shipped.find(name))) for name in shipped.names()]
    print_json([{"name": name, "about": about} for name, about in rows]) if json else terminal.show_recipes(rows)


@app.command()
def show(recipe: RecipeArgument) -> None:
    """A recipe as it is written, comments included."""
    from advcli.recipe import find

    sys.stdout.write(find(recipe).read_text(encoding="utf-8"))


@app.command()
def copy(
    recipe: RecipeArgument,
    to: Annotated[Path | None, typer.Argument(help="File to write; left out: the same name here.", show_default=False)] = None,
) -> None:
    """A copy of a recipe that you own and may change."""
    from advcli.recipe import find

    source = find(recipe)
    target = to or Path(source.name)
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UsageError("there is a file already, and nothing is overwritten", where=str(target))
    if not target.parent.is_dir():
        raise UsageError("there is no such directory", where=str(target.parent))
    shutil.copyfile(source, target)
    sys.stdout.write(f"{target}\n")


@app.command()
def validate(recipe: RecipeArgument, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe with its overrides and print it resolved, every default written out."""
    from advcli.recipe import dump, load

    resolved = load(recipe, overrides or [])
    print_json(resolved.model_dump(mode="json")) if json else sys.stdout.write(dump(resolved))


@app.command()
def schema() -> None:
    """The JSON schema of recipes: every key, type, default and range."""
    from advcli.recipe import Recipe

    print_json(Recipe.model_json_schema())
