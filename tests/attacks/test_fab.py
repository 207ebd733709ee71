"""FAB's projection against independent solvers; on linear classifiers it finds the boundary; it never claims what is outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from advcli.attacks import Cost, Fab, Judge, Surrogate, Threat
from advcli.attacks.fab import boundary_step
from advcli.attacks.losses import margin
from advcli.attacks.pool import Task, stream
from advcli.draws import Draws
from advcli.models import ModelOutput

NORMS = ("linf", "l2")
D = 8
each_norm = pytest.mark.parametrize("norm", NORMS)


def problems(n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z (n, D) in the box, weights and offsets: coordinates at the edges, zero weights, far and unreachable planes among them."""
    random = np.random.default_rng(0)
    z = random.uniform(0, 1, (n, D))
    z[::3, :3] = 0.0
    z[::4, 3:5] = 1.0
    w = random.normal(size=(n, D)) * 10.0 ** random.integers(-2, 2, (n, 1))
    w[::5, ::2] = 0.0
    share = random.uniform(-1.3, 1.3, n)  # of the way to the plane that touches the box; beyond 1 none of it is in the box
    highest, lowest = (
        (np.maximum(w, 0) * (1 - z) + np.maximum(-w, 0) * z).sum(1),
        -(np.maximum(-w, 0) * (1 - z) + np.maximum(w, 0) * z).sum(1),
    )
    travel = np.where(share > 0, share * highest, -share * lowest)
    return z, w, -(w * z).sum(1) - travel


def linf_optimum(z: np.ndarray, w: np.ndarray, c: float) -> float | None:
    """min t: -t <= d <= t, 0 <= z + d <= 1, w . d = -c."""
    eye, one = np.eye(D), np.ones((D, 1))
    bounds = [*zip(-z, 1 - z, strict=True), (0, None)]
    scale = np.abs(w).max()
    answer = linprog(
        [0] * D + [1], np.block([[eye, -one], [-eye, -one]]), np.zeros(2 * D), [[*(w / scale), 0]], [-c / scale], bounds, method="highs"
    )
    return answer.fun if answer.status == 0 else None


def l2_optimum(z: np.ndarray, w: np.ndarray, c: float) -> np.ndarray | None:
    """By its dual: d(s) = clip(z + s w, 0, 1) - z with w . d(s) = -c, and w . d(s) rises with s."""

    def d(s: float) -> np.ndarray:
        return np.clip(z + s * w, 0, 1) - z

    low, high = -1e9, 1e9
    if not w @ d(low) <= -c <= w @ d(high):
        return None
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if w @ d(middle) < -c else (low, middle)
    return d(high)


@each_norm
def test_boundary_step_is_the_shortest_in_the_box(norm: str) -> None:
    z, w, offset = problems()
    got = boundary_step(torch.from_numpy(z)[:, None, None], torch.from_numpy(w), torch.from_numpy(offset), Threat(norm, 1.0))  # type: ignore[arg-type]
    reached = 0
    for i, d in enumerate(got.flatten(1).numpy()):
        c, scale = (w[i] * z[i]).sum() + offset[i], np.abs(w[i]).max()
        assert (z[i] + d >= -1e-12).all()
        assert (z[i] + d <= 1 + 1e-12).all()
        best = linf_optimum(z[i], w[i], c) if norm == "linf" else l2_optimum(z[i], w[i], c)
        if best is None:  # every coordinate that counts goes to its edge
            np.testing.assert_allclose(z[i] + d, np.where(w[i] == 0, z[i], w[i] * c < 0), atol=1e-9)
            continue
        reached += 1
        assert abs(w[i] @ d + c) < 1e-8 * scale
        if norm == "linf":
            assert abs(np.abs(d).max() - best) < 1e-7
        else:
            np.testing.assert_allclose(d, best, atol=1e-6)
    assert 60 <= reached <= len(z) - 15


