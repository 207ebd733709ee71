"""Projected gradient ascent (Madry et al. 2018), with momentum where wanted; fgsm, mim and cw are settings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advcli.attacks.pool import PooledAttack
from advcli.attacks.state import State, fresh, given, note_hits
from advcli.attacks.surrogate import Condition, Loss, Surrogate
from advcli.attacks.threat import Threat
from advcli.draws import Draws

Start = Literal["uniform", "normal", "none"]


def starting_point(threat: Threat, start: Start, x: Tensor, draws: Draws) -> Tensor:
    """`uniform` in the ball, `normal`: x + 0.001 * N(0, 1) as TRADES and MART start, or `none`: x itself."""
    if start == "uniform":
        return threat.random_start(x, draws)
    return x.clone() if start == "none" else threat.project(x + 0.001 * draws.normal(x.shape[1:]), x)


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
        gradient, _, _ = surrogate.gradient(loss, x_adv, y, condition)
        x_adv = threat.project(threat.step(x_adv, gradient, step_size), x)
    return x_adv


@dataclass(frozen=True)
class Pgd(PooledAttack):
    """Leaves at the first iterate that fools; the iterate after the last step is the judge's alone, so no backward is wasted.

    So the step at which an example broke also tells what fewer steps would have found: the accuracy under PGD-k is the
    share of examples with no success up to step k. momentum: of the L1-normalised gradient (Dong et al. 2018), 0: none.
    early False: all steps whether or not the surrogate is fooled, for a surrogate that is not the network under attack.
    """

    threat: Threat
    loss: Loss
    steps: int
    step_size: float
    start: Start = "uniform"
    restarts: int = 1
    momentum: float = 0.0
    early: bool = True

    @property
    def runs(self) -> int:
        return self.restarts

    @property
    def passes(self) -> int:
        return self.restarts * (2 * self.steps + 1)

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        state = fresh(x, y, starting_point(self.threat, self.start, x, draws))
        return {**state, "velocity": torch.zeros_like(x)} if self.momentum else state

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        gradient, _, output = surrogate.gradient(self.loss, state["x_adv"], state["y"], given(state))
        state["forwards"] += 1
        state["backwards"] += 1
        note_hits(state, output.logits, threshold if self.early else torch.inf)
        if self.momentum:
            mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            gradient = self.momentum * state["velocity"] + gradient / mean
            state["velocity"] = torch.where(state["hit"][:, None, None, None], state["velocity"], gradient)
        moved = self.threat.project(self.threat.step(state["x_adv"], gradient, self.step_size), state["x"])
        state["x_adv"] = torch.where(state["hit"][:, None, None, None], state["x_adv"], moved)
        state["step"] = state["step"] + (~state["hit"]).long()
        state["over"] = ~state["hit"] & (state["step"] >= self.steps)
