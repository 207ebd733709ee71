"""How fast this machine trains a recipe: real steps by the clock, beside what they cost at least and what the machine can do."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from advcli.attacks import Surrogate
from advcli.attacks.losses import attack_loss
from advcli.data import Batch, Moment, batches
from advcli.data.synthetic import can_stand_in, planned_images, synthetic
from advcli.errors import DataError
from advcli.measures import quartiles
from advcli.models import frozen
from advcli.objectives import Crafted
from advcli.recipe import Recipe
from advcli.recipe.schema import NegativeContrast, crafting_precision, selection_steps
from advcli.runs.checkpoint import versions
from advcli.training import ema
from advcli.training.cost import FlopMeter, forward_flops
from advcli.training.device import computing
from advcli.training.machine import hardware, peak, peak_memory
from advcli.training.phases import PHASES, after_craft, split
from advcli.training.probe import settle
from advcli.training.setup import Assembly, assemble
from advcli.training.step import Step, step_of
from advcli.training.turns import by_turns

T = TypeVar("T")

COUNTED = 16  # images on which FLOPs are counted: they grow with the batch
_SYNTHETIC = 2048  # random images at least


class Trainer:
    """Takes a recipe's optimiser steps one after the other, as in its last epoch: wrappers, ramps and terms are all on by then."""

    def __init__(self, parts: Assembly, step: Step | None = None, stream: Iterator[Batch] | None = None) -> None:
        """step: its recipe's, which is settled, where left out. stream: batches without end; left out: the recipe's own."""
        self.parts, self.step = parts, step or step_of(parts)
        self.decay = parts.recipe.train.ema
        self.average = ema.averaged_copy(parts.model) if self.decay is not None else None
        self.epoch = parts.recipe.schedule.epochs - 1
        self.number = self.epoch * parts.steps_per_epoch
        self.batches = stream or self._batches()
        parts.model.train()

    def _batches(self) -> Iterator[Batch]:
        recipe, split = self.parts.recipe, self.parts.data.train
        for epoch in itertools.count():
            yield from batches(split, batch_size=recipe.train.batch_size, seed=recipe.seed, epoch=epoch, augmentations=recipe.data.augment)

    def advance(self, batch: Batch) -> torch.Tensor:
        """One step, the average of the weights with it where the recipe keeps one; its loss, still on the device."""
        moment = Moment(self.parts.recipe.seed, self.epoch, self.number, self.epoch / self.parts.recipe.schedule.epochs)
        self.number += 1
        loss = self.step(batch, moment)["loss"]
        if self.average is not None and self.decay is not None:
            ema.update(self.average, self.parts.model, float(self.decay))
        return loss

    def run(self, steps: int) -> float:
        """The last step's loss, when the device is done."""
        for _ in range(steps):
            loss = self.advance(next(self.batches))
        return float(loss)


@dataclass(frozen=True)
class Floor:
    """What a step costs an image at least: FLOPs of its crafting, of the rest of it, and of one forward, which is 1 F."""

    craft: float
    train: float
    forward: float

    @property
    def total(self) -> float:
        return self.craft + self.train


@dataclass(frozen=True)
class How:
    """rounds of at least `seconds` each. made_up: on random images. watch is told what runs next."""

    rounds: int
    seconds: float
    made_up: bool
    watch: Callable[[str], None]

    def steps(self, one: float) -> int:
        """How many steps of `one` second each fill a round."""
        return max(1, math.ceil(self.seconds / one))


def run(recipe: Recipe, device: torch.device, how: How) -> dict[str, Any]:
    """Everything that is known of a recipe's speed here, after a warm-up of three steps; precision is chosen first, as in training."""
    watch, start = how.watch, dict[str, float]()
    parts = noted(start, "assembly", lambda: gathered(recipe, device, made_up=how.made_up))
    watch("choosing precision")
    settled = noted(start, "probe", lambda: settle(parts))
    watch("counting what a step costs at least")
    floor = count(parts)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(replace(parts, recipe=settled.recipe))
    watch("warming up")
    noted(start, "first_step", lambda: trainer.run(1))
    steps = how.steps(min(clocked(lambda: trainer.run(1)) for _ in range(2)))
    spent, _ = by_turns({"training": lambda: trainer.run(steps)}, how.rounds, watch)
    step = quartiles([value / steps for value in spent["training"]])
    watch("where a step's time goes")
    shares = split(trainer.parts, partial(next, trainer.batches), trainer.advance, steps)
    memory = peak_memory(device)
    watch("the machine's peak")
    return {
        "recipe": recipe.name,
        "arch": recipe.model.arch,
        "data": {"name": recipe.data.name, "synthetic": how.made_up},
        "batch_size": recipe.train.batch_size,
        "precision": precision_of(settled.recipe),
        "probe": {**settled.receipt(), "lines": settled.lines()},
        "rounds": how.rounds,
        "steps": steps,
        "seconds": {"step": step, **{name: shares[name] * step["median"] for name in PHASES}},
        **rates(settled.recipe, floor, step["median"], device),
        "memory_bytes": memory,
        "start_seconds": start,
        "estimate": estimate(parts, step["median"], planned_images(recipe.data) if how.made_up else len(parts.data.train)),
        "versions": versions(),
        "hardware": hardware(device),
    }


