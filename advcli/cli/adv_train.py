"""advcli adv-train."""

from __future__ import annotations

from advcli.cli.options import Device, DryRun, Json, Out, Overrides, Quiet, RecipeArgument, Resume
from advcli.cli.training import train_command


def adv_train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
) -> None:
    """Adversarial training: any objective, any wrapper, from a recipe.

    Example: advcli adv-train recipes/pgd-at.yaml data.name=cifar10 model.width=0.25
    """
    train_command("adv-train", recipe, overrides or [], out=out, resume=resume, dry_run=dry_run, json=json, quiet=quiet, device=device)
