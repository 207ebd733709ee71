"""advcli finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advcli.cli.options import Arch, Device, DryRun, Json, Mean, NumClasses, Out, Overrides, Quiet, RecipeArgument, Resume, Std
from advcli.cli.training import train_command


def finetune(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CKPT",
            help="A model.safetensors, its run folder, or somebody else's weights; left out: model.init.",
            show_default=False,
        ),
    ] = None,
    arch: Arch = None,
    num_classes: NumClasses = None,
    mean: Mean = None,
    std: Std = None,
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
    from_options = {"model.arch": arch, "model.mean": mean and f"[{mean}]", "model.std": std and f"[{std}]"}
    train_command(
        "finetune",
        recipe,
        [*(overrides or []), *(f"{key}={value}" for key, value in from_options.items() if value)],
        start=checkpoint,
        num_classes=num_classes,
        out=out,
        resume=resume,
        dry_run=dry_run,
        json=json,
        quiet=quiet,
        device=device,
    )
