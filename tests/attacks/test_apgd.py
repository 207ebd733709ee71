"""Auto-PGD against the algorithm of the paper, one example at a time in float64; targets and DLR losses against their formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from advcli.attacks import Apgd, Cost, Judge, Surrogate, Threat
from advcli.attacks.losses import attack_loss, dlr, dlr_targeted
from advcli.attacks.pool import Task, stream
from advcli.attacks.targets import other_classes
from advcli.draws import Draws
from advcli.models import ModelOutput

K, N, STEPS = 5, 6, 100
SHAPE = (2, 3, 3)
THREATS = {"linf": Threat("linf", 0.2), "l2": Threat("l2", 0.6)}
each_norm = pytest.mark.parametrize("norm", THREATS)
GENERATOR = torch.Generator().manual_seed(0)
FIRST = torch.randn(18, 12, generator=GENERATOR, dtype=torch.float64)
SECOND = torch.randn(12, K, generator=GENERATOR, dtype=torch.float64)


def model(x: Tensor) -> Tensor:
    return torch.sin(1.5 * (x.flatten(1) - 0.5) @ FIRST) @ SECOND


def trace(x: Tensor) -> ModelOutput:
    return ModelOutput(model(x), (), x, x)


def examples() -> tuple[Tensor, Tensor]:
    """Some pixels on the edge of the box."""
    x = (1.4 * torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.2).clamp(0, 1)
    return x, model(x).argmax(1)


def plain_loss(name: str, z: Tensor, y: int, target: int) -> Tensor:
    """Of one row of logits (K,)."""
    high = sorted(range(K), key=lambda k: -z[k].item())
    other = max((k for k in range(K) if k != y), key=lambda k: z[k].item())
    return {
        "ce": lambda: z.exp().sum().log() - z[y],
        "dlr": lambda: -(z[y] - z[other]) / (z[high[0]] - z[high[2]]),
        "dlr-targeted": lambda: -(z[y] - z[target]) / (z[high[0]] - (z[high[2]] + z[high[3]]) / 2),
        "targeted": lambda: z[target] - z[y],
    }[name]()


def plain_project(z: np.ndarray, x: np.ndarray, norm: str, eps: float) -> np.ndarray:
    delta = z - x
    delta = np.clip(delta, -eps, eps) if norm == "linf" else delta * min(1.0, eps / max(np.linalg.norm(delta), 1e-300))
    return np.clip(x + delta, 0, 1)


def plain_apgd(
    f: Callable[[np.ndarray], tuple[float, np.ndarray]], x: np.ndarray, start: np.ndarray, norm: str, eps: float, checkpoints: set[int]
) -> list[np.ndarray]:
    """Every point that is evaluated: the start, and what each of the steps leads to."""

    def ascend(z: np.ndarray, g: np.ndarray, size: float) -> np.ndarray:
        return plain_project(z + size * (np.sign(g) if norm == "linf" else g / max(np.linalg.norm(g), 1e-12)), x, norm, eps)

    loss, g = f(start)
    points, losses = [start], [loss]
    best, best_loss, best_g = start, loss, g
    size, reduced, best_at_check, last_check = 2 * eps, True, loss, 0
    current, previous = start, start
    for k in range(1, STEPS + 1):
        z = ascend(current, g, size)
        new = z if k == 1 else plain_project(current + 0.75 * (z - current) + 0.25 * (current - previous), x, norm, eps)
        previous, current = current, new
        loss, g = f(current)
        points.append(current)
        losses.append(loss)
        if loss > best_loss:
            best, best_loss, best_g = current, loss, g
        if k in checkpoints:
            rises = sum(losses[j] > losses[j - 1] for j in range(last_check + 1, k + 1))
            halve = rises <= 0.75 * (k - last_check) or (not reduced and best_at_check == best_loss)
            if halve:
                size, current, g = size / 2, best, best_g
            reduced, best_at_check, last_check = halve, best_loss, k
    return points


CHECKPOINTS = {22, 41, 57, 70, 80, 87, 93, 99}


class DoubleDraws(Draws):
    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return super().uniform(shape).double()

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return super().normal(shape).double()


@each_norm
@pytest.mark.parametrize("name", ["ce", "dlr", "dlr-targeted", "targeted"])
def test_all_iterates_are_the_papers(name: str, norm: str) -> None:
    """Success looked for by nobody (an infinite bound), so that each run has all its steps; in each of them, to 1e-8."""
    threat, (x, y) = THREATS[norm], examples()
    if name == "dlr":  # a small ball, in which few labels fall to the third place: from there on this loss is constant
        threat = replace(threat, eps=threat.eps / 10)
    shown: list[Tensor] = []

    def spy(x: Tensor) -> ModelOutput:
        shown.append(x.detach().clone())
        return trace(x)

    draws = DoubleDraws(3, torch.arange(N), "apgd")
    judge = Judge(torch.nn.Identity(), chunk=N, bound=-torch.inf)
    judge.model = model  # type: ignore[assignment]
    attack = Apgd(threat, name, steps=STEPS, restarts=1, targets=1, spares=False)  # type: ignore[arg-type]
    logits = model(x)
    (end,) = stream(attack, Surrogate(spy), judge, Task(lambda pick: x[pick], y, draws, {"logits": logits}))
    assert len(shown) == STEPS
    target = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
    whole = halved = 0
    for i in range(N):

        def f(z: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            leaf = torch.from_numpy(z)[None].requires_grad_(True)
            loss = plain_loss(name, model(leaf)[0], int(y[i]), int(target[i]))
            return loss.item(), torch.autograd.grad(loss, leaf)[0][0].numpy()

        noise = (2 * draws.uniform(SHAPE) - 1 if norm == "linf" else draws.normal(SHAPE))[i].numpy()
        start = np.clip(x[i].numpy() + threat.eps * noise / (np.abs(noise).max() if norm == "linf" else np.linalg.norm(noise)), 0, 1)
        points = plain_apgd(f, x[i].numpy(), start, norm, threat.eps, CHECKPOINTS)
        flat = [step for step in range(STEPS) if name == "dlr" and not f(points[step])[0] < 1 - 1e-9]
        for step in range(min(flat, default=STEPS - 1) + 1):
            np.testing.assert_allclose(shown[step][i].numpy(), points[step], rtol=0, atol=1e-8, err_msg=f"example {i}, step {step}")
        if flat:
            continue
        whole += 1
        np.testing.assert_allclose(end.found.x_adv[i].numpy(), points[-1], rtol=0, atol=1e-8)
        unchecked = plain_apgd(f, x[i].numpy(), start, norm, threat.eps, set())
        halved += not np.allclose(points[-1], unchecked[-1])
    assert whole >= (N - 2 if name == "dlr" else N)
    assert halved >= whole - 1 or name == "dlr"  # else the checkpoints were not tested


@pytest.mark.parametrize("steps", [100, 20, 4])
def test_checkpoints(steps: int) -> None:
    """Of max(int(.22 n), 1), then .03 n less each time and .06 n at least; published for n = 100."""
    first, less, least = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    gaps = [max(first - i * less, least) for i in range(steps)]
    seen, attack, (x, y) = [], Apgd(THREATS["linf"], "ce", steps=steps), examples()
    draws = DoubleDraws(0, torch.arange(N), "")
    state = attack.begin(x, y, draws, {"logits": model(x)}, torch.zeros_like(y))
    for step in range(steps):
        attack.advance(Surrogate(trace), state, torch.inf, draws)
        if step and bool((state["since"] == 0).all()):
            seen.append(step)
    expected = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    assert seen == [point for point in expected if point < steps]
    assert steps != 100 or seen == sorted(CHECKPOINTS)


@each_norm
def test_starts_are_as_far_as_eps(norm: str) -> None:
    x, threat = torch.full((9, *SHAPE), 0.5, dtype=torch.float64), THREATS[norm]
    far = threat.distance(threat.surface_start(x, Draws(0, torch.arange(9), "s")), x)
    torch.testing.assert_close(far, torch.full_like(far, threat.eps), rtol=1e-6, atol=0)


def test_targets_are_the_other_classes_likeliest_first() -> None:
    """Also where the label is not the likeliest, and one run a target, in this order."""
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0], [5.0, 1.0, 3.0, 2.0, 4.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    y = torch.tensor([0, 3, 4])
    expected = [[4, 2, 3, 1], [0, 4, 2, 1], [2, 0, 1, 3]]
    assert other_classes({"logits": logits}, y).tolist() == expected
    x = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    for name in ("dlr-targeted", "targeted"):
        attack = Apgd(THREATS["linf"], name, targets=4)  # type: ignore[arg-type]
        assert attack.runs == 4
        states = [attack.begin(x, y, Draws(0, torch.arange(3), ""), {"logits": logits}, torch.full_like(y, run)) for run in range(4)]
        assert torch.stack([state["target"] for state in states], 1).tolist() == expected
    mixed = attack.begin(x, y, Draws(0, torch.arange(3), ""), {"logits": logits}, torch.tensor([0, 1, 3]))
    assert mixed["target"].tolist() == [4, 4, 3]


def test_dlr_losses_are_their_formulas() -> None:
    """Ties of the third and fourth included; the label anywhere in the order."""
    z = 3 * torch.randn(200, K, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z[:9, 2] = z[:9, 3]
    y = torch.arange(200) % K
    target = (y + 1 + torch.arange(200) % (K - 1)) % K
    for name, value in (("dlr", dlr(z, y)), ("dlr-targeted", dlr_targeted(z, y, target))):
        expected = torch.stack([plain_loss(name, z[i], int(y[i]), int(target[i])) for i in range(200)])
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(attack_loss(name)(ModelOutput(z, (), z, z), y, {"target": target}), value, rtol=0, atol=0)
    torch.testing.assert_close(dlr(7 * z + 2, y), dlr(z, y), rtol=1e-9, atol=1e-9)  # what it was made for
    assert torch.equal(dlr(z, y) > 0, z.argmax(1) != y)


# Stages.


def scaled_trace(x: Tensor, scale: Tensor) -> ModelOutput:
    """A network that each row sees at a scale of its own."""
    return ModelOutput(torch.sin(scale[:, None] * (x.flatten(1) - 0.5) @ FIRST) @ SECOND, (), x, x)


class Scaled(Surrogate):
    """Reads a stage's number from the condition."""

    def __init__(self) -> None:
        super().__init__(trace)

    def __call__(self, x: Tensor, condition: Mapping[str, Tensor]) -> ModelOutput:
        return scaled_trace(x, condition["scale"])


