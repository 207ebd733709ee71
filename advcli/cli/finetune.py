"""advcli finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Device, DryRun, Json, Out, Overrides, Quiet, RecipeArgument, Resume
from advcli.cli.training import train_command


def finetune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--from", metavar="CKPT", help="A model.safetensors or its run folder; left out: model.init.", show_default=False),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Adversarial finetuning of a trained network: objective arrest, or any other adversarial one.

    Example: advcli finetune recipes/arrest.yaml --from runs/standard
    """
    train_command(
        "finetune",
        recipe,
        overrides or [],
        start=checkpoint,
        out=out,
        resume=resume,
        dry_run=dry_run,
        json=json,
        quiet=quiet,
        device=device,
    )
