"""Hybrid feature fusion: the statistics of a map mixed with those of another image's (AGAIN, eq. 5 and 6). Training only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advcli.draws import Draws
from advcli.gates.pairing import permutation
from advcli.gates.selection import precise
from advcli.gates.whole import own, whole

Fusion = Callable[[Tensor], Tensor]
"""(N, C, H, W) to the same shape."""


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (N, C, 1, 1) of each channel of each example; sqrt(unbiased variance + 1e-5), as the code has it.

    A map of one pixel has no unbiased variance and takes 0.
    """
    one = features.shape[2] * features.shape[3] == 1
    variance = torch.zeros_like(features) if one else features.var((2, 3), keepdim=True)
    return features.mean((2, 3), keepdim=True), (variance + 1e-5).sqrt()


def mix(features: Tensor, mean: Tensor, deviation: Tensor, share: Tensor) -> Tensor:
    """features with statistics share * own + (1 - share) * (mean, deviation), the other image's (N, C, 1, 1); share () in [0, 1]."""
    own_mean, own_deviation = statistics(features)
    new_mean = share * own_mean + (1 - share) * mean
    new_deviation = share * own_deviation + (1 - share) * deviation
    return new_deviation * (features - own_mean) / own_deviation + new_mean


def hybrid_statistics(draws: Draws) -> Fusion:
    """The fusion of one forward: one share for the batch, partners by a permutation of it.

    The paper mixes four statistics by the spacings of three uniforms, those of A, of its partner A', and of AdaIN(A, A') and
    AdaIN(A', A); but AdaIN gives a map the other's statistics, so the four are two and the share of A's own is the sum of two
    spacings of three, Beta(2, 2): the middle of three uniforms. Gradients flow through the statistics, as in the authors' code.
    """

    def fuse(features: Tensor) -> Tensor:
        partner = permutation(draws.sub("partner"))
        three = Draws(draws.seed, draws.index.new_zeros(1), f"{draws.purpose}/share", _scalar(draws)).uniform((3,))
        mean, deviation = (own(whole(s)[partner]) for s in statistics(precise(features)))
        mixed = mix(precise(features), mean, deviation, three.median())
        return mixed.to(features.dtype)

    return fuse


def _scalar(draws: Draws) -> int:
    """The counter of a draw for the whole batch, which has one step for all its examples."""
    if not isinstance(draws.counter, int):
        raise ValueError("a fusion is drawn once a step: its counter is one number")
    return draws.counter
