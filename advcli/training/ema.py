"""A moving average of the weights."""

from __future__ import annotations

import copy

import torch

from advcli.models import Network


def averaged_copy(model: Network) -> Network:
    """A frozen twin to average into."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update(average: Network, model: Network, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model for weights; batch-norm statistics, themselves averages, are copied."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)