@each_norm
def test_a_stage_is_a_run_that_starts_where_the_one_before_did_best(norm: str) -> None:
    """Three stages of 30 steps against three attacks of 30 steps, each begun by hand; nobody is fooled at this threshold."""
    threat, (x, y), scales = THREATS[norm], examples(), (0.5, 1.0, 1.5)
    draws, none = Draws(0, torch.arange(N), "stages"), torch.zeros(N, dtype=torch.int64)
    staged = Apgd(threat, "ce", steps=90, stages=tuple({"scale": scale} for scale in scales))
    state = staged.begin(x, y, draws, {}, none)
    ends = []
    for _ in range(90):
        if int(state["step"][0]) % 30 == 0 and int(state["step"][0]):
            ends.append(state["best"].clone())
        staged.advance(Scaled(), state, torch.inf, draws)
    ends.append(state["best"].clone())
    start = threat.surface_start(x, draws)
    for scale, end in zip(scales, ends, strict=True):
        single = Apgd(threat, "ce", steps=30, stages=({"scale": scale},))
        own = single.begin(x, y, draws, {}, none)
        own |= {"x_adv": start.clone(), "before": start.clone(), "best": start.clone()}
        for _ in range(30):
            single.advance(Scaled(), own, torch.inf, draws)
        torch.testing.assert_close(own["best"], end, rtol=0, atol=0)
        start = own["best"]
    assert bool(state["over"].all())


