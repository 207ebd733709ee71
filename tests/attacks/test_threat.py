"""The geometry of the two balls against plain formulas, in float64 where the claim is exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advcli.attacks import Threat
from advcli.draws import Draws

NORMS = ("linf", "l2")
THREATS = [Threat(norm, eps) for norm, eps in (("linf", 8 / 255), ("linf", 0.3), ("l2", 0.5), ("l2", 2.0))]
IDS = [f"{t.norm}-{t.eps:.2f}" for t in THREATS]
SHAPE = (3, 5, 5)
ROUNDING = {torch.float32: 2.0**-23, torch.float64: 1e-14}
"""An ulp of numbers in [1, 2): what x + delta may be rounded by, on images in [0, 1]."""


def images(seed: int, n: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Some pixels on the very edge of the box, so that clipping matters."""
    return (1.4 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.2).clamp(0, 1).to(dtype)


def norms(delta: torch.Tensor, norm: str) -> torch.Tensor:
    flat = delta.double().flatten(1)
    return flat.abs().max(1).values if norm == "linf" else flat.square().sum(1).sqrt()


def assert_inside(threat: Threat, x_adv: torch.Tensor, x: torch.Tensor) -> None:
    low, high = threat.bounds
    assert bool((x_adv >= low).all())
    assert bool((x_adv <= high).all())
    room = ROUNDING[x.dtype] * (1 if threat.norm == "linf" else x[0].numel())
    assert bool((norms(x_adv.double() - x.double(), threat.norm) <= threat.eps + room).all())


@given(
    seed=st.integers(0, 2**31),
    norm=st.sampled_from(NORMS),
    eps=st.floats(1e-3, 3),
    reach=st.floats(0, 10),
    dtype=st.sampled_from(list(ROUNDING)),
)
@settings(max_examples=60, deadline=None)
def test_projection_lands_inside_and_stays(seed: int, norm: str, eps: float, reach: float, dtype: torch.dtype) -> None:
    threat, x = Threat(norm, eps), images(seed, dtype=dtype)
    away = x + reach * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype)
    once = threat.project(away, x)
    assert_inside(threat, once, x)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=4 * ROUNDING[dtype])


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_projection_is_the_published_one(threat: Threat) -> None:
    x = images(0)
    away = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i in range(len(x)):
        delta = away[i] - x[i]
        if threat.norm == "linf":
            expected = torch.minimum(torch.maximum(away[i], x[i] - threat.eps), x[i] + threat.eps).clamp(0, 1)
        else:
            expected = (x[i] + delta * min(1.0, threat.eps / delta.square().sum().sqrt().item())).clamp(0, 1)
        torch.testing.assert_close(threat.project(away, x)[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_moves_nothing_that_is_inside(norm: str) -> None:
    threat, x = Threat(norm, 0.5), images(0)
    near = (x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).clamp(0, 1)
    torch.testing.assert_close(threat.project(near, x), near, rtol=0, atol=1e-15)


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_random_starts_lie_inside_and_differ(threat: Threat, dtype: torch.dtype) -> None:
    x = images(0, n=64, dtype=dtype)
    draws = Draws(0, torch.arange(64), "start")
    start = threat.random_start(x, draws)
    assert_inside(threat, start, x)
    assert norms(start - x, threat.norm).min() > 0
    assert not torch.equal(start, threat.random_start(x, draws.at(1)))


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_random_starts_belong_to_the_example(threat: Threat) -> None:
    x, draws = images(0, n=16), Draws(3, torch.arange(16) * 7, "start")
    whole = threat.random_start(x, draws)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(threat.random_start(x[order], draws.select(order)), whole[order])
    assert torch.equal(threat.random_start(x[5:6], draws.select(torch.tensor([5]))), whole[5:6])


def test_random_starts_are_uniform_in_the_ball() -> None:
    """linf: mean 0, variance eps^2 / 3. l2: (radius / eps)^d is uniform on [0, 1], d the dimension. Five standard errors."""
    n, x = 4000, torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    draws = Draws(0, torch.arange(n), "start")
    flat = (Threat("linf", 0.3).random_start(x, draws) - x).flatten() / 0.3
    assert abs(flat.mean()) < 5 * (1 / 3) ** 0.5 / flat.numel() ** 0.5
    assert abs(flat.square().mean() - 1 / 3) < 5 * (4 / 45) ** 0.5 / flat.numel() ** 0.5
    delta = (Threat("l2", 0.3).random_start(x, draws) - x) / 0.3
    assert abs((norms(delta, "l2") ** 4).mean() - 0.5) < 5 * (1 / 12) ** 0.5 / n**0.5
    assert bool((delta.mean(0).abs() < 5 * delta.std() / n**0.5).all())


@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_the_steepest_of_their_norm(norm: str) -> None:
    """No direction of that length raises a linear function more: <g, d> is size times the dual norm of g."""
    x, gradient = images(0), torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = Threat(norm, 1.0).step(x, gradient, 0.125) - x
    torch.testing.assert_close(norms(moved, norm), torch.full((4,), 0.125, dtype=torch.float64), rtol=0, atol=1e-12)
    dual = gradient.flatten(1).abs().sum(1) if norm == "linf" else norms(gradient, "l2")
    torch.testing.assert_close((gradient * moved).flatten(1).sum(1), 0.125 * dual, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_step(norm: str) -> None:
    x = images(0)
    assert torch.equal(Threat(norm, 1.0).step(x, torch.zeros_like(x), 0.1), x)


@pytest.mark.parametrize("norm", NORMS)
def test_distance(norm: str) -> None:
    x, other = images(0), images(1)
    torch.testing.assert_close(Threat(norm, 1.0).distance(other, x), norms(other - x, norm), rtol=1e-12, atol=0)
    assert not Threat(norm, 1.0).distance(x, x).any()


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_the_frank_wolfe_gap_is_what_a_linear_function_may_still_rise(threat: Threat) -> None:
    """It is reached at the corner where the function is largest, and no point inside promises more."""
    x = images(2)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    here = threat.random_start(x, Draws(0, torch.arange(len(x)), "gap")).double()
    gap = threat.frank_wolfe_gap(here, x, gradient)

    def rise(point: torch.Tensor) -> torch.Tensor:
        return (gradient * (point - here)).flatten(1).sum(1)

    corner = threat.step(x, gradient, threat.eps)
    corner = corner.clamp(*threat.bounds) if threat.norm == "linf" else corner  # of the l2 ball alone: the box only takes away
    torch.testing.assert_close(rise(corner), gap)
    torch.testing.assert_close(threat.frank_wolfe_gap(corner, x, gradient), torch.zeros_like(gap), rtol=0, atol=1e-12)
    for seed in range(20):
        other = threat.project(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), x)
        assert bool((rise(other) <= gap + 1e-12).all())
