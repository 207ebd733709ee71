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
    order = labels.argsort(stable=True)  # examples by class
    ranked = labels[order]
    begins = torch.cat([torch.ones_like(ranked[:1]), (ranked[1:] != ranked[:-1]).long()])
    number = begins.cumsum(0) - 1  # the class of each place in that order, counted among those that occur: no unique, which syncs
    of = torch.empty_like(labels).scatter_(0, order, number)
    classes = begins.sum()
    count = torch.zeros_like(labels).index_add_(0, of, torch.ones_like(labels))
    start = count.cumsum(0) - count
    step = 1 + (first * (classes - 1)).long().minimum((classes - 2).clamp_min(0))
    chosen = (of + step) % classes
    place = (second * count[chosen]).long().minimum(count[chosen] - 1)
    several = classes > 1
    alone = torch.arange(len(labels), device=labels.device)
    return torch.where(several, order[start[chosen] + place], alone), several.expand(len(labels))
