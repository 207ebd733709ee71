"""What the adversary may do, and the geometry that follows: projection, random starts and steepest steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advcli.draws import Draws

_TINY = 1e-12


@dataclass(frozen=True)
class Threat:
    """A ball of radius eps in norm around each image, inside the box `bounds` in which images live."""

    norm: Literal["linf", "l2"]
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around x (N, C, H, W), then of the box, that x_adv maps to. x must lie in the box."""
        delta = x_adv - x
        # Clamping to the box moves each coordinate towards x, so it cannot leave the ball again.
        delta = delta.clamp(-self.eps, self.eps) if self.norm == "linf" else delta * (self.eps / l2(delta).clamp_min(self.eps))
        return (x + delta).clamp(*self.bounds)

    def random_start(self, x: Tensor, draws: Draws) -> Tensor:
        """Uniform in the ball around x (N, C, H, W), clamped to the box; a function of each example's own draws."""
        shape = x.shape[1:]
        if self.norm == "linf":
            return (x + self.eps * (2 * draws.uniform(shape) - 1)).clamp(*self.bounds)
        direction = draws.normal(shape)
        radius = draws.sub("radius").uniform((1, 1, 1)) ** (1 / shape.numel())
        return (x + self.eps * radius * direction / l2(direction).clamp_min(_TINY)).clamp(*self.bounds)

    def surface_start(self, x: Tensor, draws: Draws) -> Tensor:
        """A random point whose distance from x is eps, before the clamp to the box: where AutoAttack's APGD starts."""
        noise = 2 * draws.uniform(x.shape[1:]) - 1 if self.norm == "linf" else draws.normal(x.shape[1:])
        length = noise.abs().amax((1, 2, 3), keepdim=True) if self.norm == "linf" else l2(noise)
        return (x + self.eps * noise / length.clamp_min(_TINY)).clamp(*self.bounds)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """A step of that size, a number or (N, 1, 1, 1), along the norm's steepest ascent: sign (linf), normalised gradient (l2)."""
        direction = gradient.sign() if self.norm == "linf" else gradient / l2(gradient).clamp_min(_TINY)
        return x_adv + size * direction

    def frank_wolfe_gap(self, x_adv: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """(N,) by how much what has that gradient at x_adv would still rise inside the ball if it were linear (Jaggi, ICML 2013).

        max over z of gradient . (z - x_adv), z in the ball and the box; for l2 in the ball alone, so that it is an upper bound.
        """
        if self.norm == "l2":
            w = gradient.flatten(1)
            return self.eps * l2(gradient).flatten() - (w * (x_adv - x).flatten(1)).sum(1)
        low, high = ((x + end).clamp(*self.bounds) - x_adv for end in (-self.eps, self.eps))
        return torch.maximum(gradient * low, gradient * high).flatten(1).sum(1)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(N,) norms of x_adv - x."""
        delta = x_adv - x
        return delta.abs().flatten(1).amax(1) if self.norm == "linf" else l2(delta).flatten()


def l2(delta: Tensor) -> Tensor:
    """(N, 1, 1, 1) Euclidean norms of delta (N, C, H, W)."""
    norms: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return norms