@each_norm
def test_boundary_step_corner_cases(norm: str) -> None:
    """On the plane already; no weights at all; float32 like float64."""
    threat = Threat(norm, 1.0)  # type: ignore[arg-type]
    z, w, offset = (torch.from_numpy(part) for part in problems())
    z = z[:, None, None]
    on = -(w * z.flatten(1)).sum(1)
    assert boundary_step(z, w, on, threat).abs().max() < 1e-9
    assert not boundary_step(z, torch.zeros_like(w), offset, threat).any()
    single = boundary_step(z.float(), w.float(), offset.float(), threat)
    torch.testing.assert_close(single.double(), boundary_step(z, w, offset, threat), rtol=0, atol=1e-3)
    assert single.dtype == torch.float32


@each_norm
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_answer_that_is_no_number_shows_no_way(norm: str, value: float) -> None:
    z, w, offset = (torch.from_numpy(part).float() for part in problems())
    assert not boundary_step(z[:, None, None], w, torch.full_like(offset, value), Threat(norm, 1.0)).any()  # type: ignore[arg-type]


@each_norm
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10])
def test_the_size_of_weights_does_not_matter(norm: str, scale: float) -> None:
    z, w, offset = (torch.from_numpy(part).float() for part in problems())
    threat = Threat(norm, 1.0)  # type: ignore[arg-type]
    expected = boundary_step(z[:, None, None], w, offset, threat)
    torch.testing.assert_close(boundary_step(z[:, None, None], w * scale, offset * scale, threat), expected, rtol=0, atol=1e-3)


@each_norm
def test_company_does_not_move_a_row(norm: str) -> None:
    """To the bit: rows that take fewer steps of Newton's method wait for the others as they are."""
    z, w, offset = (torch.from_numpy(part).float() for part in problems(400))
    together = boundary_step(z[:, None, None], w, offset, Threat(norm, 1.0))  # type: ignore[arg-type]
    alone = [boundary_step(z[i : i + 1, None, None], w[i : i + 1], offset[i : i + 1], Threat(norm, 1.0)) for i in range(len(z))]  # type: ignore[arg-type]
    assert torch.equal(together, torch.cat(alone))


class Linear(nn.Module):
    """K classes, affine in the pixels; counts what it is shown."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(16, classes, generator=generator, dtype=torch.float64)
        self.bias = torch.randn(classes, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.weight) @ self.weight + self.bias

    def trace(self, x: Tensor) -> ModelOutput:
        return ModelOutput(self(x), (), x, x)


def pictures(n: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def distances(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(n,) exact distance to the nearest other class inside the box, by the solvers above."""
    nearest = []
    for i in range(len(x)):
        z, found = x[i].flatten().numpy(), []
        for k in range(model.weight.shape[1]):
            if k == int(y[i]):
                continue
            w = (model.weight[:, k] - model.weight[:, y[i]]).numpy()
            c = w @ z + float(model.bias[k] - model.bias[y[i]])
            low, high = 0.0, 100.0  # bisection on the radius (linf), or on the multiplier (l2)
            for _ in range(100):
                s = (low + high) / 2
                d = np.clip(z + s * (np.sign(w) if norm == "linf" else w), 0, 1) - z
                low, high = (low, s) if w @ d + c >= 0 else (s, high)
            if w @ d + c > -1e-6:
                found.append(np.abs(d).max() if norm == "linf" else np.linalg.norm(d))
        nearest.append(min(found))
    return torch.tensor(nearest)


@each_norm
def test_linear_classifiers_break_just_above_their_distance_and_never_below(norm: str) -> None:
    model, x = Linear(), pictures(24)
    y = model(x).argmax(1)
    exact = distances(model, x, y, norm)
    for i in range(0, len(x), 3):
        for factor, falls in ((1.02, True), (0.999, False)):
            attack = Fab(Threat(norm, float(exact[i]) * factor), steps=20, targets=3)  # type: ignore[arg-type]
            draws = Draws(0, torch.tensor([i]), "")
            found = attack(Surrogate(model.trace), Judge(model, chunk=1), x[i : i + 1], y[i : i + 1], draws, {})
            assert bool(found.broken[0]) == falls, (i, factor)


