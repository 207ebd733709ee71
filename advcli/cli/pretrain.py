"""advcli pretrain."""

from __future__ import annotations

from advcli.cli.options import Device, DryRun, Json, Out, Overrides, Quiet, RecipeArgument, Resume
from advcli.cli.training import train_command


def pretrain(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Standard training, from a recipe with objective standard.

    Example: advcli pretrain recipes/standard.yaml optim.lr=0.05
    """
    train_command("pretrain", recipe, overrides or [], out=out, resume=resume, dry_run=dry_run, json=json, quiet=quiet, device=device)
