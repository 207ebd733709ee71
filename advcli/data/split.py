"""Stratified parts of a data set, fixed by a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli import draws


def stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """A permutation (N,) int64 of the examples of which every prefix has, to within one image a class, the classes in their proportion.

    labels (N,) int64. The order is a function of labels, seed and purpose alone, so growing a part keeps what was in it.
    """
    u = draws.uniform((seed, purpose), torch.arange(len(labels)), 0, (1,))[:, 0].double()
    order = torch.argsort(u, stable=True)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        # The k-th of n members comes at (k + 1/2) / n, as far along as its class is.
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return torch.argsort(place + u * 1e-9, stable=True)


def stratified_part(labels: Tensor, size: int, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """(part, rest): positions of a stratified part of that size and of the others, each in ascending order."""
    order = stratified_order(labels, seed, purpose)
    return order[:size].sort().values, order[size:].sort().values
