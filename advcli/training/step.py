"""One optimiser step: craft, score, step, then the objective's own state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advcli.data import Batch, Moment
from advcli.gates.whole import average_, processes
from advcli.models import FastCopy, Network
from advcli.models.modes import moving_statistics
from advcli.objectives import Crafted, Objective
from advcli.recipe.schema import crafting_precision
from advcli.training.compilation import compile_blocks
from advcli.training.device import computing
from advcli.training.setup import Assembly


class Step:
    """Moves weights and state once a call; nothing in it waits for the device.

    Crafting runs on a frozen copy of the network in eval mode, batch norm folded into the convolutions, that is given the
    weights at the start of each step; on the network itself where the objective crafts in train mode. precision: what scoring
    computes in (fp32, tf32, bf16); craft: the copy, whose images, stem and logits are float32 even in bf16. What crafting notes of
    clean images, such as the features that move prototypes, is the copy's too. compiled: blocks through torch.compile.
    """

    def __init__(
        self,
        model: Network,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "fp32",
        craft: str = "fp32",
        compiled: bool = False,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.precision, self.craft_precision = precision, craft
        self.copy = FastCopy(model, "bf16" if craft == "bf16" else "folded") if objective.crafts_on_a_copy else None
        for network in self.networks if compiled else ():
            compile_blocks(network)

    @property
    def networks(self) -> list[Network]:
        """Every network that a step runs, but for the objective's own."""
        return [self.model, *([self.copy.network] if self.copy else [])]

    def __call__(self, batch: Batch, moment: Moment, carried: Callable[[], Sequence[Tensor]] = tuple) -> dict[str, Tensor]:
        """The total (`loss`) and its parts as detached scalars on the device.

        Where several processes each hold a part of the batch, everything is the mean over them, and all stay equal. carried:
        more tensors, asked for just before the message and put in place.
        """
        model, objective, device = self.model, self.objective, batch.images.device
        crafted = self._craft(batch, moment)
        with computing(self.precision, device):
            with objective.perturbed(model, batch, crafted, moment):
                parts = objective.loss(model, batch, crafted, moment)
                self.optimizer.zero_grad(set_to_none=True)
                parts.total.backward()  # type: ignore[no-untyped-call]
                scalars = averaged(model, objective, self.optimizer, {"loss": parts.total.detach(), **parts.parts}, carried)
                self.optimizer.step()
            objective.after_step(model, batch, parts, moment)
        return scalars

    def _craft(self, batch: Batch, moment: Moment) -> Crafted:
        device = batch.images.device
        if self.copy is None:
            with computing(self.precision, device):
                return self.objective.craft(self.model, batch, moment)
        self.copy.refresh()
        with computing(self.craft_precision, device, autocast=False):
            return self.objective.craft(self.copy.network, batch, moment)


def step_of(parts: Assembly) -> Step:
    """The step of a training whose recipe is settled."""
    train = parts.recipe.train
    numerics = {"precision": train.precision, "craft": crafting_precision(parts.recipe)}
    return Step(parts.model, parts.objective, parts.optimizer, **numerics, compiled=train.compile is True)


@torch.no_grad()
def averaged(
    model: Network,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    scalars: dict[str, Tensor],
    carried: Callable[[], Sequence[Tensor]],
) -> dict[str, Tensor]:
    """Put means over processes in place of gradients, of what batch norm learns and of carried; return those of the scalars.

    One message for all of it. Which gradients there are depends on the step alone, so all processes have the same ones.
    """
    if processes() == 1:
        return scalars
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = torch.stack([value.to(scalars["loss"].dtype) for value in scalars.values()])
    average_([*gradients, *moving_statistics(model), *moving_statistics(objective), values, *carried()])
    return {name: mean.to(scalars[name].dtype) for name, mean in zip(scalars, values, strict=True)}
