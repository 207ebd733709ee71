"""What an attack follows the gradient of, with exact counts of what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advcli.models import ModelOutput

Condition = Mapping[str, Tensor]
"""Per-example tensors (N, ...) that a surrogate or a loss reads: `target` (N,) a class, `reference` (N, H, K) clean logits of each head."""

Loss = Callable[[ModelOutput, Tensor, Condition], Tensor]
"""(output, y (N,), condition) -> (N,): what an attack raises."""


@dataclass
class Cost:
    """Images passed forward and backward, and passes that were spared, being foreseen to come to nothing."""

    forwards: int = 0
    backwards: int = 0
    spared: int = 0

    @property
    def units(self) -> int:
        """Of work: what progress is counted in."""
        return self.forwards + self.backwards + self.spared


class Surrogate:
    """Images (N, C, H, W) and a condition to a ModelOutput; counts the images it sees in `cost`.

    error: how far its margins may be from the judge's where it computes otherwise; a search asks the judge that much earlier.
    repeatable: it answers the same when asked again beside others; what is not may not be asked ahead of its time.
    follow: what is asked for gradients, where trace has none.
    """

    def __init__(
        self,
        trace: Callable[[Tensor], ModelOutput],
        cost: Cost | None = None,
        *,
        error: float = 0.0,
        repeatable: bool = True,
        follow: Surrogate | None = None,
    ) -> None:
        self._trace = trace
        self.cost = cost if cost is not None else Cost()
        self.error = error
        self.repeatable = repeatable
        self._follow = follow

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        self.cost.forwards += len(x)
        return self._trace(x)

    def gradient(self, loss: Loss, x: Tensor, y: Tensor, condition: Condition) -> tuple[Tensor, Tensor, ModelOutput]:
        """d loss / d x (N, C, H, W), each example's own; losses (N,) and output at x. No parameter gets a gradient."""
        if self._follow is not None:
            return self._follow.gradient(loss, x, y, condition)
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            output = self(x, condition)
            losses = loss(output, y, condition)
        self.cost.backwards += len(x)
        return gradient_of(losses, x), losses.detach(), output.detach()


def gradient_of(losses: Tensor, x: Tensor) -> Tensor:
    """d sum(losses) / d x, zero where the network cuts it or it is no number: a point that is none would have to be called broken."""
    if not losses.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(losses.sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0)
