"""Suites hold the attacks that they are documented to hold."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from advcli.attacks import Apgd, Fab, Pgd, Square, Threat
from advcli.attacks.expectation import DRAWS
from advcli.attacks.reference import ReferenceAttack, standard_parts
from advcli.cli.app import app
from advcli.errors import UsageError
from advcli.evaluation.entries import Entry
from advcli.evaluation.masking import verdict
from advcli.evaluation.suites import PROBED, SUITES, from_sources, notes, suite

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


@pytest.mark.parametrize(("classes", "targets", "loss"), [(10, 9, "dlr-targeted"), (3, 2, "targeted"), (2, 1, "targeted")])
def test_aa_plus_holds_aa_with_more_restarts(classes: int, targets: int, loss: str) -> None:
    """Croce and Hein 2020's `plus` but for untargeted FAB: five restarts of APGD-CE and of APGD-DLR, then the targeted attacks, Square."""
    entries = suite("aa-plus").entries(LINF, classes)
    dlr = {"apgd-dlr": Apgd(LINF, "dlr", steps=100, restarts=5)} if classes >= 3 else {}
    assert {entry.name: entry.attack for entry in entries} == {
        "apgd-ce": Apgd(LINF, "ce", steps=100, restarts=5),
        **dlr,
        "apgd-t": Apgd(LINF, loss, steps=100, targets=targets),  # type: ignore[arg-type]
        "fab-t": Fab(LINF, steps=100, targets=targets),
        "square": Square(LINF, queries=5000, share=0.8),
    }
    assert entries[-1].name == "square", "last, so that a black box that breaks what gradients do not is seen"
    assert {entry.on for entry in entries} == {"survivors"}
    assert bool(notes("aa-plus", classes)) == (classes < 4)


@pytest.mark.parametrize(
    ("classes", "targets", "loss"), [(100, 9, "dlr-targeted"), (10, 4, "dlr-targeted"), (3, 2, "targeted"), (2, 1, "targeted")]
)
def test_fast_goes_from_short_to_long(classes: int, targets: int, loss: str) -> None:
    entries = suite("fast").entries(LINF, classes)
    assert [(entry.name, entry.on) for entry in entries] == [
        (name, "survivors") for name in ("apgd-ce-20", "apgd-t-20", "apgd-t-50", "square")
    ]
    assert [entry.attack for entry in entries] == [
        Apgd(LINF, "ce", steps=20),
        Apgd(LINF, loss, steps=20, targets=min(3, targets), ranked=True),  # type: ignore[arg-type]
        Apgd(LINF, loss, steps=50, targets=targets, ranked=True),  # type: ignore[arg-type]
        Square(LINF, queries=500),
    ]
    whole = suite("aa").entries(LINF, classes)
    assert sum(e.attack.passes for e in entries) < sum(e.attack.passes for e in whole) / 4 or classes < 10


def test_transfer_is_pgd_and_mim_of_100_steps_on_each_source() -> None:
    entries = from_sources(suite("transfer").entries(LINF, 10), ["a", "b"])
    assert [(entry.name, entry.source) for entry in entries] == [("pgd-100@a", 0), ("mim-100@a", 0), ("pgd-100@b", 1), ("mim-100@b", 1)]
    for entry in entries:
        steps, size, start, momentum = described(entry)
        assert (steps, start, momentum) == ((100, "uniform", 0) if entry.name.startswith("pgd") else (100, "none", 1))
        assert size == pytest.approx(0.8)
        assert not entry.attack.early  # type: ignore[union-attr]
        assert entry.on == "all"
        assert entry.about.endswith(f"crafted on {entry.name[-1]}")


@pytest.mark.parametrize("name", SUITES)
def test_only_autoattack_and_more_is_more_than_an_upper_bound(name: str) -> None:
    whole = name in ("aa", "aa-plus", "adaptive", "full")
    assert verdict(name, "test", []) == ("trustworthy" if whole else "upper bound")
    assert ("upper bound" in SUITES[name].about) == (not whole)
    assert (name in PROBED) == (whole or name == "aa-rand"), "what might be believed is probed"


def test_full_holds_autoattack_first_then_the_papers_then_more() -> None:
    entries = suite("full").entries(LINF, 10)
    parts = [entry.part for entry in entries]
    assert parts == ["aa"] * 4 + ["paper"] * len(PAPER) + ["adaptive"]
    others = [*suite("aa").entries(LINF, 10), *suite("paper").entries(LINF, 10), suite("adaptive").entries(LINF, 10)[-1]]
    assert [(entry.name, entry.on, entry.readings) for entry in entries] == [(entry.name, entry.on, entry.readings) for entry in others]


def test_adaptive_holds_autoattack_and_its_targets_again() -> None:
    *first, again = suite("adaptive").entries(LINF, 10)
    assert tuple(first) == suite("aa").entries(LINF, 10)
    assert (again.attack, again.name) == (first[1].attack, "apgd-t-again")


@pytest.mark.parametrize(("classes", "second"), [(10, "dlr"), (3, "dlr"), (2, "margin")])
def test_rand_is_autoattacks_composition_for_random_networks(classes: int, second: str) -> None:
    """Croce and Hein 2020's `rand`: APGD-CE and APGD-DLR, 100 steps, one restart, 20 draws; no FAB, no Square."""
    entries = suite("aa-rand").entries(LINF, classes)
    assert [entry.attack for entry in entries] == [Apgd(LINF, "ce"), Apgd(LINF, second)]  # type: ignore[arg-type]
    assert {entry.surrogate for entry in entries} == {"expected"}
    assert DRAWS == 20


def test_help_names_every_suite() -> None:
    text = " ".join(CliRunner().invoke(app, ["attack", "--help"]).stdout.replace("│", " ").split())
    assert f"{', '.join(list(SUITES)[:-1])} or {list(SUITES)[-1]}" in text


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
