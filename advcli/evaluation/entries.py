"""What a suite is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from advcli.attacks.pool import PooledAttack
from advcli.attacks.reference import ReferenceAttack
from advcli.attacks.views import View


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    about: the attack in words, for `verify --explain`. on: `all` correctly classified images, or the `survivors` of the entries
    before it. readings: accuracies read off one run of the attack, name to the number of steps; None: its own name, all its steps.
    view: how the attack sees a gated network; None: as deployed. source: which other network it is crafted on; None: the one under
    attack. surrogate: whether gradients pass blocking operations by a substitute's, or are averaged over a network's randomness.
    part: the suite whose worst case it belongs to; empty: the one that is run. audits: the entry that it repeats in float32, on
    `sample` images whether they stand or not; None: no audit.
    """

    name: str
    attack: PooledAttack | ReferenceAttack
    about: str
    on: Literal["all", "survivors"] = "all"
    readings: tuple[tuple[str, int], ...] | None = None
    view: View | None = None
    source: int | None = None
    surrogate: Literal["view", "substituted", "expected"] = "view"
    part: str = ""
    audits: str | None = None
    sample: int = 0


def aim(num_classes: int) -> tuple[Literal["dlr-targeted", "targeted"], int]:
    """Loss and number of targets of targeted Auto-PGD: AutoAttack's, but the margin below four classes, where DLR is not defined."""
    return ("dlr-targeted" if num_classes >= 4 else "targeted"), min(9, num_classes - 1)