def rates(recipe: Recipe, floor: Floor, step: float, device: torch.device) -> dict[str, Any]:
    """Per second, from one step's seconds. share_of_peak: the time that the floor takes where each part runs at its precision's peak."""
    size, precision = recipe.train.batch_size, precision_of(recipe)
    peaks = {name: peak(device, name) for name in sorted(set(precision.values()))}
    least = size * (floor.craft / peaks[precision["craft"]] + floor.train / peaks[precision["train"]])
    return {
        "images_per_second": size / step,
        "image_steps_per_second": size * gradient_steps(recipe) / step,
        "floor": {"F": floor.total / floor.forward, "craft_F": floor.craft / floor.forward, "gflop_forward": floor.forward / 1e9},
        "goodput_gflops": size * floor.total / step / 1e9,
        "peak_gflops": {name: value / 1e9 for name, value in peaks.items()},
        "share_of_peak": least / step,
    }


def precision_of(recipe: Recipe) -> dict[str, str]:
    return {"craft": crafting_precision(recipe), "train": recipe.train.precision}


def gathered(recipe: Recipe, device: torch.device, *, made_up: bool) -> Assembly:
    """All parts of a recipe, on random images where asked; DataError says how to do without the data set, where that can be done."""
    if made_up:
        images = min(planned_images(recipe.data), max(_SYNTHETIC, 2 * recipe.train.batch_size))
        return assemble(recipe, device, synthetic(recipe.data, images))
    try:
        return assemble(recipe, device)
    except DataError as error:
        if not can_stand_in(recipe.data):
            raise
        next = f"{error.next}; or advcli bench with --synthetic, which measures on random images"
        raise DataError(error.what, where=error.where, next=next) from None


def clocked(go: Callable[[], object]) -> float:
    began = time.perf_counter()
    go()
    return time.perf_counter() - began


def noted(seconds: dict[str, float], name: str, go: Callable[[], T]) -> T:
    """What go gives; its time is put under name."""
    began = time.perf_counter()
    result = go()
    seconds[name] = time.perf_counter() - began
    return result


def gradient_steps(recipe: Recipe) -> int:
    """Of attacks, for each image of a batch: ANCRA attacks its negatives too."""
    if recipe.objective.name == "standard":
        return 0
    terms = getattr(recipe.objective, "terms", ())
    twice = any(isinstance(term, NegativeContrast) and term.negatives == "targeted" for term in terms)
    return (recipe.craft.steps if recipe.craft is not None else 10) * (2 if twice else 1)


def count(parts: Assembly) -> Floor:
    """Counted on a few images in one plain float32 step, which passes nothing twice; tests hold that against each method's arithmetic."""
    trainer = Trainer(parts, Step(parts.model, parts.objective, parts.optimizer))
    batch = Batch(*(part[:COUNTED] for part in next(trainer.batches)))
    parts.model.eval()
    forward = forward_flops(parts.model, batch.images)
    parts.model.train()
    crafted = 0
    with FlopMeter() as meter:

        def note(_: Crafted) -> None:
            nonlocal crafted
            crafted = meter.total

        with after_craft(parts.objective, note):
            trainer.advance(batch)
    images = len(batch.labels)
    return Floor(crafted / images, (meter.total - crafted) / images, forward / images)


def estimate(parts: Assembly, per_step: float, images: int) -> dict[str, float]:
    """Seconds of the whole recipe on that many training images, those of measuring after epochs at most: as if nothing broke."""
    recipe, device = parts.recipe, parts.device
    steps = recipe.schedule.epochs * max(1, images // recipe.train.batch_size)
    measurements = math.ceil(recipe.schedule.epochs / recipe.select.every)
    measured = recipe.data.validation + min(recipe.select.train_images, images)
    x, y, _ = next(batches(parts.data.train, batch_size=min(64, len(parts.data.train)), seed=recipe.seed, epoch=0))
    with frozen(parts.model), computing("fp32", device):
        surrogate, loss = Surrogate(parts.model.trace), attack_loss("ce")
        times = [clocked(lambda: float(surrogate.gradient(loss, x, y, {})[0].sum())) for _ in range(3)]
    one = min(times) / len(y)
    passes = selection_steps(recipe.select.metric) + 1  # the clean pass and the last iterate's are forwards alone
    training, measuring = steps * per_step, measurements * measured * passes * one
    return {"steps": steps, "training": training, "measuring": measuring, "total": training + measuring}
