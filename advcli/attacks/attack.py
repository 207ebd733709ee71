"""What every attack takes and gives back."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from advcli.attacks.judge import Judge
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.draws import Draws


class Found(NamedTuple):
    """x_adv (N, C, H, W): each example's best point, in ball and box. margins (N,): the judge's at x_adv.

    broken (N,) bool: the judge's verdict. steps (N,) int64: iterations of the restart that found it, -1 where none did.
    """

    x_adv: Tensor
    margins: Tensor
    broken: Tensor
    steps: Tensor


class Attack(Protocol):
    def __call__(self, surrogate: Surrogate, judge: Judge, x: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Found:
        """x (N, C, H, W) in the box, y (N,) int64."""
        ...
