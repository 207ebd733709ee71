"""Suites hold the attacks that they are documented to hold."""

from __future__ import annotations

import pytest

from advcli.attacks import Pgd, Threat
from advcli.attacks.reference import ReferenceAttack
from advcli.errors import UsageError
from advcli.evaluation.suites import SUITES, Entry, suite

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
    ("classes", "parts"),
    [
        (10, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (2, ["apgd-ce", "fab-t", "square"]),
    ],
)
def test_aa_is_the_standard_ensemble_on_survivors(classes: int, parts: list[str]) -> None:
    entries = suite("aa").entries(LINF, classes)
    assert [entry.name for entry in entries] == parts
    assert {entry.on for entry in entries} == {"survivors"}
    assert all(isinstance(e.attack, ReferenceAttack) and (e.attack.part, e.attack.num_classes) == (e.name, classes) for e in entries)


def test_an_unknown_suite_names_the_known() -> None:
    with pytest.raises(UsageError, match="no suite 'autoattack'") as raised:
        suite("autoattack")
    assert all(name in raised.value.next for name in SUITES)
    assert raised.value.where == "--suite"
