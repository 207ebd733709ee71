"""Auto-PGD (Croce, Hein, ICML 2020, algorithm 1) on the cross-entropy, the DLR loss and its targeted form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import PooledAttack, State, Task, fresh, given, note_hits, other_classes
from advcli.attacks.surrogate import Condition, Loss, Surrogate
from advcli.attacks.targets import by_distance
from advcli.attacks.threat import Threat
from advcli.draws import Draws

_RHO = 0.75  # share of steps that must raise the loss for the step size to stay
_MOMENTUM = 0.75


@dataclass(frozen=True)
class Apgd(PooledAttack):
    """Momentum ascent whose step starts at 2 eps and is halved, with a return to the best point, where it stops paying.

    loss: `ce` or `dlr`; `dlr-targeted` or, below four classes, where that is not defined, `targeted` (the margin), which make
    one run a target: the likeliest other classes first, `targets` of them. `conjunction` is for gates forced to the target.
    aux_weight: of the mean loss of auxiliary heads.
    ranked: the nearest targets first, as estimated at the image.
    """

    needs_logits: ClassVar[bool] = True

    threat: Threat
    loss: Literal["ce", "dlr", "dlr-targeted", "targeted", "conjunction"] = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    aux_weight: float = 0.0
    ranked: bool = False

    @property
    def runs(self) -> int:
        return self.targets if self.is_targeted else self.restarts

    @property
    def is_targeted(self) -> bool:
        return self.loss in ("dlr-targeted", "targeted", "conjunction")

    @property
    def _loss(self) -> Loss:
        return attack_loss(self.loss, self.aux_weight)

    @property
    def passes(self) -> int:
        return self.runs * (2 * self.steps + 1)

    def order(self, surrogate: Surrogate, task: Task, chunk: int) -> Tensor | None:
        return by_distance(surrogate, self.threat, task, chunk) if self.ranked else None

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        state = fresh(x, y, self.threat.surface_start(x, draws))
        nothing, images = x.new_zeros(len(x)), torch.zeros_like(x)
        state |= {"before": state["x_adv"].clone(), "best": state["x_adv"].clone(), "best_gradient": images}
        state |= {"best_loss": nothing - torch.inf, "checked_loss": nothing - torch.inf, "last_loss": nothing.clone()}
        state |= {"size": nothing + 2 * self.threat.eps, "since": torch.zeros_like(y), "rises": torch.zeros_like(y)}
        state |= {"gap": torch.full_like(y, max(int(0.22 * self.steps), 1)), "reduced": torch.ones_like(y, dtype=torch.bool)}
        if self.is_targeted:
            state["target"] = other_classes(condition, y).gather(1, run[:, None])[:, 0]
        return state

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        condition = {**given(state), "target": state["target"]} if "target" in state else given(state)
        gradient, losses, output = surrogate.gradient(self._loss, state["x_adv"], state["y"], condition)
        state["forwards"] += 1
        state["backwards"] += 1
        note_hits(state, output.logits, threshold)
        gradient = self._account(state, gradient, losses)
        moved = self._step(state, gradient)
        stay = state["hit"][:, None, None, None]
        state["before"] = torch.where(stay, state["before"], state["x_adv"])
        state["x_adv"] = torch.where(stay, state["x_adv"], moved)
        state["step"] = state["step"] + (~state["hit"]).long()
        state["over"] = ~state["hit"] & (state["step"] >= self.steps)

    def _account(self, s: State, gradient: Tensor, losses: Tensor) -> Tensor:
        """Best point, rises and checkpoints; where the step is halved, x_adv and the returned gradient are those of the best point."""
        new = ~s["hit"]  # a point that fools counts when the judge has refused it and it is looked at again
        moved = new & (s["step"] > 0)
        better = losses > s["best_loss"]
        s["best"] = _rows(better, s["x_adv"], s["best"])
        s["best_gradient"] = _rows(better, gradient, s["best_gradient"])
        s["best_loss"] = torch.where(better, losses, s["best_loss"])
        s["checked_loss"] = torch.where(s["step"] > 0, s["checked_loss"], s["best_loss"])  # the start is the first thing to improve on
        s["rises"] = s["rises"] + (moved & (losses > s["last_loss"])).long()
        s["last_loss"] = torch.where(new, losses, s["last_loss"])
        s["since"] = s["since"] + moved.long()
        check = new & (s["since"] == s["gap"])
        stalled = ~s["reduced"] & (s["checked_loss"] >= s["best_loss"])
        halve = check & ((s["rises"] <= _RHO * s["gap"]) | stalled)
        s["size"] = torch.where(halve, s["size"] / 2, s["size"])
        s["x_adv"] = _rows(halve, s["best"], s["x_adv"])
        s["reduced"] = torch.where(check, halve, s["reduced"])
        s["checked_loss"] = torch.where(check, s["best_loss"], s["checked_loss"])
        s["gap"] = torch.where(check, (s["gap"] - max(int(0.03 * self.steps), 1)).clamp_min(max(int(0.06 * self.steps), 1)), s["gap"])
        s["since"], s["rises"] = torch.where(check, 0, s["since"]), torch.where(check, 0, s["rises"])
        return _rows(halve, s["best_gradient"], gradient)

    def _step(self, s: State, gradient: Tensor) -> Tensor:
        """A projected step, then momentum towards it; the first step has no past to keep."""
        x, x_adv = s["x"], s["x_adv"]
        target = self.threat.project(self.threat.step(x_adv, gradient, s["size"][:, None, None, None]), x)
        weight = torch.where(s["step"] > 0, _MOMENTUM, 1.0)[:, None, None, None]
        return self.threat.project(x_adv + weight * (target - x_adv) + (1 - weight) * (x_adv - s["before"]), x)


def _rows(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where mask (N,), else b, for images (N, C, H, W)."""
    return torch.where(mask[:, None, None, None], a, b)
