"""The authors' AutoAttack (Croce, Hein 2020), as its package pyautoattack ships it, one sub-attack and one batch at a time.

The package's own resume does not work and its progress goes to a debug log; driven batch by batch from outside, both are ours.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advcli.attacks.attack import Found
from advcli.attacks.judge import Judge
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.attacks.threat import Threat
from advcli.draws import Draws

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]


def standard_parts(num_classes: int) -> tuple[Part, ...]:
    """Standard AutoAttack in its order. Below four classes the targeted DLR loss is not defined: the plain one at three, none at two."""
    middle: tuple[Part, ...] = ("apgd-t",) if num_classes >= 4 else ("apgd-dlr",) if num_classes == 3 else ()
    return ("apgd-ce", *middle, "fab-t", "square")


@dataclass(frozen=True)
class ReferenceAttack:
    """One sub-attack of standard AutoAttack: 100 iterations, one restart, up to 9 targets; 5,000 queries for square.

    Its generator is seeded from the draws' seed and the first example's name, since pyautoattack draws by batch.
    """

    threat: Threat
    part: Part
    num_classes: int

    @property
    def passes(self) -> int:
        """Forwards and backwards of a robust example, weight gradients not counted (FAB takes some)."""
        targets = min(9, self.num_classes - 1)
        return {"apgd-ce": 204, "apgd-dlr": 204, "apgd-t": 203 * targets, "fab-t": 303 * targets, "square": 5004}[self.part]

    def __call__(self, surrogate: Surrogate, judge: Judge, x: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Found:
        seed = int(draws.integers(2**31)[0])
        with torch.random.fork_rng(), warnings.catch_warnings(), _quiet("auto-attack"):
            warnings.simplefilter("ignore")
            adversary = self._adversary(_Counted(surrogate, condition), seed, x.device)
            tracer = sys.gettrace()
            try:
                x_adv, _ = adversary.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
            finally:
                sys.settrace(tracer)  # its check for dynamic defences takes away coverage's and debuggers' own
        x_adv = self.threat.project(x_adv, x)  # undoes its rounding outside the ball, at most an ulp
        margins = judge.margins(x_adv, y)
        broken = judge.broken(margins)
        return Found(x_adv, margins, broken, torch.where(broken, 0, -1))

    def _adversary(self, model: _Counted, seed: int, device: torch.device) -> Any:
        from pyautoattack import AutoAttack

        norm = {"linf": "Linf", "l2": "L2"}[self.threat.norm]
        adversary = AutoAttack(model, attacks=[self.part], version="custom", norm=norm, eps=self.threat.eps, seed=seed, device=device)
        adversary.apgd.n_restarts = adversary.fab.n_restarts = 1  # as version="standard" sets them; 5 is the custom default
        adversary.fab.n_target_classes = adversary.apgd_targeted.n_target_classes = min(9, self.num_classes - 1)
        return adversary


class _Counted:
    """The surrogate as pyautoattack wants it: contiguous images to logits, passes counted."""

    def __init__(self, surrogate: Surrogate, condition: Condition) -> None:
        self.surrogate, self.condition = surrogate, condition

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.surrogate(x, self.condition).logits
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.surrogate.cost.backwards += len(gradient)


class _quiet:  # noqa: N801 - used as a context manager, like the ones in contextlib
    """Keeps a package's log to itself."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.disabled, self.logger.disabled = self.logger.disabled, True

    def __exit__(self, *exception: object) -> None:
        self.logger.disabled = self.disabled
