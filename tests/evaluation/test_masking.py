"""Flags need an effect over 2 points and exact evidence under 0.001; just below either, nothing is raised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcli.evaluation.masking import CHECKS, EFFECT, FEWEST, P_VALUE, SEVERITY, Flag, flags, raised, reasons, verdict


def found(broken: dict[str, Any], parts: dict[str, str] | None = None, **rest: Any) -> list[str]:
    """Names of the flags that are raised."""
    return [flag["name"] for flag in raised(flags(broken, parts or {}, rest.get("probes", {}), rest.get("traits", {})))]


def pair(only_weak: int, only_strong: int, n: int, weak: str = "fgsm", strong: str = "pgd-20") -> dict[str, Any]:
    """Two columns of n examples with these discordant counts, and some on which both or neither succeed."""
    a, b = np.zeros(n, bool), np.zeros(n, bool)
    a[:only_weak] = b[only_weak : only_weak + only_strong] = True
    both = (n - only_weak - only_strong) // 2
    a[n - both :] = b[n - both :] = True
    return {weak: a, strong: b}


def test_the_thresholds_are_the_documented_ones() -> None:
    assert (EFFECT, P_VALUE) == (0.02, 0.001)


# (only the weaker attack, only the stronger, n, raised): p of 11 : 0 is 2 / 2**11 = 0.00098, of 10 : 0 0.00195
AROUND = [
    (11, 0, 549, True),  # 2.004 points
    (11, 0, 550, False),  # 2 points exactly
    (11, 0, 560, False),
    (10, 0, 100, False),  # 10 points, p = 0.00195
    (11, 0, 100, True),
    (14, 1, 100, True),  # p = 2 * 16 / 2**15 = 0.00098
    (13, 1, 100, False),  # p = 2 * 15 / 2**14 = 0.0018
    (60, 30, 1000, False),  # 3 points, p = 0.0021
    (60, 28, 1000, True),  # 3.2 points, p = 0.0008
    (0, 50, 100, False),  # the stronger one is stronger, as it should be
    (0, 0, 100, False),
]


@pytest.mark.parametrize(("weak", "strong", "n", "is_raised"), AROUND)
@pytest.mark.parametrize("names", [("fgsm", "pgd-20"), ("fgsm", "pgd-100@eps/4"), ("fgsm-rs", "pgd-40@0.007")])
def test_one_step_that_beats_many(weak: int, strong: int, n: int, is_raised: bool, names: tuple[str, str]) -> None:
    (flag,) = flags(pair(weak, strong, n, *names), {}, {}, {})
    assert flag.keys() == {"name", "raised", "value", "threshold", "p", "means", "source", "message"}
    assert (flag["name"], flag["raised"]) == ("single-step-beats-iterative", is_raised)
    assert flag["value"] == pytest.approx((weak - strong) / n, abs=1e-6)
    assert flag["threshold"] == 0.02
    assert (flag["p"] < 0.001 and flag["value"] > 0.02) == is_raised
    assert all(name in flag["message"] for name in names)


@pytest.mark.parametrize(("weak", "strong", "n", "is_raised"), AROUND)
@pytest.mark.parametrize("probe", ["more-steps-not-stronger", "noise-beats-gradient", "unbounded-attack-fails", "zero-gradients"])
def test_a_probe_is_a_pair_too_and_what_was_not_probed_does_not_count(weak: int, strong: int, n: int, is_raised: bool, probe: str) -> None:
    a, b = pair(weak, strong, n).values()
    column = np.concatenate([a.astype(np.int8) + 2 * b.astype(np.int8), np.full(500, -1, np.int8)])
    (flag,) = flags({}, {}, {probe: column}, {})
    assert (flag["name"], flag["raised"], flag["source"]) == (probe, is_raised, CHECKS[probe].source)
    assert flag["value"] == pytest.approx((weak - strong) / n, abs=1e-6)


@pytest.mark.parametrize(("breaks", "n", "is_raised"), [(11, 549, True), (11, 550, False), (10, 100, False), (11, 100, True)])
def test_a_black_box_that_breaks_what_gradients_do_not(breaks: int, n: int, is_raised: bool) -> None:
    square = np.arange(n) < breaks
    white = np.arange(n) >= n - 20
    assert found({"square": square, "apgd-ce": white, "fab-t": np.zeros(n, bool)}) == (["black-box-beats-white-box"] if is_raised else [])


def test_the_white_box_attacks_count_together() -> None:
    n = 100
    square, rows = np.arange(n) < 40, np.arange(n)
    halves = {"square": square, "apgd-ce": rows < 20, "apgd-t": (rows >= 20) & (rows < 32)}
    assert found(halves) == []  # 8 : 0 is no evidence
    assert len(found({**halves, "apgd-t": (rows >= 20) & (rows < 29)})) == 1  # 11 : 0 is


@pytest.mark.parametrize(("name", "names"), [("apgd-t@forced", {"adaptive-beats-autoattack"}), ("pgd-100@open", set(CHECKS))])
def test_what_knows_the_network_against_autoattack(name: str, names: set[str]) -> None:
    """Only where AutoAttack ran on its own survivors, in suite full; transfer from the open twin has a flag of its own."""
    rows = np.arange(100)
    broken, parts = {"apgd-ce": rows < 20, "square": rows < 20, name: rows < 40}, {"apgd-ce": "aa", "square": "aa", name: "adaptive"}
    expected = names & {"transfer-beats-white-box", "adaptive-beats-autoattack"}
    assert set(found(broken, parts)) == expected
    assert found({**broken, name: rows < 30}, parts) == [], "ten images are no evidence"
    assert found(broken, dict.fromkeys(broken, "adaptive")) == []


def test_pgd_flatters_only_a_network_that_has_attacks_of_its_own() -> None:
    """On an honest network the gap between PGD and everything is no sign of anything, however sure."""
    rows = np.arange(100)
    broken = {"pgd-40@0.007": rows < 8, "apgd-t": rows < 14, "apgd-t-again": rows < 20, "apgd-ce@aux0": rows < 20}
    parts = dict.fromkeys(broken, "adaptive") | {"pgd-40@0.007": "paper", "apgd-t": "aa"}
    assert found(broken, parts) == ["pgd-flatters"]
    assert found(broken | {"apgd-t-again": rows < 18, "apgd-ce@aux0": rows < 18}, parts) == [], "ten images are no evidence"
    del broken["apgd-ce@aux0"], parts["apgd-ce@aux0"]
    assert found(broken, parts) == []


@pytest.mark.parametrize(
    ("trait", "value", "name"),
    [
        ("random", "row", "unstable-predictions"),
        ("companions", True, "depends-on-batch"),
        ("operations", ["round"], "blocked-gradients"),
        ("probabilities", True, "returns-probabilities"),
    ],
)
def test_what_is_odd_about_a_network_leaves_an_upper_bound(trait: str, value: Any, name: str) -> None:
    none = {"random": None, "companions": False, "operations": [], "probabilities": False}
    quiet, loud = flags({}, {}, {}, none), flags({}, {}, {}, none | {trait: value})
    assert len(quiet) == 4
    assert raised(quiet) == []
    assert [flag["name"] for flag in raised(loud)] == [name]
    assert verdict("aa", "test", quiet) == "trustworthy"
    assert verdict("aa", "test", loud) == "upper bound"
    assert "round" in reasons("aa", "test", loud)[0] or trait != "operations"


def test_attacks_that_were_not_run_raise_nothing() -> None:
    everything = np.ones(100, bool)
    assert flags({}, {}, {}, {}) == []
    assert flags({"fgsm": everything}, {}, {}, {}) == []
    assert flags({"square": everything}, {}, {}, {}) == []


def a_flag(means: str, is_raised: bool = True) -> Flag:
    return {"name": "x", "raised": is_raised, "means": means, "message": "it is odd"}


@pytest.mark.parametrize(
    ("suite", "found", "expected"),
    [
        ("quick", [], "upper bound"),
        ("paper", [], "upper bound"),
        ("aa", [], "trustworthy"),
        ("full", [], "trustworthy"),
        ("aa", [a_flag("masked", False)], "trustworthy"),
        ("aa", [a_flag("upper bound")], "upper bound"),
        ("aa", [a_flag("upper bound"), a_flag("masked")], "masked"),
        ("quick", [a_flag("masked")], "masked"),
    ],
)
def test_verdicts_are_the_least_that_anything_allows(suite: str, found: list[Flag], expected: str) -> None:
    assert verdict(suite, "test", found) == expected
    for split, gated in (("train", False), ("test", True)):
        assert verdict(suite, split, found, gated=gated) == max(expected, "upper bound", key=SEVERITY.index)
        assert reasons(suite, split, found, gated=gated)
    assert bool(reasons(suite, "test", found)) == (expected != "trustworthy"), "a verdict has its reasons, and trust needs none"


def test_on_fewer_images_than_could_raise_a_flag_nothing_is_trustworthy() -> None:
    """Even where every single image speaks against the network."""
    assert FEWEST == 11
    for n, is_raised in ((FEWEST - 1, False), (FEWEST, True)):
        probe = np.ones(n, np.int8)
        everything = flags({}, {}, {"zero-gradients": probe}, {})
        assert [flag["raised"] for flag in everything] == [is_raised]
    assert verdict("aa", "test", [], n=FEWEST) == "trustworthy"
    assert reasons("aa", "test", [], n=FEWEST) == []
    assert verdict("aa", "test", [], n=FEWEST - 1) == "upper bound"
    assert "10 images are too few" in reasons("aa", "test", [], n=FEWEST - 1)[0]
    assert verdict("aa", "test", [a_flag("masked")], n=FEWEST - 1) == "masked"
