"""What `auto` means for a training on this machine: settled once, by measuring speed and agreement, before the first step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks import Surrogate
from advcli.attacks.losses import attack_loss
from advcli.data import Batch, Moment, batches
from advcli.errors import UsageError, first_line
from advcli.gates.whole import processes
from advcli.models import FastCopy, Network, batch_norm_state_kept
from advcli.objectives import Crafted
from advcli.recipe import Recipe
from advcli.recipe.schema import crafting_precision
from advcli.training.compilation import called_plainly, compile_blocks
from advcli.training.cost import FLOOR, forward_flops
from advcli.training.device import computing, plain_precision
from advcli.training.settled import Settled, Trial
from advcli.training.setup import Assembly
from advcli.training.turns import by_turns

_ROUNDS = 3
_IMAGES = 32  # of the first batch, on a CPU; a CUDA device is asked what it does with the whole of it
_LEAST = 8  # images; a device that has no memory for a step on these has none for training


def settle(parts: Assembly) -> Settled:
    """Measures what the recipe leaves to `auto`; nothing of the network, its statistics or the objective moves."""
    return _Probe(parts).settle()


class _Probe:
    def __init__(self, parts: Assembly) -> None:
        self.parts, self.recipe, self.device = parts, parts.recipe, parts.device
        self.plain = plain_precision(self.device)
        share = self.recipe.train.batch_size // processes()
        self.size = self.whole = share if self.device.type == "cuda" else min(_IMAGES, share)
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self.compile_seconds: float | None = None

    def settle(self) -> Settled:
        """On fewer images where the whole batch needs more memory in plain precision than there is: what is chosen may need less."""
        if not self._asked():
            return Settled(self.recipe)
        while True:
            try:
                return self._settled()
            except torch.OutOfMemoryError:
                if processes() > 1:  # the others would wait for this one's part of the loss
                    raise
            self._halve()

    def _halve(self) -> None:
        if self.size <= _LEAST:
            raise UsageError(
                f"a step on {self.size} images is more than the memory of {self.device} holds",
                where="--device",
                next="see whether others use its memory, or take a smaller network, such as by model.width=0.5",
            )
        self.size = max(_LEAST, self.size // 2)
        compile_blocks(self.parts.model, undo=True)
        torch.cuda.empty_cache()
        self.trials.clear()
        self.notes[:] = [f"probed on {self.size} images: memory does not hold {self.whole} in every precision"]

    def _settled(self) -> Settled:
        self.batch, self.moment = self._first_batch(), Moment(self.recipe.seed, 0, 0, 0.0)
        self.parts.model.eval()
        small = forward_flops(self.parts.model, self.batch.images[:1]) < FLOOR
        if small:
            self.notes.append(f"a network of under {FLOOR / 1e6:g} MFLOP is all overhead: {self.plain}, no precision was probed")
        self.parts.model.train()
        craft = self._craft(small=small)
        train = self._train(craft, small=small)
        compiled = self._compile(craft, train, small=small)
        return Settled(self._resolved(craft, train, compiled), tuple(self.trials), tuple(self.notes), self.compile_seconds)

    def _asked(self) -> bool:
        recipe = self.recipe
        return "auto" in (recipe.train.precision, crafting_precision(recipe)) or recipe.train.compile in ("auto", True)

    def _first_batch(self) -> Batch:
        recipe = self.recipe
        return next(batches(self.parts.data.train, batch_size=self.size, seed=recipe.seed, epoch=0, augmentations=recipe.data.augment))

    def _craft(self, *, small: bool) -> str:
        """The precision of the attack copy; `auto` stays where crafting has none of its own."""
        asked = self.recipe.craft.precision if self.recipe.craft else "auto"
        if asked != "auto" or not self.parts.objective.crafts_on_a_copy or small:
            return self.plain if asked == "auto" else asked
        ways = {name: self._gradient_of(name, FastCopy(self.parts.model, _kind(name)).network) for name in (self.plain, "bf16")}
        return self._choose("craft", ways, lambda a, b: float((a[0].sign() == b[0].sign()).double().mean()))

    def _gradient_of(self, precision: str, network: Network) -> Callable[[], list[Tensor]]:
        """The cross-entropy's gradient at the images, on a frozen copy."""

        def gradient() -> list[Tensor]:
            with computing(precision, self.device, autocast=False):
                return [Surrogate(network.trace).gradient(attack_loss("ce"), self.batch.images, self.batch.labels, {})[0]]

        return gradient

    def _train(self, craft: str, *, small: bool) -> str:
        asked = self.recipe.train.precision
        if asked != "auto" or small:
            return self.plain if asked == "auto" else asked
        crafted = self._crafted(craft)
        return self._choose("train", {name: self._scored(name, crafted) for name in (self.plain, "bf16")}, _least_cosine)

    def _crafted(self, craft: str) -> Crafted:
        parts = self.parts
        attacked = FastCopy(parts.model, _kind(craft)).network if parts.objective.crafts_on_a_copy else parts.model
        with computing(craft, self.device, autocast=False), batch_norm_state_kept(parts.model):
            return parts.objective.craft(attacked, self.batch, self.moment)

    def _scored(self, precision: str, crafted: Crafted) -> Callable[[], list[Tensor]]:
        """The loss's gradient by the weights of each layer."""
        parts = self.parts
        weights = [weight for weight in parts.model.parameters() if weight.requires_grad and weight.dim() > 1]

        def gradient() -> list[Tensor]:
            with batch_norm_state_kept(parts.model), batch_norm_state_kept(parts.objective), computing(precision, self.device):
                total = parts.objective.loss(parts.model, self.batch, crafted, self.moment).total
                gradients = torch.autograd.grad(total, weights, allow_unused=True)
            return [value for value in gradients if value is not None]

        return gradient

    def _choose(
        self, part: str, ways: dict[str, Callable[[], list[Tensor]]], agreement: Callable[[list[Tensor], list[Tensor]], float]
    ) -> str:
        """The candidate, ways' second, where it is enough quicker than the plain first and agrees with it."""
        (plain, one), (candidate, other) = ways.items()
        agrees = agreement(one(), other())  # these first goes warm up, too
        seconds = self._seconds(one, other)
        self.trials.append(Trial(part, candidate, plain, seconds[1], seconds[0], agrees))
        return candidate if self.trials[-1].taken else plain

    def _seconds(self, *ways: Callable[[], list[Tensor]]) -> list[float]:
        """Medians, the candidates taking turns."""
        runs = {str(number): partial(_read, way) for number, way in enumerate(ways)}
        spent, _ = by_turns(runs, _ROUNDS, lambda text: None)
        return [statistics.median(times) for times in spent.values()]

    def _compile(self, craft: str, train: str, *, small: bool) -> bool:
        """Whether blocks are compiled: where that was asked for and works, or, on a CUDA device, where it is quicker."""
        asked, model = self.recipe.train.compile, self.parts.model
        if asked is False or (asked == "auto" and (small or self.device.type != "cuda")):
            return False
        copy, crafted = FastCopy(model, _kind(craft)).network, self._crafted(craft)
        crafting, scoring = self._gradient_of(craft, copy), self._scored(train, crafted)

        def compiled() -> list[Tensor]:
            return [*(crafting() if self.parts.objective.crafts_on_a_copy else ()), *scoring()]

        def eager() -> list[Tensor]:
            with called_plainly(model), called_plainly(copy):
                return compiled()

        began = time.perf_counter()
        try:
            for network in (model, copy):
                compile_blocks(network)
            agrees = _least_cosine(eager(), compiled())
        except Exception as error:  # a compiler has many ways to fail, and training goes on without it
            if isinstance(error, torch.OutOfMemoryError):  # says nothing of the compiler
                raise
            if processes() > 1:  # the others would wait for this one's part of the loss
                raise
            self.notes.append(f"blocks are not compiled: {first_line(error)}")
            compile_blocks(model, undo=True)
            return False
        self.compile_seconds = round(time.perf_counter() - began, 3)
        self.notes.append(f"compiling the blocks took {self.compile_seconds:.0f} s")
        taken = asked is True or self._quicker(eager, compiled, agrees)
        compile_blocks(model, undo=True)  # the step does it itself, out of torch's cache
        return taken

    def _quicker(self, eager: Callable[[], list[Tensor]], compiled: Callable[[], list[Tensor]], agrees: float) -> bool:
        seconds = self._seconds(eager, compiled)
        self.trials.append(Trial("compile", "compiled", "eager", seconds[1], seconds[0], agrees))
        return self.trials[-1].taken

    def _resolved(self, craft: str, train: str, compiled: bool) -> Recipe:
        recipe = self.recipe
        changed: dict[str, Any] = {"train": recipe.train.model_copy(update={"precision": train, "compile": compiled})}
        if recipe.craft is not None and recipe.craft.batch_norm == "eval":
            changed["craft"] = recipe.craft.model_copy(update={"precision": craft})
        return recipe.model_copy(update=changed)


def _kind(precision: str) -> Any:
    return "bf16" if precision == "bf16" else "folded"


def _read(way: Callable[[], list[Tensor]]) -> float:
    """A number of what it gives, so that the device is done."""
    return float(way()[-1].sum())


def _least_cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of each tensor of one to its twin."""
    pairs = zip(a, b, strict=True)
    return min(float(F.cosine_similarity(x.double().flatten(), y.double().flatten(), dim=0)) for x, y in pairs)
