"""What the suite `adaptive` adds to AutoAttack for a network that hides its gradient: attacks that know how.

Sources: Tramer et al. 2020 (adaptive attacks), Athalye et al. 2018 (BPDA, EOT), Carlini et al. 2019 (checklist).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from advcli.attacks import Apgd, Fab, Pgd, Square, Threat, cw, mim
from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import PooledAttack
from advcli.attacks.views import ANNEALED, BYPASSED, ENUMERATED, FORCED, KEPT, OPEN, View, auxiliary, softened, straight
from advcli.evaluation.entries import Entry, aim

_TEMPERATURES = (1.0, 0.3, 0.1, 0.05)
_WEIGHTS = (0.0, 1.0, 4.0)  # of the decision beside the gates, in the parts of a relay
_JOINT = (1.0, 5.0)  # times the weight of the auxiliary heads in training

Row = tuple[str, PooledAttack, View | None, str]


def gate_entries(threat: Threat, num_classes: int, heads: int, aux_weight: float, *, exact: bool) -> tuple[Entry, ...]:
    """Attacks that know the gates of a network with so many auxiliary heads; each is judged on the deployed decision.

    The open twin comes first, so that it is seen what carries over from it. The first auxiliary head precedes every gate, so it is an
    ordinary network whose fall takes the gates along: it gets all of AutoAttack, its random search last of all. Then the gates are
    forced to each target class while they are made to choose it, both at once and in turns, kept at the label, softened, annealed,
    straight through and bypassed; and what the papers call adaptive, the joint loss through the gates as they are. exact: a gate
    that closes stands before pooling, where the condition of success can be written down for all classes in one pass.
    """
    rows = (*_open(threat), *_first_head(threat, num_classes, heads), *_gates(threat, num_classes), *_joint(threat, aux_weight))
    if exact:
        rows += _exact(threat, num_classes)
    rows += (("square@aux0", Square(threat), auxiliary(0), "auxiliary head 0"),)
    return tuple(_entry(row) for row in rows)


def _entry(row: Row, surrogate: Literal["view", "substituted", "expected"] = "view") -> Entry:
    name, attack, view, words = row
    about = f"{_kind(attack)}, {words}"
    return Entry(name, attack, about, on="survivors", view=view, surrogate=surrogate, part="adaptive")


def _kind(attack: PooledAttack) -> str:
    if isinstance(attack, Apgd):
        return f"Auto-PGD, {attack.steps} steps"
    if isinstance(attack, Fab):
        return f"FAB, {attack.steps} steps a target"
    if isinstance(attack, Square):
        return f"Square Attack, {attack.queries:,} queries"
    return f"PGD{' with momentum' if isinstance(attack, Pgd) and attack.momentum else ''}, {attack.passes // 2} steps"


def _first_head(threat: Threat, num_classes: int, heads: int) -> tuple[Row, ...]:
    loss, targets = aim(num_classes)
    return (
        *((f"apgd-ce@aux{number}", Apgd(threat, "ce"), auxiliary(number), f"auxiliary head {number}") for number in range(heads)),
        ("apgd-t@aux0", Apgd(threat, loss, targets=targets), auxiliary(0), "auxiliary head 0, towards each of the likeliest targets"),
        ("fab-t@aux0", Fab(threat, targets=targets), auxiliary(0), "auxiliary head 0"),
    )


def _gates(threat: Threat, num_classes: int) -> tuple[Row, ...]:
    loss, targets = aim(num_classes)
    forced, relay = Apgd(threat, "conjunction", targets=targets), tuple({"weight": weight} for weight in _WEIGHTS)
    annealing = tuple({"temperature": temperature} for temperature in _TEMPERATURES)
    cooling = f"gates softened at temperatures from {_TEMPERATURES[0]:g} down to {_TEMPERATURES[-1]:g}"
    return (
        ("apgd-t@forced", forced, FORCED, "gates forced to a target that they are made to choose"),
        ("apgd-t@relay", replace(forced, stages=relay), FORCED, "the same, first the gates, then the decision from where they ended"),
        ("apgd-ce@kept", Apgd(threat, "ce"), KEPT, "gates kept at the label"),
        ("apgd-ce@annealed", Apgd(threat, "ce", stages=annealing), ANNEALED, cooling),
        ("apgd-t@annealed", Apgd(threat, loss, targets=targets, stages=annealing), ANNEALED, f"{cooling}, towards the likeliest targets"),
        (
            "apgd-t@soft",
            Apgd(threat, loss, targets=targets),
            softened(0.3),
            "gates softened at temperature 0.3, towards the likeliest targets",
        ),
        ("apgd-ce@straight", Apgd(threat, "ce"), straight(0.3), "gates as deployed, their gradient softened at temperature 0.3"),
        ("apgd-ce@bypassed", Apgd(threat, "ce"), BYPASSED, "gates as deployed, their gradient as if they were not there"),
    )


def _joint(threat: Threat, aux_weight: float) -> tuple[Row, ...]:
    return tuple(
        (
            "apgd-ce@joint" + ("" if times == 1 else f"x{times:g}"),
            Apgd(threat, "ce", aux_weight=times * aux_weight),
            None,
            f"the decision's loss + {times * aux_weight:g} * the mean of the auxiliary heads', gates as deployed",
        )
        for times in _JOINT
    )


def _open(threat: Threat) -> tuple[Row, ...]:
    """The open twin has the same weights: attacked as itself, and as a network from which examples transfer."""
    size = threat.eps / 10
    return (
        ("apgd-ce@open", Apgd(threat, "ce"), OPEN, "gates open"),
        ("pgd-100@open", Pgd(threat, attack_loss("ce"), 100, size, early=False), OPEN, "gates open, carried over"),
        ("mim-100@open", replace(mim(threat, steps=100, step_size=size), early=False), OPEN, "gates open, carried over"),
    )


def _exact(threat: Threat, num_classes: int) -> tuple[Row, ...]:
    words = "the exact condition of success over all classes of the last gate"
    return (
        ("apgd@enumerated", Apgd(threat, "margin"), ENUMERATED, words),
        ("apgd-t@enumerated", Apgd(threat, "targeted", targets=aim(num_classes)[1]), ENUMERATED, f"{words}, towards one class at a time"),
        ("square@enumerated", Square(threat, queries=2500), ENUMERATED, words),
    )


def joint_entries(name: str, threat: Threat, aux_weight: float) -> tuple[Entry, ...]:
    """For networks with auxiliary heads: attacks on the decision's loss + aux_weight * the mean of the auxiliary heads'.

    It is what the papers call adaptive (AGAIN 5.2.2, ANCRA IV.A), and still goes through gates that hide the gradient.
    """
    part = "adaptive" if name == "full" else ""
    loss, words = attack_loss("ce", aux_weight), f"cross-entropy of the decision + {aux_weight:g} * the mean of the auxiliary heads'"

    def pgd(label: str, steps: int, size: float, step: str, readings: tuple[tuple[str, int], ...] | None = None) -> Entry:
        about = f"PGD on the {words}, {steps} steps of {step}, uniform start"
        return Entry(label, Pgd(threat, loss, steps=steps, step_size=size), about, readings=readings, part=part)

    if name == "quick":
        return (pgd("pgd-20-joint", 20, threat.eps / 4, "eps/4"),)
    if name in ("paper", "full"):
        again = tuple((f"pgd-{k}-joint@eps/4", k) for k in (10, 20, 50, 100))
        ancra = pgd("pgd-40-joint@0.007", 40, 0.007 * threat.eps / (8 / 255), "0.007 at eps 8/255")
        return (pgd("pgd-100-joint@eps/4", 100, threat.eps / 4, "eps/4", again), ancra)
    return ()


def substitute_entries(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """For networks with operations that block or zero the gradient: it passes them as a smooth neighbour's would (BPDA)."""
    loss, targets = aim(num_classes)
    words = "operations that block the gradient pass a substitute's"
    rows: tuple[Row, ...] = (
        ("cw-100@bpda", cw(threat, steps=100, step_size=threat.eps / 10), None, f"{words}, on the margin"),
        ("apgd-ce@bpda", Apgd(threat, "ce"), None, words),
        ("apgd-t@bpda", Apgd(threat, loss, targets=targets), None, f"{words}, towards each of the likeliest targets"),
    )
    return tuple(_entry(row, "substituted") for row in rows)


def random_entries(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """AutoAttack's `rand` version (Croce, Hein 2020): APGD on the cross-entropy and the DLR loss, expectation over 20 draws a step."""
    words = "gradients averaged over 20 draws of the network's randomness"
    second: Literal["dlr", "margin"] = "dlr" if num_classes >= 3 else "margin"
    rows: tuple[Row, ...] = (
        ("apgd-ce@eot", Apgd(threat, "ce"), None, words),
        (f"apgd-{second}@eot", Apgd(threat, second), None, f"{words}, {second.upper() if second == 'dlr' else second} loss"),
    )
    return tuple(_entry(row, "expected") for row in rows)
