"""Which attacks a suite runs, on whom, and under which names their accuracies are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from advcli.attacks import Apgd, Fab, Pgd, Square, Threat, cw, fgsm, mim
from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import PooledAttack
from advcli.attacks.reference import ReferenceAttack, standard_parts
from advcli.attacks.views import FORCED, OPEN, View, auxiliary, softened, straight
from advcli.errors import UsageError

PROTOCOL = 1
"""Raised whenever a suite's composition or a verdict's rule changes, so that numbers are compared only within one."""

TRANSFER = "transfer"


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    about: the attack in words, for `verify --explain`. on: `all` correctly classified images, or the `survivors` of the entries
    before it. view: how the attack sees a gated network; None: as deployed. readings: accuracies read off one run of the attack,
    name to the number of steps; None: its own name, all its steps.
    source: which other network it is crafted on; None: the one under attack.
    audits: the entry that it repeats in float32, on `sample` images whether they stand or not; None: no audit.
    """

    name: str
    attack: PooledAttack | ReferenceAttack
    about: str
    on: Literal["all", "survivors"] = "all"
    readings: tuple[tuple[str, int], ...] | None = None
    view: View | None = None
    source: int | None = None
    audits: str | None = None
    sample: int = 0


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    entries: Callable[[Threat, int], tuple[Entry, ...]]


def _pgd(name: str, threat: Threat, steps: int, size: float, label: str, readings: tuple[tuple[str, int], ...] | None = None) -> Entry:
    about = f"PGD on the cross-entropy, {steps} steps of {label}, uniform start"
    return Entry(name, Pgd(threat, attack_loss("ce"), steps=steps, step_size=size), about, readings=readings)


def _cw(name: str, threat: Threat, steps: int, size: float, label: str) -> Entry:
    return Entry(
        name, cw(threat, steps=steps, step_size=size), f"PGD on the Carlini-Wagner margin, {steps} steps of {label}, uniform start"
    )


