"""The only one that is believed: the deployed model, float32, eval mode, at one recorded chunk size."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from advcli.attacks.expectation import seeded
from advcli.attacks.losses import margin
from advcli.attacks.surrogate import Cost

_NOISE = 0x5EED  # the judge's own streams of noise


class Judge:
    """Says whether the deployed model gets an image wrong.

    An image counts as classified only where the margin of its label exceeds `bound`, what float32 rounding can move it
    by; a nearer one is scored as broken and reported as borderline. Work runs in chunks padded to `chunk` images, so that
    a verdict does not depend on which images are judged together.

    draws: over 1 for a random model, which is asked so often, each time with fresh noise that no attack has seen: an image's
    margin is the median of its margins, so it is broken where at least half of the answers are wrong.
    """

    def __init__(self, model: nn.Module, *, chunk: int, bound: float = 0.0, cost: Cost | None = None, draws: int = 1) -> None:
        self.model = model.eval()
        self.chunk = chunk
        self.bound = bound
        self.cost = cost if cost is not None else Cost()
        self.draws = draws

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """(N, K) of the deployed model, N over 0; the first answer of a random one."""
        parts = []
        for i in range(0, len(x), self.chunk):
            images, size = pad(x[i : i + self.chunk], self.chunk)
            self.cost.forwards += size
            parts.append(self.model(images)[:size].float())
        return torch.cat(parts)

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) best other logit minus the label's; NaN logits give +inf, so that a broken model never counts as right."""
        return self.answer(x, y)[1] if len(x) else x.new_zeros(0)

    def answer(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(logits (N, K), margins (N,)); of a random model their mean and their median over the draws."""
        if self.draws == 1:
            logits = self.logits(x)
            return logits, self.margins_of(logits, y)
        answers = []
        for draw in range(self.draws):
            with seeded(_NOISE + draw, x.device):
                answers.append(self.logits(x))
        margins = torch.stack([self.margins_of(logits, y) for logits in answers])
        return torch.stack(answers).mean(0), margins.sort(0).values[self.draws // 2]

    @staticmethod
    def margins_of(logits: Tensor, y: Tensor) -> Tensor:
        """The same from logits (N, K) that were asked for before."""
        return margin(logits, y).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def broken(self, margins: Tensor) -> Tensor:
        """(N,) bool verdicts that margins amount to."""
        return margins >= -self.bound

    def borderline(self, margins: Tensor) -> Tensor:
        """(N,) bool: broken only, or not surely, because of rounding."""
        return margins.abs() <= self.bound

    def decide(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) bool: True where the deployed model does not surely classify x as y."""
        return self.broken(self.margins(x, y))


def pad(x: Tensor, size: int) -> tuple[Tensor, int]:
    """x (N, ...) filled up to size rows by repeating its first, and N."""
    n = len(x)
    return (x, n) if n == size else (torch.cat([x, x[:1].expand(size - n, *x.shape[1:])]), n)


@torch.no_grad()
def measure_bound(model: nn.Module, x: Tensor) -> float:
    """How far float32 rounding moves a margin of this model: twice the largest error, against float64, of any logit difference.

    x (N, C, H, W) is a sample; the factor two stands for the images that were not looked at.
    """
    single = model.eval()(x).double()
    double = copy.deepcopy(model).double()(x.double())
    error = single - double
    spread = error.amax(1) - error.amin(1)
    return float(2 * spread.max())
