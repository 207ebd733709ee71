"""Who is paired with whom in a batch: drawn by key, over the whole batch, without a loop."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.draws import Draws
from advcli.gates.whole import whole


def permutation(draws: Draws) -> Tensor:
    """(M,) a uniform permutation of the M examples of the whole batch: the order of one draw each."""
    return whole(draws.uniform(()).view(-1)).argsort(stable=True)


def others(labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """(partner, exists), each (M,): for every example of the whole batch, labels (M,), one of another class.

    First a class is drawn uniformly among the other classes that occur, then one of its examples uniformly (as ANCRA's code
    does). exists is False, and the partner the example itself, where the batch has but one class.
    """
    first, second = (whole(draws.sub(name).uniform(()).view(-1)) for name in ("class", "example"))
    classes, of = torch.unique(labels, return_inverse=True)
    count = torch.bincount(of, minlength=len(classes))
    order = of.argsort(stable=True)  # examples by class
    start = count.cumsum(0) - count
    if len(classes) == 1:
        return torch.arange(len(labels), device=labels.device), torch.zeros_like(labels, dtype=torch.bool)
    step = 1 + (first * (len(classes) - 1)).long().clamp_max(len(classes) - 2)
    chosen = (of + step) % len(classes)
    place = (second * count[chosen]).long().minimum(count[chosen] - 1)
    return order[start[chosen] + place], torch.ones_like(labels, dtype=torch.bool)