def test_rows_of_one_pool_are_in_stages_of_their_own() -> None:
    """The same points for a pool that holds all rows and for one that holds two, whose rows begin at different times."""
    x, y = examples()
    attack = Apgd(THREATS["linf"], "ce", steps=20, stages=({"scale": 0.5}, {"scale": 1.5}))
    found = []
    for chunk in (N, 2):
        judge = Judge(torch.nn.Identity(), chunk=chunk)
        judge.margins = lambda points, labels: torch.full((len(labels),), -1.0)  # type: ignore[method-assign]
        found.append(attack(Scaled(), judge, x, y, Draws(0, torch.arange(N), "stages"), {"logits": model(x)}))
    torch.testing.assert_close(found[0].x_adv, found[1].x_adv, rtol=0, atol=1e-12)


def hopeless_after(logits: list[list[float]], gaps: list[float], name: str, threshold: float) -> int | None:
    """After how many looks a run is given up: what the rule says in words, of one run, from all it has seen.

    gaps: of the points looked at; that of the best one counts as well.
    """
    margins, losses = seen_by(logits, name)
    steps = len(margins)

    def slow(values: list[float], k: int, way: float) -> bool:
        highest = [max(values[: j + 1]) for j in (k - 20, k - 10, k) if j >= 0]
        rises = [later - earlier for earlier, later in itertools.pairwise(highest)]
        return rises[-1] <= min(rises) and way > 3 * rises[-1] * max((steps - k - 1) / 10, 1)

    for k in range({100: 30, 50: 20, 20: 20, 25: 20}[steps], steps - 1, 10):
        short, promises = threshold - max(margins[: k + 1]), []
        for j in (k, int(np.argmax(losses[: k + 1]))):
            others = np.exp(logits[j][1:])
            in_logits = others.sum() / np.sqrt((others**2).sum()) / (1 - np.exp(-losses[j])) if name == "ce" else 1
            promises.append(gaps[j] * in_logits)
        way = short if name == "ce" else (threshold if name in ("margin", "targeted") else 0) - max(losses[: k + 1])
        far = slow(margins, k, short) and (name == "ce" or slow(losses, k, way)) and short > max(margins[: k + 1]) - min(margins[: k + 1])
        if far and way > 8 * max(promises):
            return k + 1
    return None


