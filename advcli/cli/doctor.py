"""advcli doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from advcli.cli.options import Device, Json, Overrides, Quiet
from advcli.cli.output import print_json, watcher


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe whose time is estimated on real steps.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    data_root: Annotated[str | None, typer.Option(help="Where data sets lie.", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """What this machine can do, what is missing and how to mend it, and how long a recipe would take.

    Example: advcli doctor pgd-at data.name=cifar10
    """
    from advcli.doctor import examine
    from advcli.recipe import load

    loaded = load(recipe, overrides or []) if recipe is not None else None
    from advcli.report import health

    result = examine(loaded, device, data_root, watcher(quiet=quiet))
    print_json(result) if json else health.show_doctor(result)
