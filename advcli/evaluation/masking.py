"""Signs, read from a ledger, that an evaluation is too kind: each needs an effect over 2 points and exact paired evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advcli.measures import mcnemar

EFFECT = 0.02
P_VALUE = 0.001
FEWEST = next(n for n in range(1, 100) if mcnemar(n, 0) < P_VALUE)
"""Images, eleven, of fewer than which no check of pairs can be raised, whatever the network hides."""

Flag = dict[str, Any]
Verdict = Literal["trustworthy", "upper bound", "masked"]
Column = NDArray[np.bool_]
Broken = dict[str, Column]

SEVERITY: tuple[Verdict, ...] = ("trustworthy", "upper bound", "masked")
UPPER_BOUNDS = ("quick", "paper", "transfer", "fast", "aa-rand")
"""Suites of a few attacks, whose worst case is never more than an upper bound (Carlini et al. 2019)."""

_WHITE_BOX = ("apgd", "fab-", "pgd-", "cw-", "mim-", "fgsm")
_TRANSFER = ("pgd-100@open", "mim-100@open")
_PGD = "pgd-40@0.007"
_KNOWING = ("@aux0", "@bpda", "@eot")  # what only a network that hides its gradient gets
_STEPS = (("fgsm", "pgd-20"), ("fgsm", "pgd-100@eps/4"), ("fgsm-rs", "pgd-40@0.007"))

_ATHALYE, _CARLINI = "Athalye et al. 2018", "Carlini et al. 2019"
_PINTOR, _ZIMMERMANN = "Pintor et al. 2022", "Zimmermann et al. 2022"


class Check(NamedTuple):
    """What a raised flag amounts to, where it is from, and what it says. means: the best verdict that it leaves."""

    means: Verdict
    source: str
    message: str


CHECKS = {
    "single-step-beats-iterative": Check(
        "masked", _ATHALYE, "one step ({single}) breaks more images than many ({many}): the gradient misleads iterative attacks"
    ),
    "black-box-beats-white-box": Check(
        "masked", _ATHALYE, "a black-box attack (square) breaks images that no gradient attack broke: gradients are masked"
    ),
    "transfer-beats-white-box": Check(
        "masked", _CARLINI, "examples carried over from the same weights with open gates break images that AutoAttack did not"
    ),
    "adaptive-beats-autoattack": Check(
        "masked", "Tramer et al. 2020", "attacks that know how the network hides its gradient break images that AutoAttack did not"
    ),
    "pgd-flatters": Check(
        "upper bound", _CARLINI, "the network hides its gradient, and PGD on its final logits is far kinder than everything together"
    ),
    "more-steps-not-stronger": Check("masked", _CARLINI, "PGD ends worse after 100 steps than after 10"),
    "silent-success": Check("upper bound", _PINTOR, "PGD passes adversarial points and comes back from them"),
    "loss-not-rising": Check("masked", _PINTOR, "the loss is no higher after 100 steps of ascent than before them"),
    "robust-above-clean": Check("masked", _ATHALYE, "PGD repairs more images than it breaks: robust accuracy is above clean accuracy"),
    "noise-beats-gradient": Check("masked", _ATHALYE, "random points in the ball break images that PGD did not"),
    "unbounded-attack-fails": Check(
        "masked", _CARLINI, "at eps 0.5, where every image can be made grey, more images stand than the largest class has"
    ),
    "zero-gradients": Check("masked", _PINTOR, "the margin's gradient is exactly zero at the image"),
    "saturated-loss": Check("upper bound", _CARLINI, "the cross-entropy's gradient is exactly zero: attacks that follow it are blind"),
    "active-test-fails": Check("masked", _ZIMMERMANN, "Auto-PGD does not find adversarial points that were planted for it"),
    "fast-search-misses": Check(
        "upper bound", "Carlini et al. 2019", "searching in float32 breaks more than the fast search did: --search-precision fp32"
    ),
    "unstable-predictions": Check("upper bound", _ATHALYE, "the network is random: its answers differ when it is asked twice"),
    "depends-on-batch": Check("upper bound", _CARLINI, "an image's logits depend on the images beside it"),
    "blocked-gradients": Check("upper bound", _ATHALYE, "operations block the gradient: {operations}"),
    "returns-probabilities": Check("upper bound", _CARLINI, "the network returns probabilities, on which losses of logits are weak"),
}


def flags(broken: Broken, parts: Mapping[str, str], probes: Mapping[str, NDArray[np.int8]], traits: Mapping[str, Any]) -> list[Flag]:
    """Every check that could be made, raised or not, in the order of CHECKS.

    broken: reading to (n,) bool, whether that attack alone broke the example. parts: reading to the part of the suite that it is of.
    probes: name to (n,), a pair of outcomes weak + 2 * strong, -1 for images that were not probed. traits: of the network.
    """
    found = [*_of_readings(broken, parts), *_of_probes(probes), *_of_traits(traits)]
    order = list(CHECKS)
    return sorted(found, key=lambda flag: order.index(flag["name"]))


def raised(found: Iterable[Flag]) -> list[Flag]:
    return [flag for flag in found if flag["raised"]]


def _of_readings(broken: Broken, parts: Mapping[str, str]) -> Iterable[Flag]:
    for single, iterative in _STEPS:
        if single in broken and iterative in broken:
            yield _compare("single-step-beats-iterative", broken[single], broken[iterative], single=single, many=iterative)
    if "square" in broken:
        white = _union(rows for name, rows in broken.items() if name.startswith(_WHITE_BOX))
        if white is not None:
            yield _compare("black-box-beats-white-box", broken["square"] | white, white)
    if _PGD in broken and any(name.endswith(_KNOWING) for name in broken):
        everything = _union(broken.values())
        assert everything is not None
        yield _compare("pgd-flatters", everything, broken[_PGD])
    standard = _union(rows for name, rows in broken.items() if parts.get(name) == "aa")
    for check, others in (
        ("transfer-beats-white-box", _union(broken[name] for name in _TRANSFER if name in broken)),
        ("adaptive-beats-autoattack", _union(rows for name, rows in broken.items() if parts.get(name) == "adaptive")),
    ):
        if standard is not None and others is not None:
            yield _compare(check, others | standard, standard)


def _union(columns: Iterable[Column]) -> Column | None:
    rows = list(columns)
    return np.logical_or.reduce(rows) if rows else None


def _of_probes(probes: Mapping[str, NDArray[np.int8]]) -> Iterable[Flag]:
    for name, column in probes.items():
        pairs = column[column >= 0]
        if len(pairs):
            yield _compare(name, (pairs & 1).astype(bool), (pairs & 2).astype(bool))


def _of_traits(traits: Mapping[str, Any]) -> Iterable[Flag]:
    """What holds for the network or does not, without a number."""
    for name, key in (
        ("unstable-predictions", "random"),
        ("depends-on-batch", "companions"),
        ("blocked-gradients", "operations"),
        ("returns-probabilities", "probabilities"),
    ):
        if key in traits:
            yield _flag(name, bool(traits[key]), None, None, operations=", ".join(traits.get("operations", [])))


def _compare(name: str, weak: Column, strong: Column, **words: str) -> Flag:
    """Raised where the attack that should be weaker broke more, by enough and surely enough."""
    only_weak, only_strong = int((weak & ~strong).sum()), int((strong & ~weak).sum())
    effect, p = (only_weak - only_strong) / max(1, len(weak)), mcnemar(only_weak, only_strong)
    return _flag(name, effect > EFFECT and p < P_VALUE, round(effect, 6), p, **words)


def _flag(name: str, is_raised: bool, value: float | None, p: float | None, **words: str) -> Flag:
    """value: share of images in favour of the attack that should be weaker, over threshold and p under 0.001 where it is raised."""
    check = CHECKS[name]
    threshold = None if value is None else EFFECT
    whole: Flag = {"name": name, "raised": is_raised, "value": value, "threshold": threshold, "p": p, "means": check.means}
    return whole | {"source": check.source, "message": check.message.format(**words)}


def verdict(suite: str, split: str, found: Iterable[Flag], *, gated: bool = False, n: int = FEWEST) -> Verdict:
    """The least that the suite, the images and any raised flag allow.

    `upper bound` for suites of a few fixed attacks (Carlini et al. 2019), on images that the network was trained on, on n of them too
    few for a flag, and through gates that hide the gradient: attacks that know them are the tightest bound here and no proof.
    """
    bounded = suite in UPPER_BOUNDS or split != "test" or gated or n < FEWEST
    return worst(["upper bound" if bounded else "trustworthy", *(flag["means"] for flag in raised(found))])


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that trusts least."""
    return max(verdicts, key=SEVERITY.index)


def reasons(suite: str, split: str, found: Iterable[Flag], *, gated: bool = False, n: int = FEWEST) -> list[str]:
    """Why the verdict is not trustworthy, in plain words; empty where it is."""
    few = [flag["message"] for flag in raised(found)]
    if gated:
        few.append("the network gates its features by its own decision, which hides the gradient")
    if split != "test":
        few.append("the network was trained on these images")
    if n < FEWEST:
        few.append(f"{n} images are too few for a sign of masked gradients to show: {FEWEST} at least")
    if suite in UPPER_BOUNDS:
        few.append(f"suite {suite} is a few attacks, and others may break more")
    return few
