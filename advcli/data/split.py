"""Stratified parts of a data set, fixed by a seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from advcli import draws


def stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """A permutation (N,) int64 of the examples of which every prefix has the classes in their proportion.

    labels (N,) int64. Each place goes to the class that is furthest behind its share, and within a class the order is
    drawn. The order is a function of labels, seed and purpose alone, so growing a part keeps what was in it.
    """
    u = draws.uniform((seed, purpose), torch.arange(len(labels)), 0, (1,))[:, 0]
    drawn = torch.argsort(u, stable=True).numpy()
    classes, own = np.unique(labels.cpu().numpy()[drawn], return_inverse=True)
    queues = [iter(drawn[own == c]) for c in range(len(classes))]
    counts = np.bincount(own, minlength=len(classes))
    share, taken = counts / max(1, len(labels)), np.zeros(len(classes))
    order = np.empty(len(labels), np.int64)
    for place in range(len(labels)):
        behind = np.where(taken < counts, (place + 1) * share - taken, -np.inf)
        chosen = int(behind.argmax())
        taken[chosen] += 1
        order[place] = next(queues[chosen])
    return torch.from_numpy(order)


def stratified_part(labels: Tensor, size: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """(part, rest): positions of a stratified part of that size and of the others, each in ascending order."""
    order = stratified_order(labels, seed, purpose)
    return order[:size].sort().values, order[size:].sort().values
