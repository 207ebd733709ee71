"""Statistics: Wilson interval, exact McNemar, paired bootstrap and ARDist of accuracies, quartiles of times. numpy only, no torch.

Accuracies are fractions in [0, 1] throughout; ARDist alone is made of per cent, as its paper has it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

# ARREST (Suzuki et al. 2023), section 5.1: robust accuracy under AutoAttack as a cubic in clean accuracy, both in per cent, highest power
# first. As printed: the paper's own values come from these rounded coefficients, and from no others.
TRADEOFF_CURVES = {"cifar10": (9.877e-5, -0.3922, 63.82, -2600.0), "cifar100": (5.615e-4, -0.1582, 12.44, -271.8)}
Z_95 = 1.959963984540054  # standard normal quantile at 0.975


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927), 95 % by default. Returns (low, high) in [0, 1].

    No data (n = 0) is the whole interval (0, 1). Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n]: got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact bound is 0 or 1; floating point leaves it 1e-17 away.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts (McNemar 1947, binomial form).

    only_a, only_b: examples on which just A, just B is right. No discordant pair gives 1.0.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError("discordant counts cannot be negative")
    n, k = only_a + only_b, min(only_a, only_b)
    # Whole numbers, each coefficient from the one before: exact, and 10,000 pairs take hundredths of a second.
    coefficient = tail = 1
    for i in range(k):
        coefficient = coefficient * (n - i) // (i + 1)
        tail += coefficient
    return float(min(1.0, 2 * tail / 2**n))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of mean(a) - mean(b), examples drawn with their pair (Efron, Tibshirani 1993, chapter 13).

    a, b (n,): 0 or 1 an example. Resampling n pairs is one draw from a multinomial over the four outcomes (a, b), so a
    replicate costs the same for any n. Equal seeds give equal intervals. No data is the whole interval (-1, 1).
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"pairs need two arrays of one length: got {first.shape} and {second.shape}")
    n = len(first)
    if n == 0:
        return -1.0, 1.0
    counts = np.bincount(2 * first + second, minlength=4)  # neither, only b, only a, both
    sample = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    low, high = np.percentile((sample[:, 2] - sample[:, 1]) / n, [2.5, 97.5])
    return float(low), float(high)


def ardist(clean: float, robust: float, curve: str) -> float:
    """Accuracy robustness distance (ARREST, section 5.1): how far a network lies above the trade-off of others, in points.

    clean, robust (AutoAttack, linf 8/255): per cent. curve: cifar10 or cifar100; others raise ValueError. The Euclidean distance from
    (clean, robust) to the nearest point of the curve, negative below it. Read it with care:

    * an undefended network (95.37, 0) scores -0.579, better than the paper's adversarial training (-1.500);
    * the curves were fitted to WideResNets, ARREST's own point among them: smaller networks lie below whatever they do;
    * they hold for about 84 to 93 % clean accuracy on CIFAR-10 and 56 to 74 % on CIFAR-100, and bend down left of 84 and 56;
    * it has no interval, and a robust accuracy that is only an upper bound raises it like a true one.
    """
    if curve not in TRADEOFF_CURVES:
        raise ValueError(f"curve must be one of {', '.join(TRADEOFF_CURVES)}: got {curve!r}")
    cubic = np.poly1d(TRADEOFF_CURVES[curve])
    across = np.poly1d([1.0, -clean])
    feet = (across + (cubic - robust) * cubic.deriv()).roots  # where the squared distance is stationary
    along = feet[np.isreal(feet)].real
    nearest = float(np.hypot(along - clean, cubic(along) - robust).min())
    return nearest if robust >= cubic(clean) else -nearest


def quartiles(values: ArrayLike) -> dict[str, float]:
    """{median, q25, q75} of values (n,), n at least 1, between neighbours by straight lines."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "q25": low, "q75": high}
