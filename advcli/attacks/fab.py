"""FAB-T: the fast adaptive boundary attack (Croce, Hein, ICML 2020b), targeted, as a threshold attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import PooledAttack
from advcli.attacks.sparing import book_mistakes, give_up
from advcli.attacks.state import State, fresh, given, note_hits
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.attacks.targets import other_classes
from advcli.attacks.threat import Threat
from advcli.draws import Draws

_ALPHA_MAX = 0.1  # the largest pull back towards the clean image
_ETA = 1.05  # overshoot across the linearised boundary
_MEETINGS = 100  # steps of Newton's method at most; five are many
_LEAST, _LONGEST = 1e-30, 1e30  # of what is divided by, and of the quotient
_BETA = 0.9  # how far back towards the clean image an adversarial point outside the ball is taken
_STRETCH = 10  # steps after which it is asked whether a run has settled
_TIMES = 4  # of them, at least, at which it was adversarial
_SPREAD = 1.05  # how far at most, in smallest distances
_SLOW = 0.97  # of the smallest distance before them is left, at least
_FAR = 2.0  # eps, that the smallest distance is over
_WALKED = 0.7  # share of all steps that is walked, about: 0.4 of photographs, 0.8 of digits


@dataclass(frozen=True)
class Fab(PooledAttack):
    """Steps onto the linearised boundary towards one target class, biased towards the clean image; one run a target.

    The published attack minimises the norm for all its steps; a verdict at eps needs only the first adversarial point
    inside the ball, where it stops. One pass a step serves the decision and the gradient, also where the point is
    adversarial but outside: the authors' code takes such a point back towards the image and linearises there anew.

    spares: a run that has settled far outside is given up, but for a sample. It has settled where in its last ten steps it was
    adversarial four times or more, at distances within 5 % of its smallest one, which is over twice eps and has hardly fallen. Where
    gates open and shut distances jump, and runs do not settle.
    """

    needs_logits: ClassVar[bool] = True
    needs_float32: ClassVar[bool] = True  # it aims at the boundary itself, from a margin near zero
    is_targeted: ClassVar[bool] = True

    threat: Threat
    steps: int = 100
    targets: int = 9
    spares: bool = True

    @property
    def runs(self) -> int:
        return self.targets

    @property
    def passes(self) -> int:
        return self.targets * (2 * self.steps + 1)

    def timed(self, *, repeatable: bool) -> tuple[PooledAttack, float]:
        return self, _WALKED if self.spares and repeatable and self.steps > 2 * _STRETCH else 1.0

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        none, nowhere = torch.zeros_like(y), x.new_full((len(x),), torch.inf)
        seen = {"closest": nowhere, "before": nowhere.clone(), "farthest": torch.zeros_like(nowhere), "times": none}
        return {**fresh(x, y, x.clone()), **seen, "target": other_classes(condition, y).gather(1, run[:, None])[:, 0]}

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        condition = {**given(state), "target": state["target"]}
        gradient, difference, output = surrogate.gradient(attack_loss("targeted"), state["x_adv"], state["y"], condition)
        state["forwards"] += 1
        state["backwards"] += 1
        fooled = note_hits(state, output.logits, threshold)
        distance = self.threat.distance(state["x_adv"], state["x"])
        inside = distance <= self.threat.eps
        state["hit"] = fooled & inside
        moved = self._step(state, gradient, difference, retreat=fooled & ~inside)
        state["x_adv"] = torch.where(state["hit"][:, None, None, None], state["x_adv"], moved)
        state["step"] = state["step"] + (~state["hit"]).long()
        settled = self._settled(state, distance, fooled) & (self.spares and surrogate.repeatable)
        gives_up = give_up(state, settled, 2 * (self.steps - state["step"]), draws, surrogate.cost)
        self._finish(state, gives_up)

    def _settled(self, state: State, distance: Tensor, fooled: Tensor) -> Tensor:
        """(N,) bool: rows that at the end of a stretch of steps have settled far outside; fooled at that distance, (N,) each."""
        away = torch.where(fooled, distance, torch.inf)
        state["closest"] = torch.minimum(state["closest"], away)
        state["farthest"] = torch.maximum(state["farthest"], torch.where(fooled, distance, 0.0))
        state["times"] = state["times"] + fooled.long()
        ends = ~state["hit"] & (state["step"] % _STRETCH == 0) & (state["step"] < self.steps)
        steady = (state["times"] >= _TIMES) & (state["farthest"] <= _SPREAD * state["closest"])
        slow = state["before"].isfinite() & (state["closest"] >= _SLOW * state["before"])
        settled = ends & steady & slow & (state["closest"] > _FAR * self.threat.eps)
        state["before"] = torch.where(ends, state["closest"], state["before"])
        state["farthest"], state["times"] = torch.where(ends, 0.0, state["farthest"]), torch.where(ends, 0, state["times"])
        return settled

    def judged(self, state: State, broken: Tensor) -> None:
        book_mistakes(state, broken)

    def _finish(self, state: State, gives_up: Tensor) -> None:
        """Out of steps, or of hope: the last point counts only inside the ball, so elsewhere the clean image stands for it."""
        state["over"] = ~state["hit"] & ((state["step"] >= self.steps) | gives_up)
        outside = state["over"] & ~(self.threat.distance(state["x_adv"], state["x"]) <= self.threat.eps)
        state["x_adv"] = torch.where(outside[:, None, None, None], state["x"], state["x_adv"])

    def _step(self, state: State, gradient: Tensor, difference: Tensor, retreat: Tensor) -> Tensor:
        """Projections of the iterate and of the clean image onto the linearised boundary, overshot and mixed (algorithm 1).

        Rows of retreat (N,) bool step from a point taken back towards the clean image, on the boundary as linearised before.
        """
        x, x_adv = state["x"], state["x_adv"]
        w = gradient.flatten(1)
        offset = difference - (w * x_adv.flatten(1)).sum(1)  # the boundary: w . z + offset = 0
        x_adv = torch.where(retreat[:, None, None, None], x + _BETA * (x_adv - x), x_adv)
        d_adv = boundary_step(x_adv, w, offset, self.threat)
        d_clean = boundary_step(x, w, offset, self.threat)
        far_adv, far_clean = (self.threat.distance(d, torch.zeros_like(d)).clamp_min(1e-8) for d in (d_adv, d_clean))
        alpha = (far_adv / (far_adv + far_clean)).clamp(0.0, _ALPHA_MAX)[:, None, None, None]
        return ((1 - alpha) * (x_adv + _ETA * d_adv) + alpha * (x + _ETA * d_clean)).clamp(*self.threat.bounds)


def boundary_step(z: Tensor, w: Tensor, offset: Tensor, threat: Threat) -> Tensor:
    """The shortest d (N, C, H, W) with z + d in the box and w . (z + d) + offset = 0; as far as the box allows where it cannot.

    z (N, C, H, W) in the box, w (N, D), offset (N,). Coordinate i moves against the sign of c w_i, c = w . z + offset, at
    speed s_i (1 for linf, |w_i| for l2) until it meets the box after time r_i / s_i, so |w . d| grows with time, in a straight line
    from one meeting to the next and ever more slowly. Newton's method on such a curve never passes the time at which it
    reaches |c|, and is there once a step has met nobody new: after four or so, where a sort would order all D.
    """
    point = z.flatten(1)
    scale = w.abs().amax(1).clamp_min(_LEAST)  # nothing below is too small for float32 to divide by
    w, offset = w / scale[:, None], offset / scale
    excess = (w * point).sum(1) + offset
    excess = torch.where(excess.isfinite(), excess, 0.0)  # a network that answers with no number shows no way: no step
    down = (w * excess[:, None]) > 0
    room = torch.where(down, point - threat.bounds[0], threat.bounds[1] - point)
    slope, aim = w.abs(), excess.abs()
    speed = (w != 0).to(w) if threat.norm == "linf" else slope
    rate = slope * speed
    time, before = torch.zeros_like(aim), torch.full_like(aim, -1.0)
    for _ in range(_MEETINGS):
        way = speed * time[:, None]
        pace = (rate * (way < room)).sum(1)  # of the coordinates that still move
        moves = pace != before  # row by row: the company that a row keeps must not move it by a rounding
        if not bool(moves.any()):
            break
        reached = (slope * torch.minimum(way, room)).sum(1)
        further = (aim - reached).clamp_min(0.0) / pace.clamp_min(_LEAST)
        time = torch.where(moves & (pace > 0), time + further, time).clamp_max(_LONGEST)
        before = pace
    step = torch.minimum(speed * time[:, None], room)
    return torch.where(down, -step, step).view_as(z)