class Told(Surrogate):
    """Answers with logits (K,), one row after another, whatever it is shown; the gradient is nowhere zero."""

    def __init__(self, logits: list[list[float]], *, repeatable: bool = True) -> None:
        super().__init__(lambda x: ModelOutput(x, (), x, x), repeatable=repeatable)
        self.logits = iter(logits)

    def __call__(self, x: Tensor, condition: object) -> ModelOutput:
        logits = torch.tensor(next(self.logits), dtype=x.dtype) + x.flatten(1)[:, :1] - x.flatten(1)[:, :1].detach()
        return ModelOutput(logits, (), x, x)


def walk(seed: int) -> tuple[list[list[float]], list[float]]:
    """Logits of four classes for every look of a run whose margin towards class 1 rises ever more slowly, and their gaps."""
    draw = np.random.default_rng(seed)
    level, pace = draw.choice([0.6, 2.0, 6.0]), draw.choice([3.0, 10.0, 40.0])
    way = -level - draw.choice([0.2, 1.0, 4.0]) * np.exp(-np.arange(STEPS) / pace) + 0.005 * draw.normal(size=STEPS)
    other = way + draw.choice([-3.0, 0.4]) * draw.random(STEPS)
    fall = np.exp(-np.arange(STEPS) / draw.choice([15.0, 1e9]))
    gaps = level * draw.choice([0.01, 0.3, 1.0]) * (1 + draw.random(STEPS)) * fall
    return [[0.0, a, b, -level - 9] for a, b in zip(way, other, strict=True)], gaps.tolist()


def seen_by(logits: list[list[float]], name: str) -> tuple[list[float], list[float]]:
    rows = torch.tensor(logits, dtype=torch.float64)
    y, target = torch.zeros(len(rows), dtype=torch.int64), torch.ones(len(rows), dtype=torch.int64)
    losses = attack_loss(name)(ModelOutput(rows, (), rows, rows), y, {"target": target})
    return attack_loss("margin")(ModelOutput(rows, (), rows, rows), y, {}).tolist(), losses.tolist()


THRESHOLD = -0.05


