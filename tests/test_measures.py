"""Wilson's interval against the score equation it solves, McNemar against scipy's exact binomial test."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from advcli.measures import Z_95, mcnemar, wilson


def score(p: float, successes: int, n: int) -> float:
    """(observed - p) in standard errors under p: the interval is where its absolute value is at most z."""
    return (successes / n - p) / math.sqrt(p * (1 - p) / n)


def test_z_is_the_normal_quantile() -> None:
    assert stats.norm.ppf(0.975) == pytest.approx(Z_95, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 4))
@example((1, 1), Z_95)
@example((1, 20_000), Z_95)
@example((19_999, 20_000), Z_95)
def test_wilson_solves_the_score_equation(counts: tuple[int, int], z: float) -> None:
    """Each bound that is not 0 or 1 is found anew by root finding on the side of the observed share where it lies."""
    successes, n = counts
    low, high = wilson(successes, n, z)
    share, edge = successes / n, 1e-13
    if successes > 0:
        root = optimize.brentq(lambda p: score(p, successes, n) - z, edge, min(share, 1 - edge), xtol=1e-15)
        assert low == pytest.approx(root, abs=1e-10)
    if successes < n:
        root = optimize.brentq(lambda p: score(p, successes, n) + z, max(share, edge), 1 - edge, xtol=1e-15)
        assert high == pytest.approx(root, abs=1e-10)
    assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (487, 1000), (4931, 10_000)])
def test_wilson_is_scipys(successes: int, n: int) -> None:
    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 10_000])
def test_wilson_at_the_ends(n: int) -> None:
    """No success: exactly 0, and z^2 / (n + z^2) above; mirrored for all successes."""
    above = Z_95**2 / (n + Z_95**2)
    assert wilson(0, n) == (0.0, pytest.approx(above, abs=1e-14))
    assert wilson(n, n) == (pytest.approx(1 - above, abs=1e-14), 1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_mirrors(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_limits() -> None:
    """z = 0 leaves the point; for many examples the interval is the normal one."""
    assert wilson(3, 10, 0.0) == pytest.approx((0.3, 0.3))
    n = 10**10
    low, high = wilson(3 * n // 10, n)
    spread = Z_95 * math.sqrt(0.3 * 0.7 / n)
    assert (low, high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=1e-9)


def test_no_data_is_the_whole_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (1, 0), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(a: int, b: int) -> None:
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(a, b) == mcnemar(b, a)


@pytest.mark.parametrize(
    ("a", "b", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (0, 20, 2 / 2**20)]
)
def test_mcnemar_by_hand(a: int, b: int, p: float) -> None:
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-15)


def test_mcnemar_of_thousands_of_pairs_does_not_overflow() -> None:
    assert mcnemar(1500, 1600) == pytest.approx(stats.binomtest(1500, 3100).pvalue, rel=1e-9)
    assert mcnemar(0, 5000) == 0.0, "2**-4999 is under the smallest double"


@pytest.mark.parametrize(("a", "b"), [(-1, 3), (3, -1)])
def test_mcnemar_refuses_negative_counts(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar(a, b)