@each_norm
def test_broken_points_are_inside_and_the_first_success_ends_it(norm: str) -> None:
    """Of all balls, some smaller than the distance; one forward and backward a step, and no targets after a success."""
    model, x = Linear(), pictures(24)
    y = model(x).argmax(1)
    exact = distances(model, x, y, norm)
    threat = Threat(norm, float(exact.median()))  # type: ignore[arg-type]
    task = Task(lambda pick: x[pick], y, Draws(0, torch.arange(24), ""), {"logits": model(x)})
    cost, judged, last = Cost(), Cost(), {}
    judge, attack = Judge(model, chunk=24, cost=judged), Fab(threat, steps=12, targets=3)
    for a in stream(attack, Surrogate(model.trace, cost), judge, task):
        assert bool((threat.distance(a.found.x_adv, x[a.positions]) <= threat.eps + 1e-9).all())
        assert bool(((a.found.x_adv >= 0) & (a.found.x_adv <= 1)).all())
        assert torch.equal(a.found.broken, margin(model(a.found.x_adv), y[a.positions]) >= 0)
        for i, p in enumerate(a.positions.tolist()):
            assert p not in last or not last[p][0]
            assert a.forwards[i] - (a.runs[i] + 1) == a.backwards[i]
            last[p] = (bool(a.found.broken[i]), int(a.runs[i]), int(a.backwards[i]), int(a.found.steps[i]))
    assert cost.forwards == cost.backwards
    for p, (broken, run, backwards, steps) in last.items():
        assert broken == bool(exact[p] <= threat.eps) or abs(exact[p] / threat.eps - 1) < 0.02
        assert backwards == (12 * run + min(steps + 1, 12) if broken else 36)
    assert 4 < sum(broken for broken, *_ in last.values()) < 20


@each_norm
def test_a_step_is_the_published_mixture(norm: str) -> None:
    """From a point that is not adversarial: the two projections overshot by 1.05, mixed with at most .1 of the clean one."""
    model, threat, x = Linear(), Threat(norm, 0.05), pictures(6)  # type: ignore[arg-type]
    y = model(x).argmax(1)
    attack = Fab(threat, steps=30, targets=1)
    draws = Draws(0, torch.arange(6), "")
    state = attack.begin(x, y, draws, {"logits": model(x)}, torch.zeros_like(y))
    start = (x + 0.02 * torch.sin(torch.arange(16.0).double()).view(1, 4, 4)).clamp(0, 1)
    state["x_adv"] = start.clone()
    attack.advance(Surrogate(model.trace), state, 1e9, draws)
    for i in range(6):
        target = model(x[i : i + 1])[0].topk(2).indices[1]
        w = (model.weight[:, target] - model.weight[:, y[i]])[None]
        b = (model.bias[target] - model.bias[y[i]])[None]
        d1, d2 = (boundary_step(p[i : i + 1], w, b, threat)[0] for p in (start, x))
        a1, a2 = (d.abs().max() if norm == "linf" else d.square().sum().sqrt() for d in (d1, d2))
        alpha = min(float(a1 / (a1 + a2)), 0.1)
        expected = ((start[i] + 1.05 * d1) * (1 - alpha) + (x[i] + 1.05 * d2) * alpha).clamp(0, 1)
        torch.testing.assert_close(state["x_adv"][i], expected, rtol=0, atol=1e-12)


def test_a_network_without_answers_outside_the_ball_is_not_broken_by_that() -> None:
    """FAB leaves the ball on its way; what comes back there is no number, and no image of no numbers may count."""

    class Cliff(Linear):
        def forward(self, x: Tensor) -> Tensor:
            away = ((4 * x) % 1 - 0.5).abs().flatten(1).amax(1) / 4  # from the nearest picture of those below
            return super().forward(x) + torch.where(away > 2 * threat.eps, torch.nan, 0.0)[:, None]

    model, clean, threat = Linear(), ((4 * pictures(16)).floor() + 0.5) / 4, Threat("linf", 0.005)
    y = model(clean).argmax(1)
    cliff = Cliff()
    judge = Judge(cliff, chunk=16)
    found = Fab(threat, targets=3)(Surrogate(cliff.trace), judge, clean, y, Draws(0, torch.arange(16), "fab"), {})
    assert bool(found.x_adv.isfinite().all())
    near = distances(model, clean, y, "linf") <= threat.eps
    assert not bool((found.broken & ~near).any())