def given_up(seed: int, attack: Apgd, monkeypatch: pytest.MonkeyPatch, *, repeatable: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(256,) after how many looks a run of the walk is over, whether it is of the sample, and whether it says that it was sampled."""
    logits, gaps = walk(seed)
    way = iter(gaps)
    monkeypatch.setattr(Threat, "frank_wolfe_gap", lambda self, x_adv, x, gradient: torch.full((len(x),), next(way), dtype=x.dtype))
    x, y = torch.full((256, 1, 4, 4), 0.5, dtype=torch.float64), torch.zeros(256, dtype=torch.int64)
    draws, cost = Draws(0, torch.arange(256), "hopeless"), Cost()
    surrogate = Told(logits, repeatable=repeatable)
    surrogate.cost = cost
    state = attack.begin(x, y, draws, {"logits": torch.tensor([[0.0, -1.0, -2.0, -3.0]]).expand(256, 4)}, y)
    over = torch.full((256,), -1)
    for look in range(attack.steps):
        attack.advance(surrogate, state, THRESHOLD, draws)
        over = torch.where((over < 0) & state["over"], look + 1, over)
        state["over"] = over >= 0
    assert cost.spared == int(state["spared"].sum())
    assert torch.equal(state["spared"], 2 * (attack.steps - over))
    return over, draws.sub("sample").uniform(()) < 1 / 32, state["sampled"]


NAMES = ("ce", "targeted", "margin", "dlr", "dlr-targeted")


@pytest.mark.parametrize("steps", [100, 50, 25, 20])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(40))
def test_a_run_is_given_up_where_nothing_is_to_be_hoped(seed: int, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the look that the rule says, of walks of all kinds; or, one in 32, not at all."""
    logits, gaps = walk(seed)
    expected = hopeless_after(logits[:steps], gaps, name, THRESHOLD)
    over, sample, sampled = given_up(seed, Apgd(THREATS["linf"], name, steps=steps, targets=1), monkeypatch)  # type: ignore[arg-type]
    assert 0 < int(sample.sum()) < 25
    assert bool((over[sample] == steps).all())
    assert bool((over[~sample] == (expected or steps)).all())
    assert torch.equal(sampled, (sample & (expected is not None)).long())


def test_the_walks_above_are_of_all_kinds() -> None:
    for name in NAMES:
        ends = [hopeless_after(*walk(seed), name, THRESHOLD) for seed in range(40)]
        assert 5 < ends.count(None) < 38
        assert {None, 31} <= set(ends)
        assert {None, 21} == {hopeless_after(walk(seed)[0][:25], walk(seed)[1], name, THRESHOLD) for seed in range(40)}
    assert len({hopeless_after(*walk(seed), name, THRESHOLD) for seed in range(40) for name in NAMES}) > 3


@pytest.mark.parametrize(
    "attack",
    [
        Apgd(THREATS["linf"], "ce", spares=False),
        Apgd(THREATS["linf"], "ce", steps=STEPS, aux_weight=1.0),
        Apgd(THREATS["linf"], "ce", steps=20),
        Apgd(THREATS["linf"], "ce", stages=({"scale": 1.0}, {"scale": 0.5})),
    ],
)
def test_without_a_boundary_of_its_own_or_when_told_so_none_is(attack: Apgd, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(seed for seed in range(40) if hopeless_after(*walk(seed), "ce", THRESHOLD))
    assert not attack.can_spare
    assert attack.timed(repeatable=True)[1] == 1.0
    assert bool((given_up(seed, attack, monkeypatch)[0] == attack.steps).all())


def test_what_raises_two_things_at_once_has_no_boundary_of_its_own() -> None:
    assert not Apgd(THREATS["linf"], "conjunction").can_spare
    assert Apgd(THREATS["linf"], "targeted").can_spare


def test_what_answers_differently_when_asked_twice_is_followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(seed for seed in range(40) if hopeless_after(*walk(seed), "ce", THRESHOLD))
    attack = Apgd(THREATS["linf"], "ce")
    assert bool((given_up(seed, attack, monkeypatch, repeatable=False)[0] == STEPS).all())
    assert attack.timed(repeatable=False)[1] == 1.0


@each_norm
@pytest.mark.parametrize("name", ["ce", "dlr", "dlr-targeted", "targeted"])
def test_giving_up_spares_passes_and_loses_nothing(name: str, norm: str) -> None:
    """On images of all distances: the same verdicts with fewer passes, every pass accounted for, and no mistake in the sample."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(200, *SHAPE, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = replace(THREATS[norm], eps=THREATS[norm].eps / 8)
    fallen, spent, seen = {}, {}, np.zeros(2, np.int64)
    for spares in (False, True):
        task, cost = Task(lambda pick: x[pick], y, DoubleDraws(0, torch.arange(200), ""), {"logits": model(x)}), Cost()
        judge = Judge(torch.nn.Identity(), chunk=50)
        judge.model = model  # type: ignore[assignment]
        attack = Apgd(threat, name, targets=3, spares=spares)  # type: ignore[arg-type]
        broken, units = torch.zeros(200, dtype=torch.bool), torch.zeros(200, dtype=torch.int64)
        for a in stream(attack, Surrogate(trace, cost), judge, task):
            broken[a.positions[a.final]], units[a.positions[a.final]] = a.found.broken[a.final], a.units[a.final]
            seen += np.array([int(a.sparing[count].sum()) for count in ("mistaken", "sampled")]) if spares else 0
        assert bool((units[~broken] == attack.passes).all())
        fallen[spares], spent[spares] = broken, cost
    assert torch.equal(fallen[True], fallen[False])
    assert 10 < int(fallen[True].sum()) < 190
    assert spent[False].spared == 0
    assert spent[True].spared > 0.1 * spent[True].units
    assert seen[0] == 0 < seen[1]
