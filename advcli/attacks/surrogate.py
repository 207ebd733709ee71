"""What an attack follows the gradient of, with exact counts of what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advcli.models import IncrementalForward, ModelOutput

Condition = Mapping[str, Tensor]
"""Per-example tensors (N, ...) that a surrogate or a loss reads: `target` (N,) a class, `reference` (N, H, K) clean logits of each head."""

Loss = Callable[[ModelOutput, Tensor, Condition], Tensor]
"""(output, y (N,), condition) -> (N,): what an attack raises."""


@dataclass
class Cost:
    """Images passed forward and backward."""

    forwards: int = 0
    backwards: int = 0


class Surrogate:
    """Images (N, C, H, W) and a condition to a ModelOutput; counts the images it sees in `cost`.

    error: how far its margins may be from the judge's where it computes otherwise; a search asks the judge that much earlier.
    repeatable: it answers the same when asked again beside others; what is not may not be asked ahead of its time.
    incremental: what answers for images with a small window changed, if anything does, with less work.
    """

    def __init__(
        self,
        trace: Callable[[Tensor], ModelOutput],
        cost: Cost | None = None,
        *,
        error: float = 0.0,
        repeatable: bool = True,
        incremental: IncrementalForward | None = None,
    ) -> None:
        self._trace = trace
        self.cost = cost if cost is not None else Cost()
        self.error = error
        self.repeatable = repeatable
        self.incremental = incremental

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        self.cost.forwards += len(x)
        return self._trace(x)

    def near(self, images: Tensor, owner: Tensor, looks: Tensor, top: Tensor, left: Tensor) -> ModelOutput:
        """The output at looks (N, C, H, W), each of images (N, C, H, W) the one at owner (N,), but for a window at top, left (N,)."""
        if self.incremental is None:
            raise ValueError("this surrogate is not incremental")
        self.cost.forwards += len(looks)
        self.incremental.remember(images, torch.zeros(len(images), dtype=torch.bool, device=images.device).index_fill(0, owner, True))
        return self.incremental.trace(looks, owner, top, left)

    def gradient(self, loss: Loss, x: Tensor, y: Tensor, condition: Condition) -> tuple[Tensor, Tensor, ModelOutput]:
        """d loss / d x (N, C, H, W), each example's own; losses (N,) and output at x. No parameter gets a gradient."""
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