def _quick(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    size = threat.eps / 4
    return (
        Entry("fgsm", fgsm(threat), "one step of eps on the cross-entropy"),
        _pgd("pgd-20", threat, 20, size, "eps/4"),
        _cw("cw-30", threat, 30, size, "eps/4"),
    )


def _paper(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """AGAIN and StayFocused: step eps/10 (0.8/255) and eps/4 (2/255 at 8/255). ANCRA: step 0.007 at 8/255, in proportion elsewhere."""
    tenth, quarter, ancra = threat.eps / 10, threat.eps / 4, 0.007 * threat.eps / (8 / 255)
    return (
        Entry("fgsm", fgsm(threat), "one step of eps on the cross-entropy"),
        _pgd_family(threat, "eps/10", tenth),
        _pgd_family(threat, "eps/4", quarter),
        _cw("cw-30@eps/10", threat, 30, tenth, "eps/10"),
        Entry(
            "mim-20@eps/10", mim(threat, steps=20, step_size=tenth), "momentum iterative method on the cross-entropy, 20 steps of eps/10"
        ),
        Entry("fgsm-rs", fgsm(threat, start="uniform"), "one step of eps on the cross-entropy after a uniform start"),
        _pgd("pgd-40@0.007", threat, 40, ancra, "0.007 at eps 8/255"),
        _cw("cw-40@0.007", threat, 40, ancra, "0.007 at eps 8/255"),
    )


def _pgd_family(threat: Threat, label: str, size: float) -> Entry:
    """PGD-10, 20, 50 and 100 from one start are one ascent, read at four places."""
    return _pgd(f"pgd-100@{label}", threat, 100, size, label, tuple((f"pgd-{k}@{label}", k) for k in (10, 20, 50, 100)))


def _aim(num_classes: int) -> tuple[Literal["dlr-targeted", "targeted"], int]:
    """Loss and number of targets of targeted Auto-PGD: AutoAttack's, but the margin below four classes, where DLR is not defined."""
    return ("dlr-targeted" if num_classes >= 4 else "targeted"), min(9, num_classes - 1)


def _aa(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """Standard AutoAttack (Croce, Hein 2020), native. Below four classes its targeted DLR loss is not defined: the margin instead."""
    loss, targets = _aim(num_classes)
    words = "targeted DLR loss" if num_classes >= 4 else "targeted margin"
    return (
        Entry("apgd-ce", Apgd(threat, "ce"), "Auto-PGD on the cross-entropy, 100 steps", on="survivors"),
        Entry("apgd-t", Apgd(threat, loss, targets=targets), f"Auto-PGD on the {words}, 100 steps", on="survivors"),
        Entry("fab-t", Fab(threat, targets=targets), "FAB on the targeted margin, 100 steps", on="survivors"),
        Entry("square", Square(threat), "Square Attack on the margin, 5,000 queries", on="survivors"),
    )


def _aa_plus(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """AutoAttack `plus` (Croce, Hein 2020): APGD-CE and APGD-DLR with five restarts, then what standard runs, which is thus part of it.

    What differs from the authors': FAB runs on targets only, without its five untargeted restarts; Square comes last, so that it
    is seen whether it breaks what no gradient attack broke. Below three classes the DLR loss is not defined and left out.
    """
    first, *others = _aa(threat, num_classes)
    ce = Entry(first.name, Apgd(threat, "ce", restarts=5), "Auto-PGD on the cross-entropy, 5 restarts of 100 steps", on="survivors")
    about = "Auto-PGD on the DLR loss, 5 restarts of 100 steps"
    dlr = (Entry("apgd-dlr", Apgd(threat, "dlr", restarts=5), about, on="survivors"),) if num_classes >= 3 else ()
    return (ce, *dlr, *others)


def _fast(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """Most of aa's strength for part of its cost: short runs first, targets by their estimated distance (Melamed, Hein 2024, MALT).

    Whoever stands then gets all steps on up to nine targets. FAB is left out, and Square's 500 queries are a sign of masked
    gradients rather than an attack, so this is an upper bound.
    """
    loss, targets = _aim(num_classes)
    words = f"Auto-PGD on the {'targeted DLR loss' if num_classes >= 4 else 'targeted margin'}"
    short = Apgd(threat, loss, steps=20, targets=min(3, targets), ranked=True)
    return (
        Entry("apgd-ce-20", Apgd(threat, "ce", steps=20), "Auto-PGD on the cross-entropy, 20 steps", on="survivors"),
        Entry("apgd-t-20", short, f"{words}, 20 steps on the three nearest classes", on="survivors"),
        Entry("apgd-t", Apgd(threat, loss, targets=targets, ranked=True), f"{words}, 100 steps, nearest classes first", on="survivors"),
        Entry("square", Square(threat, queries=500), "Square Attack on the margin, 500 queries", on="survivors"),
    )


def _transfer(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """What is crafted on another network, against the true labels, all 100 steps whether or not that network is fooled."""
    size = threat.eps / 10
    mim_100 = replace(mim(threat, steps=100, step_size=size), early=False)
    return (
        Entry("pgd-100", Pgd(threat, attack_loss("ce"), steps=100, step_size=size, early=False), "PGD, 100 steps of eps/10, uniform start"),
        Entry("mim-100", mim_100, "momentum iterative method, 100 steps of eps/10"),
    )


def from_sources(entries: Sequence[Entry], sources: Sequence[str]) -> tuple[Entry, ...]:
    """Every entry crafted on every source, in the order of the sources; their names tell them apart."""
    return tuple(
        replace(entry, name=f"{entry.name}@{source}", about=f"{entry.about}, crafted on {source}", source=number)
        for number, source in enumerate(sources)
        for entry in entries
    )


def _aa_reference(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    parts = standard_parts(num_classes)
    return tuple(Entry(part, ReferenceAttack(threat, part, num_classes), f"pyautoattack's {part}", on="survivors") for part in parts)


def _adaptive(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """For any network: AutoAttack, then its targeted part from another start, so never weaker than `aa`."""
    entries = _aa(threat, num_classes)
    return (*entries, replace(entries[1], name="apgd-t-again", about=f"{entries[1].about}, from another start"))


def gate_entries(threat: Threat, num_classes: int, heads: int, aux_weight: float) -> tuple[Entry, ...]:
    """Attacks that know the gates of a network with so many auxiliary heads; each is judged on the deployed decision.

    The first auxiliary head precedes every gate, so it is an ordinary network whose fall takes the gates along: it is attacked
    first. Then the gates forced to each target class while they are made to choose it, softened, straight through, and open;
    last what the papers call adaptive, the joint loss through the gates as they are. Not here yet: annealed temperatures, FAB
    and Square on the first head, transfer from other networks; so the result stays an upper bound.
    """
    loss, targets = _aim(num_classes)
    ce, to_targets = Apgd(threat, "ce"), Apgd(threat, loss, targets=targets)
    rows: list[tuple[str, Apgd, View | None, str]] = [
        *((f"apgd-ce@aux{number}", ce, auxiliary(number), f"auxiliary head {number}") for number in range(heads)),
        ("apgd-t@aux0", to_targets, auxiliary(0), "auxiliary head 0, towards each of the likeliest targets"),
        ("apgd-t@forced", Apgd(threat, "conjunction", targets=targets), FORCED, "gates forced to a target that they are made to choose"),
        ("apgd-ce@soft", ce, softened(1.0), "gates softened at temperature 1"),
        ("apgd-t@soft", to_targets, softened(0.3), "gates softened at temperature 0.3, towards each of the likeliest targets"),
        ("apgd-ce@straight", ce, straight(0.3), "gates as deployed, their gradient softened at temperature 0.3"),
        ("apgd-ce@open", ce, OPEN, "gates open"),
        ("apgd-ce@joint", Apgd(threat, "ce", aux_weight=aux_weight), None, "the joint loss of all heads, gates as deployed"),
    ]
    return tuple(Entry(name, attack, f"Auto-PGD, 100 steps, {words}", on="survivors", view=view) for name, attack, view, words in rows)


def joint_entries(name: str, threat: Threat, aux_weight: float) -> tuple[Entry, ...]:
    """For networks with auxiliary heads: attacks on the decision's loss + aux_weight * the mean of the auxiliary heads'.

    It is what the papers call adaptive (AGAIN 5.2.2, ANCRA IV.A), and still goes through gates that hide the gradient.
    """
    loss, words = attack_loss("ce", aux_weight), f"cross-entropy of the decision + {aux_weight:g} * the mean of the auxiliary heads'"

    def pgd(label: str, steps: int, size: float, step: str, readings: tuple[tuple[str, int], ...] | None = None) -> Entry:
        about = f"PGD on the {words}, {steps} steps of {step}, uniform start"
        return Entry(label, Pgd(threat, loss, steps=steps, step_size=size), about, readings=readings)

    if name == "quick":
        return (pgd("pgd-20-joint", 20, threat.eps / 4, "eps/4"),)
    if name == "paper":
        again = tuple((f"pgd-{k}-joint@eps/4", k) for k in (10, 20, 50, 100))
        ancra = pgd("pgd-40-joint@0.007", 40, 0.007 * threat.eps / (8 / 255), "0.007 at eps 8/255")
        return (pgd("pgd-100-joint@eps/4", 100, threat.eps / 4, "eps/4", again), ancra)
    return ()


SUITES = {
    suite.name: suite
    for suite in (
        Suite("quick", "FGSM, PGD-20, C&W-30: a look, an upper bound", _quick),
        Suite("paper", "the attacks of AGAIN's, StayFocused's and ANCRA's tables: an upper bound", _paper),
        Suite("fast", "short Auto-PGD runs on the nearest classes, long ones on survivors: an upper bound", _fast),
        Suite("aa", "standard AutoAttack", _aa),
        Suite("aa-plus", "standard AutoAttack with five restarts and Auto-PGD on the DLR loss", _aa_plus),
        Suite("adaptive", "AutoAttack with further starts, after attacks that know the network's gates", _adaptive),
        Suite(TRANSFER, "PGD-100 and MIM-100 crafted on other networks (--source): an upper bound", _transfer),
    )
}


REFERENCE = {"aa": Suite("aa", "standard AutoAttack as the authors' package runs it", _aa_reference)}


def notes(name: str, num_classes: int) -> list[str]:
    """What a reader of the suite's numbers must know."""
    few = name in ("fast", "aa", "aa-plus", "adaptive") and num_classes < 4
    return [f"{num_classes} classes: the targeted DLR loss needs four, so apgd-t follows the margin"] if few else []


def suite(name: str, engine: str = "native") -> Suite:
    """The suite of that name; engine `reference` has it run by pyautoattack, where that has it."""
    if engine == "reference" and name in SUITES:
        if name not in REFERENCE:
            raise UsageError(
                f"suite {name} has no reference engine", where="--engine", next=f"--engine reference runs {', '.join(REFERENCE)}"
            )
        return REFERENCE[name]
    if name not in SUITES:
        raise UsageError(f"there is no suite {name!r}", where="--suite", next="; ".join(f"{s.name}: {s.about}" for s in SUITES.values()))
    return SUITES[name]
