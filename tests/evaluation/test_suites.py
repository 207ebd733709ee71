"""Suites hold the attacks that they are documented to hold."""

from __future__ import annotations

import pytest

from advcli.attacks import Apgd, Fab, Pgd, Square, Threat
from advcli.attacks.reference import ReferenceAttack, standard_parts
from advcli.errors import UsageError
from advcli.evaluation.suites import SUITES, Entry, notes, suite

LINF = Threat("linf", 8 / 255)

# name: (steps, step size in units of 1/255, start, momentum), from the papers' sections on evaluation
QUICK = {"fgsm": (1, 8, "none", 0), "pgd-20": (20, 2, "uniform", 0), "cw-30": (30, 2, "uniform", 0)}
PAPER = {
    "fgsm": (1, 8, "none", 0),
    "pgd-100@eps/10": (100, 0.8, "uniform", 0),
    "pgd-100@eps/4": (100, 2, "uniform", 0),
    "cw-30@eps/10": (30, 0.8, "uniform", 0),
    "mim-20@eps/10": (20, 0.8, "none", 1),
    "fgsm-rs": (1, 8, "uniform", 0),
    "pgd-40@0.007": (40, 0.007 * 255, "uniform", 0),
    "cw-40@0.007": (40, 0.007 * 255, "uniform", 0),
}


def described(entry: Entry) -> tuple[int, float, str, float]:
    assert isinstance(entry.attack, Pgd)
    assert entry.attack.threat == LINF
    return entry.attack.steps, entry.attack.step_size * 255, entry.attack.start, entry.attack.momentum


@pytest.mark.parametrize(("name", "expected"), [("quick", QUICK), ("paper", PAPER)])
def test_fixed_attacks_are_as_documented(name: str, expected: dict[str, tuple[float, ...]]) -> None:
    entries = suite(name).entries(LINF, 10)
    assert [entry.name for entry in entries] == list(expected)
    for entry in entries:
        steps, size, start, momentum = described(entry)
        assert (steps, start, momentum) == (expected[entry.name][0], *expected[entry.name][2:])
        assert size == pytest.approx(expected[entry.name][1], rel=1e-12)
        assert entry.on == "all"


@pytest.mark.parametrize("label", ["eps/10", "eps/4"])
def test_the_paper_reads_one_ascent_at_four_places(label: str) -> None:
    (entry,) = (entry for entry in suite("paper").entries(LINF, 10) if entry.name == f"pgd-100@{label}")
    assert entry.readings == tuple((f"pgd-{k}@{label}", k) for k in (10, 20, 50, 100))


def test_steps_grow_with_the_ball() -> None:
    for name in ("quick", "paper"):
        small, large = (suite(name).entries(Threat("linf", eps), 10) for eps in (0.1, 0.3))
        for a, b in zip(small, large, strict=True):
            assert b.attack.step_size == pytest.approx(3 * a.attack.step_size)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("classes", "targets", "loss"),
    [(100, 9, "dlr-targeted"), (10, 9, "dlr-targeted"), (4, 3, "dlr-targeted"), (3, 2, "targeted"), (2, 1, "targeted")],
)
def test_aa_is_the_standard_ensemble_on_survivors(classes: int, targets: int, loss: str) -> None:
    """Croce and Hein 2020: APGD-CE, targeted APGD-DLR, targeted FAB with 100 steps and up to 9 targets, Square with 5,000 queries."""
    entries = suite("aa").entries(LINF, classes)
    assert [(entry.name, entry.on) for entry in entries] == [(name, "survivors") for name in ("apgd-ce", "apgd-t", "fab-t", "square")]
    assert [entry.attack for entry in entries] == [
        Apgd(LINF, "ce", steps=100, restarts=1),
        Apgd(LINF, loss, steps=100, targets=targets),  # type: ignore[arg-type]
        Fab(LINF, steps=100, targets=targets),
        Square(LINF, queries=5000, share=0.8),
    ]
    assert bool(notes("aa", classes)) == (classes < 4)


@pytest.mark.parametrize("classes", [10, 4, 3, 2])
def test_the_reference_is_the_authors_package(classes: int) -> None:
    entries = suite("aa", "reference").entries(LINF, classes)
    assert all(isinstance(entry.attack, ReferenceAttack) and entry.on == "survivors" for entry in entries)
    assert tuple(entry.name for entry in entries) == standard_parts(classes)


def test_a_suite_without_reference_says_so() -> None:
    with pytest.raises(UsageError, match="no reference engine"):
        suite("quick", "reference")


def test_an_unknown_suite_names_the_known() -> None:
    with pytest.raises(UsageError, match="no suite 'autoattack'") as raised:
        suite("autoattack")
    assert all(name in raised.value.next for name in SUITES)
    assert raised.value.where == "--suite"
