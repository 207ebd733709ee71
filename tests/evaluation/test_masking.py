"""Flags need an effect over 2 points and exact evidence under 0.001; just below either, nothing is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcli.evaluation.masking import EFFECT, P_VALUE, flags, verdict


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


@pytest.mark.parametrize(("weak", "strong", "n", "raised"), AROUND)
@pytest.mark.parametrize("names", [("fgsm", "pgd-20"), ("fgsm", "pgd-100@eps/4"), ("fgsm-rs", "pgd-40@0.007")])
def test_one_step_that_beats_many(weak: int, strong: int, n: int, raised: bool, names: tuple[str, str]) -> None:
    found = flags(pair(weak, strong, n, *names))
    assert [flag["name"] for flag in found] == (["single-step-beats-iterative"] if raised else [])
    for flag in found:
        assert flag.keys() == {"name", "value", "threshold", "message"}
        assert flag["value"] == pytest.approx((weak - strong) / n, abs=1e-6)
        assert flag["threshold"] == 0.02
        assert all(name in flag["message"] for name in names)


@pytest.mark.parametrize(("breaks", "n", "raised"), [(11, 549, True), (11, 550, False), (10, 100, False), (11, 100, True)])
def test_a_black_box_that_breaks_what_gradients_do_not(breaks: int, n: int, raised: bool) -> None:
    square = np.arange(n) < breaks
    white = np.arange(n) >= n - 20
    found = flags({"square": square, "apgd-ce": white, "fab-t": np.zeros(n, bool)})
    assert [flag["name"] for flag in found] == (["black-box-beats-white-box"] if raised else [])


def test_the_white_box_attacks_count_together() -> None:
    n = 100
    square, rows = np.arange(n) < 40, np.arange(n)
    halves = {"square": square, "apgd-ce": rows < 20, "apgd-t": (rows >= 20) & (rows < 32)}
    assert flags(halves) == []  # 8 : 0 is no evidence
    assert len(flags({**halves, "apgd-t": (rows >= 20) & (rows < 29)})) == 1  # 11 : 0 is


def test_attacks_that_were_not_run_raise_nothing() -> None:
    everything = np.ones(100, bool)
    assert flags({}) == []
    assert flags({"fgsm": everything}) == []
    assert flags({"square": everything}) == []


@pytest.mark.parametrize(
    ("suite", "raised", "expected"),
    [
        ("quick", [], "upper bound"),
        ("paper", [], "upper bound"),
        ("aa", [], "trustworthy"),
        ("aa", [{"name": "x"}], "masked"),
        ("quick", [{"name": "x"}], "masked"),
    ],
)
def test_verdicts(suite: str, raised: list[dict[str, Any]], expected: str) -> None:
    assert verdict(suite, "test", raised) == expected
    assert verdict(suite, "train", raised) != "trustworthy"
