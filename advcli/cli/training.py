"""What pretrain, adv-train and finetune share: they differ only in which objectives they take and where they start."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from advcli.cli import launch
from advcli.cli.output import print_json
from advcli.torchrun import launched

if TYPE_CHECKING:
    from advcli.recipe import Recipe


def train_command(
    command: str,
    name: str,
    overrides: list[str],
    *,
    start: Path | None = None,
    num_classes: int | None = None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
    device: str,
) -> None:
    if dry_run:
        if not launch.follows():
            _dry_run(_checked(command, name, overrides, start, num_classes), json=json, device=device)
        return
    with launch.together(device):
        recipe = _checked(command, name, overrides, start, num_classes)
        from advcli.report import terminal
        from advcli.report.progress import TrainingProgress
        from advcli.training import session

        with TrainingProgress(quiet=quiet) as progress:
            outcome = session.run(recipe, progress, out=out, resume=resume, device=device)
    facts = {**dataclasses.asdict(outcome), "folder": str(outcome.folder), "checkpoint": str(outcome.checkpoint)}
    print_json(facts) if json else terminal.show_training(facts)


def _checked(command: str, name: str, overrides: list[str], start: Path | None, num_classes: int | None) -> Recipe:
    """The recipe, once it is known to be one of this command; a typing mistake costs no second of torch's import."""
    from advcli.recipe import load

    recipe = load(name, overrides)
    from advcli.training import session

    session.check_command(recipe, command)
    return session.start_from(recipe, start, num_classes) if command == "finetune" else recipe


def _dry_run(recipe: Recipe, *, json: bool, device: str) -> None:
    from advcli.recipe import dump
    from advcli.report import terminal
    from advcli.report.progress import duration
    from advcli.training import session

    plan = session.dry_run(recipe, device=device)
    facts = {**dataclasses.asdict(plan), "recipe": plan.recipe.model_dump(mode="json")}
    total = duration(plan.seconds * plan.steps)
    alone = "; the whole batch on one process" if launched() else ""
    rows = [
        ("parameters", f"{plan.parameters:,}"),
        ("images", f"{plan.train_images:,} to train on, {plan.validation_images:,} held out"),
        ("steps", f"{plan.steps:,} ({plan.steps_per_epoch:,} an epoch)"),
        (
            "cost",
            f"{plan.forwards:g} forwards and {plan.backwards:g} backwards an image and step, {plan.forward_gflops:.4g} GFLOP a forward",
        ),
        *(("probe", line) for line in plan.notes),
        ("one step", f"{plan.seconds:.2f} s on {plan.device}, the first, so an upper estimate{alone}"),
    ]
    print_json(facts) if json else terminal.show_dry_run(
        dump(plan.recipe), rows, f"about {total} of steps, measurements not counted; no run folder was made"
    )
