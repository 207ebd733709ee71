"""Wilson's interval against the score equation it solves, McNemar against scipy's exact test, the bootstrap against plain resampling.

ARDist against the nearest of very many points of the curve, and against its paper's table.
"""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from advcli.measures import TRADEOFF_CURVES, Z_95, ardist, mcnemar, paired_bootstrap, wilson


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


@pytest.mark.parametrize(("a", "b"), [(4700, 5300), (4990, 5010), (5000, 5000), (130, 9870), (1, 10_000)])
def test_mcnemar_of_ten_thousand_pairs_is_exact_and_quick(a: int, b: int) -> None:
    before = time.perf_counter()
    found = mcnemar(a, b)
    assert time.perf_counter() - before < 1
    n, k = a + b, min(a, b)
    exact = min(Fraction(1), Fraction(2 * sum(math.comb(n, i) for i in range(k + 1)), 2**n))
    assert found == pytest.approx(float(exact), rel=1e-12)


def pairs(counts: tuple[int, int, int, int]) -> tuple[list[int], list[int]]:
    """(a, b) with as many pairs 00, 01, 10 and 11."""
    outcomes = [outcome for outcome, count in zip(((0, 0), (0, 1), (1, 0), (1, 1)), counts, strict=True) for _ in range(count)]
    return [a for a, _ in outcomes], [b for _, b in outcomes]


@pytest.mark.parametrize("counts", [(20, 30, 60, 90), (0, 5, 1, 200), (100, 100, 100, 100), (3, 0, 9, 0)])
def test_the_bootstrap_is_that_of_resampled_pairs(counts: tuple[int, int, int, int]) -> None:
    """Against the definition: draw n examples with their pair, take the difference of means, 2.5 and 97.5 per cent of many such."""
    a, b = map(np.array, pairs(counts))
    rng = np.random.default_rng(1)
    rows = rng.integers(len(a), size=(20_000, len(a)))
    expected = np.percentile(a[rows].mean(1) - b[rows].mean(1), [2.5, 97.5])
    found = paired_bootstrap(a, b, seed=0, draws=20_000)
    spread = math.sqrt(np.var(a - b) / len(a))
    assert found == pytest.approx(expected, abs=max(1.01 / len(a), 0.1 * spread))
    # a large sample's interval is the normal one of the paired difference
    if len(a) >= 200:
        middle = (counts[2] - counts[1]) / len(a)
        assert found == pytest.approx((middle - Z_95 * spread, middle + Z_95 * spread), abs=0.15 * spread + 1 / len(a))


def test_the_bootstrap_is_fixed_by_its_seed_and_mirrors() -> None:
    a, b = pairs((501, 203, 407, 909))
    assert paired_bootstrap(a, b, 3, draws=100) == paired_bootstrap(a, b, 3, draws=100)
    assert len({paired_bootstrap(a, b, seed, draws=100) for seed in range(5)}) > 1
    low, high = paired_bootstrap(a, b, 3)
    assert paired_bootstrap(b, a, 3) == pytest.approx((-high, -low), abs=0.01)
    assert paired_bootstrap(a, a, 3) == (0.0, 0.0)


def test_the_bootstrap_of_ten_thousand_examples_is_instant() -> None:
    a, b = pairs((1000, 2000, 3000, 4000))
    before = time.perf_counter()
    low, high = paired_bootstrap(a, b, 0)
    assert time.perf_counter() - before < 1
    assert low < 0.1 < high < low + 0.03


def test_the_bootstrap_without_data_knows_nothing() -> None:
    assert paired_bootstrap([], [], 0) == (-1.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [([1], [1, 0]), ([[1]], [[0]])])
def test_the_bootstrap_refuses_what_is_not_paired(a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match="pairs need two arrays of one length"):
        paired_bootstrap(a, b, 0)


@pytest.mark.parametrize(
    ("clean", "robust", "curve", "printed"),
    [
        (87.14, 44.04, "cifar10", -1.500),
        (86.23, 53.58, "cifar10", 2.236),
        (85.57, 54.04, "cifar10", 2.314),
        (85.67, 54.10, "cifar10", 2.410),
        (88.22, 52.18, "cifar10", 2.706),
        (90.24, 50.20, "cifar10", 3.521),
        (59.59, 22.86, "cifar100", -3.268),
        (61.80, 29.03, "cifar100", 3.189),
        (60.38, 28.86, "cifar100", 2.434),  # the paper prints 2.424
        (63.40, 27.60, "cifar100", 2.786),
        (70.25, 26.73, "cifar100", 6.639),
        (73.05, 24.32, "cifar100", 7.165),
    ],
)
def test_ardist_is_that_of_arrests_table_1(clean: float, robust: float, curve: str, printed: float) -> None:
    assert ardist(clean, robust, curve) == pytest.approx(printed, abs=0.0005)


@settings(max_examples=50, deadline=None)
@given(st.floats(40, 100), st.floats(0, 80), st.sampled_from(sorted(TRADEOFF_CURVES)))
def test_ardist_is_the_distance_to_the_nearest_of_many_points(clean: float, robust: float, curve: str) -> None:
    along = np.linspace(-20, 160, 400_001)
    height = np.polyval(TRADEOFF_CURVES[curve], along)
    nearest = np.hypot(along - clean, height - robust).min()
    found = ardist(clean, robust, curve)
    assert abs(found) == pytest.approx(nearest, abs=0.02)
    assert (found >= 0) == (robust >= np.polyval(TRADEOFF_CURVES[curve], clean))


@pytest.mark.parametrize("curve", sorted(TRADEOFF_CURVES))
def test_ardist_on_the_curve_is_nothing(curve: str) -> None:
    for clean in (60.0, 84.5, 90.0):
        assert ardist(clean, float(np.polyval(TRADEOFF_CURVES[curve], clean)), curve) == pytest.approx(0, abs=1e-6)


def test_ardist_is_kind_to_the_undefended() -> None:
    """The first of the weaknesses that its docstring tells."""
    assert ardist(95.37, 0, "cifar10") == pytest.approx(-0.579, abs=0.0005)
    assert ardist(95.37, 0, "cifar10") > ardist(87.14, 44.04, "cifar10")


def test_ardist_has_two_curves() -> None:
    with pytest.raises(ValueError, match="cifar10, cifar100: got 'svhn'"):
        ardist(90, 50, "svhn")
