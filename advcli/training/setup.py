"""From a recipe to everything that training needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advcli.data import DataSet, Split
from advcli.data import load as load_data
from advcli.data.batches import steps_per_epoch
from advcli.data.split import stratified_part
from advcli.errors import UsageError
from advcli.models import Architecture, Network, build
from advcli.objectives import Objective, build_objective
from advcli.recipe import Recipe
from advcli.runs import checkpoint, container, foreign
from advcli.runs.given import Given


@dataclass(frozen=True)
class Assembly:
    """All parts on the device. monitored: the fixed part of the training set that is measured each epoch."""

    recipe: Recipe
    device: torch.device
    data: DataSet
    monitored: Split
    architecture: Architecture
    model: Network
    objective: Objective
    optimizer: torch.optim.SGD
    start: dict[str, Any] | None = None  # the receipt of the checkpoint that training starts from

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.data.train), self.recipe.train.batch_size)


def assemble(recipe: Recipe, device: torch.device, data: DataSet | None = None) -> Assembly:
    """Raises DataError, CheckpointError or UsageError where something does not fit.

    data: in place of what the recipe names, for measuring speed.
    """
    if recipe.model.init is not None:
        _check_start(Path(recipe.model.init))  # a missing start is said before data are fetched
    data = load_data(recipe.data, recipe.seed) if data is None else data
    if recipe.train.batch_size > len(data.train):
        raise UsageError(
            f"a batch of {recipe.train.batch_size}, but only {len(data.train)} training images",
            where="train.batch_size",
            next=f"train.batch_size={len(data.train)} at most",
        )
    _, channels, height, width = data.train.images.shape
    if height != width:
        raise UsageError(
            f"images are {width} x {height} pixels, and the networks here take square ones",
            where="data",
            next="data.size=32 resizes and crops them",
        )
    mean, std = (tuple(map(float, v)) if v is not None else None for v in (recipe.model.mean, recipe.model.std))
    part, classes = recipe.model, len(data.classes)
    architecture = Architecture(part.arch, float(part.width), classes, channels, height, mean, std, part.cells, part.gates)
    model = build(architecture, recipe.seed)
    start = None
    if recipe.model.init is not None:
        path = Path(recipe.model.init)
        given = _read_foreign(path, recipe, architecture, data.classes) if foreign.is_foreign(path) else None
        header = checkpoint.initialise_from(model, path, architecture, data.classes, given)
        start = {key: header.get(key) for key in ("name", "seed", "tensors_sha256", "recipe_sha256")}
        start |= {"foreign": header["foreign"]} if "foreign" in header else {}
        start["saw_held_out"] = _saw_held_out(recipe, header)
    model.to(device).to(memory_format=torch.channels_last)
    data = DataSet(data.train.to(device), data.validation.to(device), data.classes)
    objective = build_objective(recipe).to(device)
    objective.setup(model, data)
    optim = recipe.optim
    optimizer = torch.optim.SGD(
        [{"params": list(model.parameters())}, *objective.parameter_groups()],
        lr=float(optim.lr),
        momentum=float(optim.momentum),
        weight_decay=float(optim.weight_decay),
        nesterov=optim.nesterov,
    )
    size = min(recipe.select.train_images, len(data.train))
    monitored = data.train.take(stratified_part(data.train.labels, size, recipe.seed, "monitor")[0].to(device)).to(device)
    return Assembly(recipe, device, data, monitored, architecture, model, objective, optimizer, start)


def _check_start(path: Path) -> None:
    if foreign.is_foreign(path):
        foreign.check_readable(path)
    else:
        container.read_header(path, "model")


def _read_foreign(path: Path, recipe: Recipe, a: Architecture, classes: Sequence[str]) -> checkpoint.Loaded:
    """Weights of others as the recipe's network, without its gates: the recipe says what the command line would."""
    data = recipe.data.model_dump(mode="json")
    return foreign.load(path, Given(a.arch, None, a.mean, a.std), classes, (a.channels, a.size, a.size), data, {})


def _saw_held_out(recipe: Recipe, header: dict[str, Any]) -> bool:
    """Whether the checkpoint to start from may have been trained on images that this recipe holds out: seed and limit split them."""
    stored, own = header["data"], recipe.data.model_dump(mode="json")
    same = header.get("seed") == recipe.seed and all(stored.get(key) == own[key] for key in ("limit", "validation"))
    return bool(own["validation"]) and stored.get("name") == own["name"] and not same
