"""Which attacks a network gets by being looked at, what they cost, and that they are never weaker than AutoAttack."""

from __future__ import annotations

import pytest

from advcli.attacks import Apgd, Fab, Square, Threat
from advcli.attacks.pool import PooledAttack
from advcli.evaluation.adaptive import gate_entries, joint_entries, random_entries, substitute_entries
from advcli.evaluation.entries import Entry
from advcli.evaluation.suites import suite

LINF = Threat("linf", 8 / 255)


def passes(entries: tuple[Entry, ...]) -> int:
    """Forwards and backwards of an image that nothing breaks."""
    return sum(entry.attack.passes for entry in entries if isinstance(entry.attack, PooledAttack))


def gates(classes: int = 10, heads: int = 1, exact: bool = True) -> tuple[Entry, ...]:
    return gate_entries(LINF, classes, heads, 2.0, exact=exact)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("exact", [True, False])
def test_the_first_head_gets_all_of_autoattack_and_the_black_box_comes_last(heads: int, exact: bool) -> None:
    entries = {entry.name: entry for entry in gates(10, heads, exact)}
    assert len(entries) == len(gates(10, heads, exact)), "names tell attacks apart"
    own = [entries[name].attack for name in ("apgd-ce@aux0", "apgd-t@aux0", "fab-t@aux0", "square@aux0")]
    assert own == [entry.attack for entry in suite("aa").entries(LINF, 10)]
    assert list(entries)[-1] == "square@aux0"
    assert [name for name in entries if name.startswith("apgd-ce@aux")] == [f"apgd-ce@aux{number}" for number in range(heads)]
    assert any("enumerated" in name for name in entries) == exact
    assert {entry.on for entry in entries.values()} == {"survivors"}
    assert {entry.part for entry in entries.values()} == {"adaptive"}


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_few_classes_have_few_targets(classes: int) -> None:
    for entry in (*gates(classes), *substitute_entries(LINF, classes)):
        if isinstance(entry.attack, Apgd | Fab) and entry.attack.is_targeted:
            assert entry.attack.runs == min(9, classes - 1)
        if isinstance(entry.attack, Apgd) and classes < 4:
            assert "dlr" not in entry.attack.loss
    assert [entry.attack.loss for entry in random_entries(LINF, classes)] == ["ce", "dlr" if classes > 2 else "margin"]  # type: ignore[union-attr]


def test_adaptive_costs_what_is_promised() -> None:
    """For an image that nothing breaks, in passes: at most 1.5 times AutoAttack on a plain network, 4 times on a gated one."""
    aa, plain = passes(suite("aa").entries(LINF, 10)), passes(suite("adaptive").entries(LINF, 10))
    assert plain <= 1.5 * aa
    for heads in (1, 2):
        assert plain + passes(gates(10, heads)) <= 4 * aa


def test_relays_and_annealing_go_where_they_are_said_to_go() -> None:
    entries = {entry.name: entry.attack for entry in gates()}
    relay, annealed = entries["apgd-t@relay"], entries["apgd-t@annealed"]
    assert isinstance(relay, Apgd)
    assert isinstance(annealed, Apgd)
    weights = [stage["weight"] for stage in relay.stages]
    assert weights[0] == 0, "the gates alone first"
    assert weights == sorted(weights)
    temperatures = [stage["temperature"] for stage in annealed.stages]
    assert temperatures == sorted(temperatures, reverse=True)
    assert (temperatures[0], temperatures[-1]) == (1.0, 0.05)


def test_the_papers_adaptive_form_is_the_joint_loss() -> None:
    names = {name: [entry.name for entry in joint_entries(name, LINF, 2.0)] for name in ("quick", "paper", "full", "aa", "adaptive")}
    assert names == {
        "quick": ["pgd-20-joint"],
        "paper": ["pgd-100-joint@eps/4", "pgd-40-joint@0.007"],
        "full": ["pgd-100-joint@eps/4", "pgd-40-joint@0.007"],
        "aa": [],
        "adaptive": [],
    }
    assert {entry.part for entry in joint_entries("full", LINF, 2.0)} == {"adaptive"}, "it knows the heads"
    assert not any(isinstance(entry.attack, Square) for entry in joint_entries("full", LINF, 2.0))
