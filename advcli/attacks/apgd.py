"""Auto-PGD (Croce, Hein, ICML 2020, algorithm 1) on the cross-entropy, the DLR loss and its targeted form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.losses import attack_loss, margin
from advcli.attacks.pool import PooledAttack, Task
from advcli.attacks.sparing import book_mistakes, give_up, too_slow, unpaced
from advcli.attacks.state import State, fresh, given, note_hits
from advcli.attacks.surrogate import Condition, Loss, Surrogate
from advcli.attacks.targets import by_distance, other_classes
from advcli.attacks.threat import Threat
from advcli.draws import Draws

_RHO = 0.75  # share of steps that must raise the loss for the step size to stay
_MOMENTUM = 0.75
_STRETCH = 10  # steps after which it is asked whether a run can still come to something
_SETTLED = 0.3  # share of the steps, and at least two stretches, before that is asked
_GAPS = 8.0  # Frank-Wolfe gaps within which a run may still arrive
_WALKED = 0.6  # share of many steps that is walked, about: 0.5 of photographs, 0.4 to 0.9 of digits


@dataclass(frozen=True)
class Apgd(PooledAttack):
    """Momentum ascent whose step starts at 2 eps and is halved, with a return to the best point, where it stops paying.

    loss: `ce` or `dlr`; `dlr-targeted` or, below four classes, where that is not defined, `targeted` (the margin), which make
    one run a target: the likeliest other classes first, `targets` of them. `conjunction` is for gates forced to the target.
    aux_weight: of the mean loss of auxiliary heads.
    ranked: the nearest targets first, as estimated at the image.
    spares: a run of which nothing is to be hoped is given up, but for a sample. That is one which after three tenths of its steps, and
    21 at least, is short of its boundary by over eight times what its gradient promises inside the ball if it stayed what it is (the
    Frank-Wolfe gap), by over three times what the steps left would bring at the pace of the last ten, no quicker than that of the ten
    before, and by more than the margin has ranged over.
    stages: numbers that a surrogate or a loss reads from the condition, (N,) each, in as many parts of a run as there are. A part
    starts from the best point of the one before: annealing, or one objective that goes on where another ended.
    """

    needs_logits: ClassVar[bool] = True

    threat: Threat
    loss: Literal["ce", "dlr", "margin", "dlr-targeted", "targeted", "conjunction"] = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    aux_weight: float = 0.0
    ranked: bool = False
    stages: tuple[Mapping[str, float], ...] = ()
    spares: bool = True

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

    @property
    def can_spare(self) -> bool:
        """What raises the sum of several heads' losses, or in stages, has no boundary of its own to be short of."""
        return self.spares and self.steps > 2 * _STRETCH + 1 and not (self.stages or self.aux_weight or self.loss == "conjunction")

    def timed(self, *, repeatable: bool) -> tuple[PooledAttack, float]:
        return self, _WALKED if self.can_spare and repeatable and self.steps > 3 * _STRETCH else 1.0

    def order(self, surrogate: Surrogate, task: Task, chunk: int) -> Tensor | None:
        return by_distance(surrogate, self.threat, task, chunk) if self.ranked else None

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        state = fresh(x, y, self.threat.surface_start(x, draws))
        nothing, images = x.new_zeros(len(x)), torch.zeros_like(x)
        state |= {"before": state["x_adv"].clone(), "best": state["x_adv"].clone(), "best_gradient": images}
        state |= {"best_loss": nothing - torch.inf, "checked_loss": nothing - torch.inf, "last_loss": nothing.clone()}
        state |= {"size": nothing + 2 * self.threat.eps, "since": torch.zeros_like(y), "rises": torch.zeros_like(y)}
        state |= {"gap": torch.full_like(y, self._first_gap), "reduced": torch.ones_like(y, dtype=torch.bool)}
        state |= {"stage": torch.zeros_like(y), **{f"given.{name}": nothing + value for name, value in (self.stages or ({},))[0].items()}}
        if self.can_spare:
            lowest = nothing + torch.inf
            state |= {
                "highest": -lowest,
                "lowest": lowest,
                "promise": nothing,
                "best_promise": nothing,
                **unpaced(-lowest, "highest", "best_loss"),
            }
        if self.is_targeted:
            state["target"] = other_classes(condition, y).gather(1, run[:, None])[:, 0]
        return state

    @property
    def _part(self) -> int:
        """Steps in a stage."""
        return self.steps // max(1, len(self.stages))

    @property
    def _first_gap(self) -> int:
        return max(int(0.22 * self._part), 1)

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        if len(self.stages) > 1:
            self._next_stage(state)
        condition = {**given(state), "target": state["target"]} if "target" in state else given(state)
        gradient, losses, output = surrogate.gradient(self._loss, state["x_adv"], state["y"], condition)
        state["forwards"] += 1
        state["backwards"] += 1
        note_hits(state, output.logits, threshold)
        if self.can_spare:
            state["promise"] = self._promise(state, gradient, losses, output.logits.float())
        gradient = self._account(state, gradient, losses)
        moved = self._step(state, gradient)
        stay = state["hit"][:, None, None, None]
        state["before"] = torch.where(stay, state["before"], state["x_adv"])
        state["x_adv"] = torch.where(stay, state["x_adv"], moved)
        state["step"] = state["step"] + (~state["hit"]).long()
        over = ~state["hit"] & (state["step"] >= self.steps)
        if self.can_spare and surrogate.repeatable:
            hopeless = self._hopeless(state, margin(output.logits.float(), state["y"]), threshold)
            over |= give_up(state, hopeless, 2 * (self.steps - state["step"]), draws, surrogate.cost)
        state["over"] = over

    def judged(self, state: State, broken: Tensor) -> None:
        book_mistakes(state, broken)

    def _hopeless(self, s: State, margins: Tensor, threshold: float) -> Tensor:
        """(N,) bool: rows that will hardly come to anything; margins (N,): those just seen.

        short is what is missing to the boundary in logits, and way in the loss, which is zero there unless it is the cross-entropy.
        A targeted run may succeed through another class, so both are asked for. Where a step is halved a run returns to its best point,
        so what that one promised counts as well.
        """
        s["highest"], s["lowest"] = torch.maximum(s["highest"], margins), torch.minimum(s["lowest"], margins)
        ends, left = ~s["hit"] & (s["step"] % _STRETCH == 1), ((self.steps - s["step"]) / _STRETCH).clamp_min(1.0)
        way = short = threshold - s["highest"]
        hopeless = too_slow(s, "highest", short, left, ends) & (short > s["highest"] - s["lowest"])
        if self.loss != "ce":
            way = (threshold if self.loss in ("margin", "targeted") else 0.0) - s["best_loss"]
            hopeless &= too_slow(s, "best_loss", way, left, ends)
        late = (s["step"] > max(2 * _STRETCH, _SETTLED * self.steps)) & (s["step"] < self.steps)
        return hopeless & late & (way > _GAPS * torch.maximum(s["promise"], s["best_promise"]))

    def _promise(self, s: State, gradient: Tensor, losses: Tensor, logits: Tensor) -> Tensor:
        """(N,) the Frank-Wolfe gap at x_adv, of which gradient (N, C, H, W), losses (N,) and logits (N, K) are.

        The cross-entropy's is turned into logits: its gradient is 1 - p_y times a mean of the margins' gradients, weighted by the other
        classes' shares, and a mean over m gradients that have nothing to do with one another is shorter than they are by sqrt(m).
        """
        gap = self.threat.frank_wolfe_gap(s["x_adv"], s["x"], gradient)
        if self.loss != "ce":
            return gap
        shares = logits.masked_fill(F.one_hot(s["y"], logits.shape[1]).bool(), -torch.inf).softmax(1)
        return gap / -torch.expm1(-losses) / shares.square().sum(1).sqrt().to(gap)

    def _next_stage(self, s: State) -> None:
        """Rows that have done their part of the steps begin the next one where they did best; nothing carries over but the point."""
        due = (s["step"] // self._part > s["stage"]) & (s["stage"] + 1 < len(self.stages))
        s["stage"] = s["stage"] + due.long()
        for name in self.stages[0]:
            values = s["size"].new_tensor([stage[name] for stage in self.stages])
            s[f"given.{name}"] = values[s["stage"]]
        s["x_adv"] = _rows(due, s["best"], s["x_adv"])
        s["best_loss"] = torch.where(due, -torch.inf, s["best_loss"])
        s["size"] = torch.where(due, 2 * self.threat.eps, s["size"])
        s["gap"] = torch.where(due, self._first_gap, s["gap"])
        s["since"], s["rises"] = torch.where(due, 0, s["since"]), torch.where(due, 0, s["rises"])
        s["reduced"] = s["reduced"] | due

    def _begun(self, s: State) -> Tensor:
        """(N,) bool: rows that have made a step in their stage."""
        return s["step"] > s["stage"] * self._part

    def _account(self, s: State, gradient: Tensor, losses: Tensor) -> Tensor:
        """Best point, rises and checkpoints; where the step is halved, x_adv and the returned gradient are those of the best point."""
        new = ~s["hit"]  # a point that fools counts when the judge has refused it and it is looked at again
        begun = self._begun(s)
        moved = new & begun
        better = losses > s["best_loss"]
        s["best"] = _rows(better, s["x_adv"], s["best"])
        s["best_gradient"] = _rows(better, gradient, s["best_gradient"])
        s["best_loss"] = torch.where(better, losses, s["best_loss"])
        if self.can_spare:
            s["best_promise"] = torch.where(better, s["promise"], s["best_promise"])
        s["checked_loss"] = torch.where(begun, s["checked_loss"], s["best_loss"])  # the start is the first thing to improve on
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
        s["gap"] = torch.where(check, (s["gap"] - max(int(0.03 * self._part), 1)).clamp_min(max(int(0.06 * self._part), 1)), s["gap"])
        s["since"], s["rises"] = torch.where(check, 0, s["since"]), torch.where(check, 0, s["rises"])
        return _rows(halve, s["best_gradient"], gradient)

    def _step(self, s: State, gradient: Tensor) -> Tensor:
        """A projected step, then momentum towards it; the first step has no past to keep."""
        x, x_adv = s["x"], s["x_adv"]
        target = self.threat.project(self.threat.step(x_adv, gradient, s["size"][:, None, None, None]), x)
        weight = torch.where(self._begun(s), _MOMENTUM, 1.0)[:, None, None, None]
        return self.threat.project(x_adv + weight * (target - x_adv) + (1 - weight) * (x_adv - s["before"]), x)


def _rows(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where mask (N,), else b, for images (N, C, H, W)."""
    return torch.where(mask[:, None, None, None], a, b)
