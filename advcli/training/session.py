"""A training command from a recipe to an outcome: device, folder, resume, or a dry run."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

from advcli.data import DataSet, Moment, batches
from advcli.errors import CheckpointError, UsageError
from advcli.gates.whole import processes
from advcli.models import Network
from advcli.recipe import Recipe
from advcli.runs import folder as folders
from advcli.runs import foreign
from advcli.training import distributed
from advcli.training.cost import forward_flops, passes
from advcli.training.device import pick_device
from advcli.training.loop import Outcome, Watcher, train
from advcli.training.probe import settle
from advcli.training.settled import Settled
from advcli.training.setup import assemble
from advcli.training.step import step_of

_COMMANDS = {"standard": ("pretrain",), "arrest": ("finetune",)}
_SEEN = 64  # images whose pixels processes compare
_FROM = "--from CKPT, such as the run folder that advcli pretrain recipes/standard.yaml makes"


def check_command(recipe: Recipe, command: str) -> None:
    """pretrain takes objective standard, finetune any but that, adv-train what may also start from random weights.

    UsageError names the command that fits.
    """
    fitting = _COMMANDS.get(recipe.objective.name, ("adv-train", "finetune"))
    if command not in fitting:
        raise UsageError(
            f"objective {recipe.objective.name} is not trained by {command}",
            where="objective.name",
            next=f"advcli {fitting[0]} with the same recipe" + (f" and {_FROM}" if fitting[0] == "finetune" else ""),
        )


def start_from(recipe: Recipe, path: Path | None, num_classes: int | None = None) -> Recipe:
    """The recipe with model.init set to a model file, or to that of a run folder; path left out, the recipe must have one.

    num_classes: what weights of others must tell apart; None: as many as the data set has, which is checked later.
    """
    if path is not None:
        init = str(folders.model_file(path))
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": init})})
    if recipe.model.init is None:
        raise UsageError("finetuning starts from trained weights, and none were named", where="--from", next=_FROM)
    if num_classes is not None:
        foreign.check_classes(Path(recipe.model.init), num_classes)
    return recipe


def run(recipe: Recipe, watcher: Watcher, *, out: Path | None, resume: bool, device: str) -> Outcome:
    """Train a recipe into a new folder, or go on in an old one; its decisions are kept, and another recipe is refused."""
    _check_shares(recipe)
    where = pick_device(device)
    given, folder, fresh = distributed.lead(lambda: _settled_before(recipe, out, resume=resume))
    parts = distributed.in_turn(lambda: assemble(given, where))  # before a folder is made: what cannot start leaves nothing behind
    distributed.check_agree(_fingerprint(parts.data), "the data are not the same everywhere", "every machine needs the same files")
    settled = None
    if fresh:
        measured = settle(parts)
        settled = distributed.lead(lambda: measured)  # every process measures, the first one's numbers decide
        parts = replace(parts, recipe=settled.recipe)
        for line in settled.lines():
            watcher.noted(line)
    return train(parts, distributed.lead(lambda: _ready(folder, given, out, settled)), watcher, resume=resume)


def _fingerprint(data: DataSet) -> str:
    """Of both splits: all names and labels, and the pixels of the first images; nothing where one process works alone."""
    if processes() == 1:
        return ""
    content = hashlib.sha256()
    for split in (data.train, data.validation):
        for tensor in (split.index, split.labels, split.images[:_SEEN]):
            content.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return content.hexdigest()


def _check_shares(recipe: Recipe) -> None:
    """UsageError unless every process gets as many images of a batch as any other."""
    size, several = recipe.train.batch_size, processes()
    if size % several:
        raise UsageError(
            f"a batch of {size} images cannot be shared equally by {several} processes",
            where="train.batch_size",
            next=f"it is the batch of all processes together: train.batch_size={-(-size // several) * several}, or another multiple",
        )


def _settled_before(recipe: Recipe, out: Path | None, *, resume: bool) -> tuple[Recipe, Path | None, bool]:
    """The recipe with the decisions of the run that goes on; its folder, if there is one; and whether nothing is decided yet.

    Whatever is in the way is refused.
    """
    folder = (out or folders.newest(recipe.name)) if resume else None
    stored = folders.stored_recipe(folder) if folder is not None else None
    if out is not None and stored is None:
        folders.check_free(out)
    if folder is not None and stored is not None:
        folders.check_same(stored, recipe, folder)
    if folder is not None and not (folder / "state.safetensors").is_file() and (folder / "last.safetensors").is_file():
        what = "the run has weights but its saved state is missing, so it cannot go on"
        raise CheckpointError(what, where=str(folder), next="leave out --resume to start a new run; nothing was touched")
    return recipe if stored is None else folders.as_decided(recipe, stored), folder, stored is None


def _ready(folder: Path | None, recipe: Recipe, out: Path | None, settled: Settled | None) -> Path:
    """The folder, made if it is not there, with the recipe and what was measured for it."""
    if folder is None or not folder.is_dir():
        folder = folders.create(recipe.name, out)
    if settled is not None:
        folders.store_recipe(folder, settled.recipe)
        folders.store_probe(folder, recipe, settled.receipt())
    return folder


@dataclass(frozen=True)
class DryRun:
    """What a training would be. forwards, backwards: per image and step, counted on one real step; seconds: of that step.

    notes: how `auto` was settled.
    """

    recipe: Recipe
    notes: tuple[str, ...]
    device: str
    parameters: int
    train_images: int
    validation_images: int
    steps_per_epoch: int
    steps: int
    forwards: float
    backwards: float
    forward_gflops: float
    seconds: float


def dry_run(recipe: Recipe, *, device: str) -> DryRun:
    """Resolve, assemble, and run one step, after another one where blocks are compiled first; nothing is written."""
    where = pick_device(device)
    parts = assemble(recipe, where)
    settled = settle(parts)
    parts, recipe = replace(parts, recipe=settled.recipe), settled.recipe
    batch = next(
        batches(parts.data.train, batch_size=recipe.train.batch_size, seed=recipe.seed, epoch=0, augmentations=recipe.data.augment)
    )
    parts.model.eval()
    flops = forward_flops(parts.model, batch.images[:1])
    parts.model.train()
    teachers = [module for module in parts.objective.modules() if isinstance(module, Network)]
    step, moment = step_of(parts), Moment(recipe.seed, 0, 0, 0.0)
    if recipe.train.compile is True:
        float(step(batch, moment)["loss"])
    started = time.monotonic()
    with passes(*step.networks, *teachers) as cost:
        float(step(batch, moment)["loss"])  # a number, so the device is done
    seconds = time.monotonic() - started
    return DryRun(
        recipe=recipe,
        notes=tuple(settled.lines()),
        device=str(where),
        parameters=sum(p.numel() for p in parts.model.parameters()),
        train_images=len(parts.data.train),
        validation_images=len(parts.data.validation),
        steps_per_epoch=parts.steps_per_epoch,
        steps=parts.steps_per_epoch * recipe.schedule.epochs,
        forwards=cost.forwards / len(batch.labels),
        backwards=cost.backwards / len(batch.labels),
        forward_gflops=flops / 1e9,
        seconds=seconds,
    )
