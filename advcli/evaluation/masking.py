"""Signs, read from a ledger, that an evaluation is too kind: each needs an effect over 2 points and exact paired evidence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from advcli.measures import mcnemar

EFFECT = 0.02
P_VALUE = 0.001

Flag = dict[str, Any]
Verdict = Literal["trustworthy", "upper bound", "masked"]
Broken = dict[str, NDArray[np.bool_]]

SEVERITY: tuple[Verdict, ...] = ("trustworthy", "upper bound", "masked")
UPPER_BOUNDS = ("quick", "paper", "transfer", "fast")
"""Suites of a few attacks, whose worst case is never more than an upper bound (Carlini et al. 2019)."""

_WHITE_BOX = ("apgd-", "fab-")


def flags(broken: Broken) -> list[Flag]:
    """broken: for each reading (n,) bool, whether that attack alone broke the example. Only what is raised is returned."""
    raised = []
    for single, iterative in (("fgsm", "pgd-20"), ("fgsm", "pgd-100@eps/4"), ("fgsm-rs", "pgd-40@0.007")):
        if single in broken and iterative in broken:
            message = f"one step ({single}) breaks more images than many ({iterative}): the gradient misleads iterative attacks"
            raised += _compare("single-step-beats-iterative", broken[single], broken[iterative], message)
    white = [rows for name, rows in broken.items() if name.startswith(_WHITE_BOX)]
    if white and "square" in broken:
        message = "a black-box attack (square) breaks images that no gradient attack broke: gradients are masked"
        raised += _compare(
            "black-box-beats-white-box", np.logical_or.reduce([broken["square"], *white]), np.logical_or.reduce(white), message
        )
    return raised


def _compare(name: str, weak: NDArray[np.bool_], strong: NDArray[np.bool_], message: str) -> list[Flag]:
    """A flag where the attack that should be weaker broke more, by enough and surely enough."""
    only_weak, only_strong = int((weak & ~strong).sum()), int((strong & ~weak).sum())
    effect = (only_weak - only_strong) / max(1, len(weak))
    if effect <= EFFECT or mcnemar(only_weak, only_strong) >= P_VALUE:
        return []
    return [{"name": name, "value": round(effect, 6), "threshold": EFFECT, "message": message}]


def verdict(suite: str, split: str, raised: list[Flag], *, gated: bool = False) -> Verdict:
    """`masked` where a flag is raised; `upper bound` for suites of a few fixed attacks (Carlini et al. 2019); else `trustworthy`.

    On images that the network was trained on, any accuracy is an upper bound; so it is through gates that hide the gradient,
    even by attacks that know them, which are the tightest bound here and no proof.
    """
    if raised:
        return "masked"
    return "upper bound" if suite in UPPER_BOUNDS or split != "test" or gated else "trustworthy"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that trusts least."""
    return max(verdicts, key=SEVERITY.index)
