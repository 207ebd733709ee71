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


# Runs that are given up.


def settled_after(distances: list[float], eps: float) -> int | None:
    """The step after which a run that is adversarial at these distances (inf: it is not) is given up, in plain words; None for never."""
    for end in range(20, len(distances) + 1, 10):
        last, closest, before = distances[end - 10 : end], min(distances[:end]), min(distances[: end - 10])
        adversarial = [distance for distance in last if distance < np.inf]
        steady = len(adversarial) >= 4 and max(adversarial) <= 1.05 * closest
        if steady and before < np.inf and closest >= 0.97 * before and closest > 2 * eps:
            return end
    return None


class Told(Surrogate):
    """Answers with margins (steps,), whatever it is shown; there is no way to go."""

    def __init__(self, margins: list[float]) -> None:
        super().__init__(lambda x: ModelOutput(x, (), x, x))
        self.margins = iter(margins)

    def __call__(self, x: Tensor, condition: object) -> ModelOutput:
        logits = torch.tensor([0.0, next(self.margins)], dtype=x.dtype).expand(len(x), 2) + 0 * x.flatten(1)[:, :1]
        return ModelOutput(logits, (), x, x)


@pytest.mark.parametrize("seed", range(60))
def test_a_run_is_given_up_where_it_has_settled_far_outside(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the step that the rule says, of walks of all kinds; or, one in 32, not at all."""
    draw = np.random.default_rng(seed)
    eps, level, noise, share = 0.05, draw.choice([0.09, 0.105, 0.2]), draw.choice([0.005, 0.01, 0.05]), draw.choice([0.35, 0.6, 1.0])
    decay = draw.choice([1.0, 3.0]) ** (-np.arange(70) / draw.choice([5.0, 60.0]))
    walk = level * (1 + decay - decay[-1]) * (1 + noise * draw.random(70))
    fooled = draw.random(70) < share
    points = iter(torch.from_numpy(walk))
    monkeypatch.setattr(Threat, "distance", lambda self, a, b: next(points).expand(len(a)))
    monkeypatch.setattr(Fab, "_step", lambda self, state, *rest, **more: state["x_adv"])
    x, attack = torch.full((256, 1, 4, 4), 0.5, dtype=torch.float64), Fab(Threat("linf", eps), steps=90, targets=1)
    y, surrogate = torch.zeros(256, dtype=torch.int64), Told(np.where(fooled, 1.0, -1.0).tolist())
    draws = Draws(0, torch.arange(256), "settled")
    state = attack.begin(x, y, draws, {"logits": torch.zeros(256, 2)}, y)
    over = torch.full((256,), -1)
    monkeypatch.setattr(Fab, "_finish", lambda self, state, gives_up: over.masked_fill_((over < 0) & gives_up, int(state["step"][0])))
    for _ in range(70):
        attack.advance(surrogate, state, 0.0, draws)
    expected = settled_after(np.where(fooled, walk, np.inf).tolist(), eps)
    sample = draws.sub("sample").uniform(()) < 1 / 32
    assert 0 < int(sample.sum()) < 25
    assert bool((over[sample] == -1).all())
    assert bool((over[~sample] == (-1 if expected is None else expected)).all())
    assert bool((state["sampled"] == (sample & (expected is not None)).long()).all())


def test_the_walks_above_are_of_both_kinds() -> None:
    assert settled_after([0.11] * 20, 0.05) == 20
    assert settled_after([0.11] * 20, 0.06) is None
    assert settled_after([0.2] * 10 + [0.11] * 20, 0.05) == 30
    assert settled_after([0.11, np.inf, np.inf] * 7, 0.05) is None
    assert settled_after([np.inf] * 10 + [0.11] * 20, 0.05) == 30
    assert settled_after([0.11, 0.12] * 40, 0.05) is None
    assert settled_after([0.11, 0.115] * 40, 0.05) == 20


@each_norm
def test_giving_up_spares_passes_and_loses_nothing(norm: str) -> None:
    """On linear classifiers, of all distances: the same verdicts with half of the passes, and every pass is accounted for."""
    model, x = Linear(), pictures(40)
    y = model(x).argmax(1)
    exact = distances(model, x, y, norm)
    threat = Threat(norm, float(exact.quantile(0.4)))  # type: ignore[arg-type]
    fallen, spent = {}, {}
    for spares in (False, True):
        task, cost = Task(lambda pick: x[pick], y, Draws(0, torch.arange(40), ""), {"logits": model(x)}), Cost()
        attack = Fab(threat, targets=3, spares=spares)
        attempts = [a for a in stream(attack, Surrogate(model.trace, cost), Judge(model, chunk=16), task) if bool(a.final.any())]
        broken, units = torch.zeros(40, dtype=torch.bool), torch.zeros(40, dtype=torch.int64)
        for a in attempts:
            broken[a.positions[a.final]], units[a.positions[a.final]] = a.found.broken[a.final], a.units[a.final]
        assert bool((units[~broken] == attack.passes).all())
        fallen[spares], spent[spares] = broken, cost
    assert torch.equal(fallen[True], fallen[False])
    assert 10 < int(fallen[True].sum()) < 30
    assert spent[False].spared == 0
    assert spent[True].forwards < 0.6 * spent[False].forwards


def test_gates_that_open_and_shut_let_no_run_settle() -> None:
    """What is adversarial at distances that jump is walked to its end; the same network without gates gives up."""

    class Gated(Linear):
        def trace(self, x: Tensor) -> ModelOutput:
            z = self(x)
            shut = (x.detach() * 7919).sum((1, 2, 3)).remainder(1)  # anything, of the point alone
            return ModelOutput(z + (3 * shut[:, None] - 1) * torch.eye(4, dtype=z.dtype)[y0], (), x, x)

    x, share = pictures(40), {}
    y0 = Linear()(x).argmax(1).mode().values
    x = x[Linear()(x).argmax(1) == y0]
    for model in (Gated(), Linear()):
        y, cost = model(x).argmax(1), Cost()
        task = Task(lambda pick: x[pick], y, Draws(0, torch.arange(len(x)), ""), {"logits": model(x)})
        for a in stream(Fab(Threat("linf", 1e-4), targets=3), Surrogate(model.trace, cost), Judge(model, chunk=16), task):
            assert not bool(a.found.broken.any())
        share[type(model)] = cost.spared / cost.units
    assert share[Gated] < 0.1
    assert share[Linear] > 0.4


def test_a_run_that_settled_and_went_on_is_mistaken_where_the_judge_says_so() -> None:
    state = {"sampled": torch.tensor([1, 1, 0, 0]), "mistaken": torch.zeros(4, dtype=torch.int64)}
    Fab(Threat("linf", 0.1)).judged(state, torch.tensor([True, False, True, False]))
    assert state["mistaken"].tolist() == [1, 0, 0, 0]
