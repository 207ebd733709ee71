"""One optimiser step: craft, score, step, then the objective's own state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advcli.data import Batch, Moment
from advcli.gates.whole import average_, processes
from advcli.models import Network
from advcli.models.modes import moving_statistics
from advcli.objectives import Objective
from advcli.training.device import autocast


def training_step(
    model: Network,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    moment: Moment,
    precision: str,
    carried: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """Moves weights and state once; returns the total (`loss`) and its parts as detached scalars on the device, without a host sync.

    Where several processes each hold a part of the batch, everything is the mean over them, `carried` in place, and all stay equal.
    """
    device = batch.images.device
    with autocast(precision, device):
        crafted = objective.craft(model, batch, moment)
        with objective.perturbed(model, batch, crafted, moment):
            parts = objective.loss(model, batch, crafted, moment)
            optimizer.zero_grad(set_to_none=True)
            parts.total.backward()  # type: ignore[no-untyped-call]
            scalars = averaged(model, objective, optimizer, {"loss": parts.total.detach(), **parts.parts}, carried)
            optimizer.step()
        objective.after_step(model, batch, parts, moment)
    return scalars


@torch.no_grad()
def averaged(
    model: Network, objective: Objective, optimizer: torch.optim.Optimizer, scalars: dict[str, Tensor], carried: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Put means over processes in place of gradients, of what batch norm learns and of carried; return those of the scalars.

    One message for all of it. Which gradients there are depends on the step alone, so all processes have the same ones.
    """
    if processes() == 1:
        return scalars
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    values = torch.stack([value.to(scalars["loss"].dtype) for value in scalars.values()])
    average_([*gradients, *moving_statistics(model), *moving_statistics(objective), values, *carried])
    return dict(zip(scalars, values.unbind(), strict=True))
