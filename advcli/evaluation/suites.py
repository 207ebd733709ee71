"""Which attacks a suite runs, on whom, and under which names their accuracies are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from advcli.attacks import Apgd, Fab, Pgd, Square, Threat, cw, fgsm, mim
from advcli.attacks.losses import attack_loss
from advcli.attacks.reference import ReferenceAttack, standard_parts
from advcli.errors import UsageError
from advcli.evaluation.adaptive import random_entries
from advcli.evaluation.entries import Entry, aim

PROTOCOL = 5
"""Raised whenever a suite's composition or a verdict's rule changes, so that numbers are compared only within one."""

TRANSFER = "transfer"

PROBED = ("aa", "aa-plus", "aa-rand", "adaptive", "full")
"""Suites that look for signs of masked gradients: those whose number might be believed."""


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


def _aa(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """Standard AutoAttack (Croce, Hein 2020), native. Below four classes its targeted DLR loss is not defined: the margin instead."""
    loss, targets = aim(num_classes)
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
    """Most of aa's strength for a small part of its cost: short runs first, targets by their estimated distance (Melamed, Hein 2024, MALT).

    Whoever stands then gets longer runs on the four nearest targets, nine where there are more than ten classes. FAB is left out, and
    Square's 500 queries are a sign of masked gradients rather than an attack, so this is an upper bound.
    """
    loss, targets = aim(num_classes)
    words = f"Auto-PGD on the {'targeted DLR loss' if num_classes >= 4 else 'targeted margin'}"
    short = Apgd(threat, loss, steps=20, targets=min(3, targets), ranked=True)
    longer = Apgd(threat, loss, steps=50, targets=min(4 if num_classes <= 10 else 9, targets), ranked=True)
    return (
        Entry("apgd-ce-20", Apgd(threat, "ce", steps=20), "Auto-PGD on the cross-entropy, 20 steps", on="survivors"),
        Entry("apgd-t-20", short, f"{words}, 20 steps on the three nearest classes", on="survivors"),
        Entry("apgd-t-50", longer, f"{words}, 50 steps on the {longer.targets} nearest classes", on="survivors"),
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


def _full(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    """AutoAttack first, on its own survivors, so that its own worst case is seen; then the papers' attacks; then what `adaptive` adds."""
    *standard, again = _adaptive(threat, num_classes)
    aa = [replace(entry, part="aa") for entry in standard]
    paper = [replace(entry, part="paper") for entry in _paper(threat, num_classes)]
    return (*aa, *paper, replace(again, part="adaptive"))


def _aa_rand(threat: Threat, num_classes: int) -> tuple[Entry, ...]:
    return tuple(replace(entry, part="") for entry in random_entries(threat, num_classes))


SUITES = {
    suite.name: suite
    for suite in (
        Suite("quick", "FGSM, PGD-20, C&W-30: a look, an upper bound", _quick),
        Suite("paper", "the attacks of AGAIN's, StayFocused's and ANCRA's tables: an upper bound", _paper),
        Suite("fast", "short Auto-PGD runs on the nearest classes, longer ones on survivors: an upper bound", _fast),
        Suite("aa", "standard AutoAttack", _aa),
        Suite("aa-plus", "standard AutoAttack with five restarts and Auto-PGD on the DLR loss", _aa_plus),
        Suite("aa-rand", "AutoAttack for random networks: gradients averaged over 20 draws; an upper bound", _aa_rand),
        Suite("adaptive", "attacks that know how the network hides its gradient, then AutoAttack and more", _adaptive),
        Suite("full", "everything: AutoAttack, the papers' attacks, adaptive; its worst case is the headline", _full),
        Suite(TRANSFER, "PGD-100 and MIM-100 crafted on other networks (--source): an upper bound", _transfer),
    )
}


REFERENCE = {"aa": Suite("aa", "standard AutoAttack as the authors' package runs it", _aa_reference)}


def notes(name: str, num_classes: int) -> list[str]:
    """What a reader of the suite's numbers must know."""
    few = name in ("fast", "aa", "aa-plus", "adaptive", "full") and num_classes < 4
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
