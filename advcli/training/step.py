"""One optimiser step: craft, score, step, then the objective's own state."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives import Objective
from advcli.training.device import autocast


def training_step(
    model: Network, objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch, moment: Moment, precision: str
) -> dict[str, Tensor]:
    """Moves weights and state once; returns the total (`loss`) and its parts as detached scalars on the device, without a host sync."""
    device = batch.images.device
    with autocast(precision, device):
        crafted = objective.craft(model, batch, moment)
        with objective.perturbed(model, batch, crafted, moment):
            parts = objective.loss(model, batch, crafted, moment)
            optimizer.zero_grad(set_to_none=True)
            parts.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        objective.after_step(model, batch, parts, moment)
    return {"loss": parts.total.detach(), **parts.parts}
