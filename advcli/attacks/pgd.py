"""Projected gradient ascent (Madry et al. 2018), with momentum where wanted; fgsm, mim and cw are settings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advcli.attacks.attack import Found
from advcli.attacks.judge import Judge
from advcli.attacks.losses import margin
from advcli.attacks.surrogate import Condition, Loss, Surrogate
from advcli.attacks.threat import Threat
from advcli.draws import Draws

Start = Literal["uniform", "normal", "none"]


def starting_point(threat: Threat, start: Start, x: Tensor, draws: Draws) -> Tensor:
    """`uniform` in the ball, `normal`: x + 0.001 * N(0, 1) as TRADES and MART start, or `none`: x itself."""
    if start == "uniform":
        return threat.random_start(x, draws)
    return x if start == "none" else threat.project(x + 0.001 * draws.normal(x.shape[1:]), x)


def ascend(
    surrogate: Surrogate,
    loss: Loss,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    condition: Condition,
    *,
    steps: int,
    step_size: float,
    start: Start,
) -> Tensor:
    """The last iterate (N, C, H, W): what training crafts. `steps` forwards and backwards, nothing else."""
    x_adv = starting_point(threat, start, x, draws)
    for _ in range(steps):
        gradient, _ = surrogate.gradient(loss, x_adv, y, condition)
        x_adv = threat.project(threat.step(x_adv, gradient, step_size), x)
    return x_adv


@dataclass(frozen=True)
class Pgd:
    """Keeps each example's best iterate by the surrogate's margin and stops it at its first success; judged once at the end.

    So the point at which an example broke also tells what fewer steps would have found: the accuracy under PGD-k is the
    share of examples with no success up to step k. momentum: of the L1-normalised gradient (Dong et al. 2018), 0: none.
    """

    threat: Threat
    loss: Loss
    steps: int
    step_size: float
    start: Start = "uniform"
    restarts: int = 1
    momentum: float = 0.0

    def __call__(self, surrogate: Surrogate, judge: Judge, x: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Found:
        best, best_margin = x, torch.full((len(x),), -torch.inf, device=x.device)
        steps = best_step = torch.full((len(x),), -1, device=x.device)
        for restart in range(self.restarts):
            best, best_margin, best_step, steps = self._climb(
                surrogate, -judge.bound, x, y, draws.at(restart), condition, best, best_margin, best_step, steps
            )
            if bool((steps >= 0).all()):
                break
        margins = judge.margins(best, y)
        broken = judge.broken(margins)
        return Found(best, margins, broken, torch.where(broken, best_step, -1))

    def _climb(
        self,
        surrogate: Surrogate,
        threshold: float,
        x: Tensor,
        y: Tensor,
        draws: Draws,
        condition: Condition,
        best: Tensor,
        best_margin: Tensor,
        best_step: Tensor,
        steps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One restart: the best points, their margins and first successes after it. An example past the threshold stays where it is."""
        x_adv, velocity = starting_point(self.threat, self.start, x, draws), torch.zeros_like(x)
        for step in range(self.steps + 1):
            last = step == self.steps
            if last:
                with torch.no_grad():
                    output = surrogate(x_adv, condition)
            else:
                gradient, output = surrogate.gradient(self.loss, x_adv, y, condition)
            now = margin(output.logits.float(), y)
            better = (now > best_margin) & (steps < 0)
            best = torch.where(better[:, None, None, None], x_adv, best)
            best_margin = torch.where(better, now, best_margin)
            best_step = torch.where(better, step, best_step)
            steps = torch.where(better & (now >= threshold), step, steps)
            if last or bool((steps >= 0).all()):
                break
            if self.momentum:
                velocity = self.momentum * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            direction = velocity if self.momentum else gradient
            x_adv = self.threat.project(self.threat.step(x_adv, direction, self.step_size), x)
        return best, best_margin, best_step, steps
