"""Which attacks a suite runs, on whom, and under which names their accuracies are reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from advcli.attacks import Attack, Pgd, Threat, cw, fgsm, mim
from advcli.attacks.losses import attack_loss
from advcli.attacks.reference import ReferenceAttack, standard_parts
from advcli.errors import UsageError

PROTOCOL = 1
"""Raised whenever a suite's composition or a verdict's rule changes, so that numbers are compared only within one."""


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    on: `all` correctly classified images, or the `survivors` of the entries before it. readings: accuracies read off one run
    of the attack, name to the number of steps; None: the attack's own name and all its steps.
    """

    name: str
    attack: Attack
    on: Literal["all", "survivors"] = "all"
    readings: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    entries: Callable[[Threat, int], tuple[Entry, ...]]


def _quick(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    size = threat.eps / 4
    return (
        Entry("fgsm", fgsm(threat)),
        Entry("pgd-20", Pgd(threat, attack_loss("ce"), steps=20, step_size=size)),
        Entry("cw-30", cw(threat, steps=30, step_size=size)),
    )


def _paper(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """AGAIN and StayFocused: step eps/10 (0.8/255) and eps/4 (2/255 at 8/255). ANCRA: step 0.007 at 8/255, in proportion elsewhere."""
    tenth, quarter, ancra = threat.eps / 10, threat.eps / 4, 0.007 * threat.eps / (8 / 255)
    return (
        Entry("fgsm", fgsm(threat)),
        _pgd_family(threat, "eps/10", tenth),
        _pgd_family(threat, "eps/4", quarter),
        Entry("cw-30@eps/10", cw(threat, steps=30, step_size=tenth)),
        Entry("mim-20@eps/10", mim(threat, steps=20, step_size=tenth)),
        Entry("fgsm-rs", fgsm(threat, start="uniform")),
        Entry("pgd-40@0.007", Pgd(threat, attack_loss("ce"), steps=40, step_size=ancra)),
        Entry("cw-40@0.007", cw(threat, steps=40, step_size=ancra)),
    )


def _pgd_family(threat: Threat, label: str, size: float) -> Entry:
    """PGD-10, 20, 50 and 100 from one start are one ascent, read at four places."""
    attack = Pgd(threat, attack_loss("ce"), steps=100, step_size=size)
    return Entry(f"pgd-100@{label}", attack, readings=tuple((f"pgd-{k}@{label}", k) for k in (10, 20, 50, 100)))


def _aa(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    return tuple(Entry(part, ReferenceAttack(threat, part, num_classes), on="survivors") for part in standard_parts(num_classes))


SUITES = {
    suite.name: suite
    for suite in (
        Suite("quick", "FGSM, PGD-20, C&W-30: a look, an upper bound", _quick),
        Suite("paper", "the attacks of AGAIN's, StayFocused's and ANCRA's tables: an upper bound", _paper),
        Suite("aa", "standard AutoAttack", _aa),
    )
}


def suite(name: str) -> Suite:
    if name not in SUITES:
        raise UsageError(f"there is no suite {name!r}", where="--suite", next="; ".join(f"{s.name}: {s.about}" for s in SUITES.values()))
    return SUITES[name]
