"""Which attacks leave out what they foresee to come to nothing: only those on what cannot jump."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from advcli.attacks import Apgd, Fab, Square, Threat
from advcli.evaluation.composition import compose
from advcli.evaluation.inspection import Traits
from advcli.models import Architecture, build
from advcli.recipe.schema import ReverseAttention


def sparing(traits: Traits, *, gated: bool = False, suite: str = "full", head: str = "final") -> dict[str, bool]:
    """Of every Auto-PGD, FAB and Square that a job gets, by name."""
    gates = (ReverseAttention(name="reverse-attention", at=["layer3"]),) if gated else ()
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=gates))
    job: Any = SimpleNamespace(
        suite=suite,
        engine="native",
        threat=Threat("linf", 0.1),
        sources=(),
        head=head,
        aux_weight=2.0,
        gated=gated and head == "final",
        loaded=SimpleNamespace(network=network, architecture=SimpleNamespace(num_classes=10)),
    )
    return {entry.name: entry.attack.spares for entry in compose(job, traits) if isinstance(entry.attack, (Apgd, Fab, Square))}


@pytest.mark.parametrize("suite", ["aa", "aa-plus", "fast", "adaptive", "full"])
def test_on_an_ordinary_network_all_do(suite: str) -> None:
    found = sparing(Traits(), suite=suite)
    assert {"square", "apgd-t-50" if suite == "fast" else "apgd-t"} <= set(found)
    assert all(found.values())


@pytest.mark.parametrize(
    "traits", [Traits(random="row"), Traits(companions=True), Traits(operations=("round",)), Traits(probabilities=True)]
)
@pytest.mark.parametrize("gated", [False, True])
def test_where_gradients_are_blocked_or_answers_change_none_does(traits: Traits, gated: bool) -> None:
    assert not any(sparing(traits, gated=gated).values())


@pytest.mark.parametrize("suite", ["aa", "adaptive", "full"])
def test_what_is_judged_through_gates_spares_nothing_whatever_it_follows(suite: str) -> None:
    found = sparing(Traits(), gated=True, suite=suite)
    assert {"square", "fab-t", "apgd-t"} <= set(found)
    assert suite == "aa" or {"square@aux0", "fab-t@aux0", "apgd-ce@straight", "apgd@enumerated"} <= set(found)
    assert not any(found.values())


def test_the_open_twin_of_a_gated_network_is_an_ordinary_one() -> None:
    assert all(sparing(Traits(), gated=True, suite="aa", head="open").values())
