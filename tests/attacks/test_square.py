"""Square Attack: the proposals, the schedule and the bookkeeping; and that it needs no gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from advcli.attacks import Cost, Judge, Pgd, Square, Surrogate, Threat
from advcli.attacks.losses import attack_loss, margin
from advcli.attacks.pool import Task, stream
from advcli.attacks.sparing import give_up
from advcli.attacks.square import _pattern, _placed_patterns, _window, propose_l2, propose_linf
from advcli.attacks.surrogate import Condition
from advcli.draws import Draws
from advcli.models import ModelOutput

THREATS = {"linf": Threat("linf", 0.1), "l2": Threat("l2", 0.7)}
PROPOSE = {"linf": propose_linf, "l2": propose_l2}
each_norm = pytest.mark.parametrize("norm", THREATS)
SIDE = 9


def images(n: int, channels: int = 3) -> Tensor:
    return (1.4 * torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 0.2).clamp(0, 1)


def draw(n: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 5 + channels, generator=torch.Generator().manual_seed(seed))


class Steep(nn.Module):
    """Three classes, affine in the pixels; rounded logits have no gradient."""

    def __init__(self, rounded: bool = False) -> None:
        super().__init__()
        self.weight = torch.randn(SIDE * SIDE, 3, generator=torch.Generator().manual_seed(5))
        self.rounded = rounded
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach().clone())
        z = (x.flatten(1) - 0.5) @ self.weight
        return z + ((10 * z).round() / 10 - z).detach() - z + z.detach() if self.rounded else z

    def trace(self, x: Tensor) -> ModelOutput:
        return ModelOutput(self(x), (), x, x)


@each_norm
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_proposals_stay_in_ball_and_box_and_change_only_their_squares(norm: str, size: int) -> None:
    """A hundred in a row, each from the last."""
    threat, x = THREATS[norm], images(40)
    best, sizes = x.clone(), torch.full((40,), size)
    for query in range(100):
        random = draw(40, seed=query)
        candidate = PROPOSE[norm](threat, x, best, sizes, random)
        assert bool(((candidate >= 0) & (candidate <= 1)).all())
        assert bool((threat.distance(candidate.double(), x.double()) <= threat.eps + 1e-6).all())
        if norm == "linf":
            square = _window(x, sizes, random[:, 0], random[:, 1]).bool().expand_as(x)
            assert torch.equal(candidate[~square], best[~square])
            full = (candidate - x).abs() > threat.eps - 1e-6
            assert bool((full | (candidate == 0) | (candidate == 1))[square].all())
        best = candidate


@pytest.mark.parametrize("side", [32, 8])
def test_sizes_are_the_published_table(side: int) -> None:
    """For 5,000 queries the share of pixels halves after queries 10, 50, 200, 500, 1000, 2000 and 4000."""
    starts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 5000]
    shares = np.repeat([0.8 / 2**i for i in range(8)], np.diff(starts))
    for norm in THREATS:
        expected = [max(round(math.sqrt(share) * side), 1) for share in shares]
        if norm == "l2":
            expected = [min(max(s, 3) + (max(s, 3) + 1) % 2, side) for s in expected]
        assert Square(THREATS[norm])._sizes(torch.arange(5000), side).tolist() == expected


@pytest.mark.parametrize("size", [1, 4, 9])
def test_windows_are_uniform_over_all_places(size: int) -> None:
    n, places = 20000, (SIDE - size + 1) ** 2
    random = Draws(0, torch.arange(n), "windows").uniform((8,))
    masks = _window(torch.zeros(n, 1, SIDE, SIDE), torch.full((n,), size), random[:, 0], random[:, 1])[:, 0]
    assert bool((masks.sum((1, 2)) == size**2).all())
    rows, columns = masks.amax(2).argmax(1), masks.amax(1).argmax(1)
    assert bool((masks.amax(2).sum(1) == size).all())
    counts = torch.bincount(rows * (SIDE - size + 1) + columns, minlength=places)
    assert len(counts) == places
    if places > 1:
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("side", [1, 3, 4, 5, 7, 9])
def test_patterns_have_norm_one_and_two_opposite_halves(side: int) -> None:
    pattern = _pattern(side, torch.device("cpu"))
    assert abs(float(pattern.norm()) - 1) < 1e-6
    if side > 1:
        assert bool((pattern[: side // 2] > 0).all())
        assert bool((pattern[side // 2 :] < 0).all())
    x, sizes, random = torch.zeros(50, 1, SIDE, SIDE), torch.full((50,), side), draw(50, 1)
    placed = _placed_patterns(x, sizes, random)
    torch.testing.assert_close(placed.flatten(1).norm(dim=1), torch.ones(50), rtol=0, atol=1e-6)
    assert torch.equal(placed != 0, _window(x, sizes, random[:, 0], random[:, 1]) > 0)


def test_patterns_are_those_of_the_authors() -> None:
    from pyautoattack.square import SquareAttack

    theirs = SquareAttack(None, norm="L2", eps=1.0, device="cpu")
    with torch.random.fork_rng():
        for side in (3, 4, 5, 6, 7, 11, 29):
            pattern, other = _pattern(side, torch.device("cpu")), theirs.eta(side)
            assert min(float((pattern - other).abs().max()), float((pattern.T - other).abs().max())) < 1e-6


def test_l2_moves_mass_and_makes_none() -> None:
    """Away from the box the perturbation keeps norm eps; the second square is emptied, but for where it meets the first."""
    threat, x = THREATS["l2"], torch.full((60, 3, SIDE, SIDE), 0.5)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    best = x + threat.eps * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    sizes, random = torch.tensor([3, 5] * 30), draw(60)
    delta, old = propose_l2(threat, x, best, sizes, random) - x, best - x
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((60,), threat.eps), rtol=0, atol=1e-5)
    here, there = (_window(x, sizes, random[:, i], random[:, i + 1]).bool().expand_as(x) for i in (0, 2))
    assert not (delta.abs() > 1e-7)[there & ~here].any()
    torch.testing.assert_close(delta[~there & ~here], old[~there & ~here], rtol=0, atol=1e-5)
    for channel in range(3):
        mass = [(part[:, channel].square() * where[:, channel]).sum((1, 2)) for part, where in ((old, here | there), (delta, here))]
        torch.testing.assert_close(mass[0], mass[1], rtol=1e-3, atol=1e-5)


def task(n: int, rows: Tensor | None = None) -> tuple[Task, Tensor, Tensor]:
    x = images(n, 1)
    y = Steep()(x).argmax(1)
    rows = torch.arange(n) if rows is None else rows
    return Task(lambda pick: x[rows][pick], y[rows], Draws(1, rows, "square"), {}), x, y


@each_norm
def test_margins_never_fall_and_proposals_start_from_the_best(norm: str) -> None:
    attack, surrogate = Square(THREATS[norm], queries=200), Surrogate(Steep().trace)
    (_, x, y), draws = task(12), Draws(1, torch.arange(12), "square")
    state = attack.begin(x, y, draws, {}, torch.zeros_like(y))
    last = torch.full((12,), -torch.inf)
    for _ in range(4):
        attack.advance(surrogate, state, torch.inf, draws)
        now = margin(Steep()(state["x_adv"]), y)
        torch.testing.assert_close(now, state["best_margin"], rtol=0, atol=1e-4)
        assert bool((state["best_margin"] >= last).all())
        last = state["best_margin"].clone()
    assert bool((last > margin(Steep()(x), y)).all())


@each_norm
@pytest.mark.parametrize("queries", [0, 1, 49, 50, 120])
def test_queries_are_counted_exactly(norm: str, queries: int) -> None:
    """The start, the proposals and the judge's look, and no more is asked."""
    attack, model, cost = Square(THREATS[norm], queries=queries, spares=False), Steep(), Cost()
    job, _, _ = task(4)
    judge = Judge(Steep(), chunk=4, bound=-torch.inf)
    (a,) = stream(attack, Surrogate(model.trace, cost), judge, job)
    assert a.forwards.tolist() == [queries + 2] * 4 == [attack.passes] * 4
    assert not a.backwards.any()
    assert cost.backwards == 0
    assert cost.forwards == 4 * (queries + 1)
    shown = torch.stack([margin(Steep()(x), job.labels) for x in model.shown])
    torch.testing.assert_close(a.found.margins, shown.max(0).values, rtol=0, atol=1e-5)


@each_norm
def test_every_example_has_squares_of_its_own(norm: str) -> None:
    """All differ where images are the same; and companions and their order change none."""
    attack, x, shown = Square(THREATS[norm], queries=40, spares=False), torch.full((10, 1, SIDE, SIDE), 0.5), {}
    for order in (torch.arange(10), torch.arange(9, -1, -1), torch.cat([torch.tensor([4, 7]), torch.arange(10, 18)])):
        model, y = Steep(), torch.zeros(len(order), dtype=torch.int64)
        job = Task(lambda pick: x[: len(pick)], y, Draws(1, order, "square"), {})
        list(stream(attack, Surrogate(model.trace), Judge(Steep(), chunk=10, bound=-torch.inf), job))
        for row, name in enumerate(order.tolist()):
            path = torch.stack([batch[row] for batch in model.shown])
            assert torch.equal(shown.setdefault(name, path), path)
    paths = torch.stack(list(shown.values()))
    for i in range(10):
        for j in range(i):
            assert not torch.equal(paths[i, 0], paths[j, 0])
            assert not torch.equal(paths[i, 5], paths[j, 5])


# Rows that look ahead.

CHUNK, QUERIES = 8, 130


class Shifted(Surrogate):
    """Logits moved by the row's own condition `shift` (N, 3), so that a look that is told another row's goes another way."""

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        output = super().__call__(x, condition)
        return output._replace(logits=output.logits + condition["shift"])


class Gullible(Judge):
    """Believes every search."""

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_full((len(x),), torch.inf)


def shifted(rows: Tensor) -> Task:
    return task(30, rows)[0]._replace(condition={"shift": 0.2 * torch.randn(30, 3, generator=torch.Generator().manual_seed(6))[rows]})


def one_by_one(threat: Threat, rows: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Of CHUNK examples the best points, and the queries that reached threshold, QUERIES + 1 for none: written down query after query."""
    attack, job, surrogate = Square(threat, queries=QUERIES, spares=False), shifted(rows), Shifted(Steep().trace)
    x, y = job.images(torch.arange(CHUNK)), job.labels
    best = attack.begin(x, y, job.draws, {}, torch.zeros_like(y))["x_adv"]
    highest, end = torch.full((CHUNK,), -torch.inf), torch.full((CHUNK,), QUERIES + 1)
    for query in range(QUERIES + 1):
        random = job.draws.sub("squares").at(query // 100).uniform((100, 6))[:, query % 100]
        size = attack._sizes(torch.tensor([query - 1]), SIDE).expand(CHUNK)
        candidate = PROPOSE[threat.norm](threat, x, best, size, random) if query else best
        now = margin(surrogate(candidate, job.condition).logits, y)
        better = (now > highest) & (end > QUERIES)
        best = torch.where(better[:, None, None, None], candidate, best)
        highest = torch.where(better, now, highest)
        end = torch.where(better & (now >= threshold), query, end)
    return best, end


@pytest.mark.parametrize("threshold", [torch.inf, 0.0], ids=["unbroken", "breaking"])
@each_norm
def test_looking_ahead_goes_the_way_of_one_query_after_another(norm: str, threshold: float) -> None:
    """Every example's point, the query that broke it and what it cost, however many rows look for it; looks thrown away are apart."""
    parts = [one_by_one(THREATS[norm], part, threshold) for part in torch.arange(2 * CHUNK).split(CHUNK)]
    points, ends = (torch.cat(columns) for columns in zip(*parts, strict=True))
    assert bool((ends <= QUERIES).any()) == (threshold == 0)
    plain = Square(THREATS[norm], queries=QUERIES, spares=False)
    for n in (1, 2, 3, 5, 7, 8, 11):
        rows = torch.arange(2 * CHUNK)[-n:]
        cost, judge = Cost(), Gullible(Steep(), chunk=CHUNK, bound=-threshold)
        attempts = list(stream(plain, Shifted(Steep().trace, cost), judge, shifted(rows)))
        for a in attempts:
            mine = rows[a.positions]
            assert torch.equal(a.found.x_adv, points[mine])
            assert torch.equal(a.found.steps, ends[mine])
            assert torch.equal(a.forwards - a.judged, ends[mine].clamp_max(QUERIES) + 1)
        useful, wasted = sum(int((a.forwards - a.judged).sum()) for a in attempts), sum(int(a.wasted.sum()) for a in attempts)
        assert useful + wasted <= cost.forwards
        if threshold == torch.inf:
            assert (wasted > 0) == (n % CHUNK > 0)
            assert cost.forwards <= useful + wasted + 3 * CHUNK  # no row idles, but for the last queries


@each_norm
def test_what_is_not_repeatable_is_never_asked_ahead(norm: str) -> None:
    cost = Cost()
    attack, judge = Square(THREATS[norm], queries=QUERIES), Judge(Steep(), chunk=CHUNK, bound=-torch.inf)
    (a,) = stream(attack, Surrogate(Steep().trace, cost, repeatable=False), judge, task(2)[0])
    assert cost.forwards == CHUNK * (QUERIES + 1)
    assert a.forwards.tolist() == [QUERIES + 2] * 2
    assert cost.backwards == cost.spared == 0
    assert not a.wasted.any()


@each_norm
def test_breaks_where_gradients_are_masked(norm: str) -> None:
    """Rounded logits: PGD cannot move but by chance, squares do as well as on the plain model, nearly."""
    threat, fallen = THREATS[norm], {}
    for rounded in (False, True):
        model, (_, x, y) = Steep(rounded), task(30)
        judge, draws = Judge(Steep(rounded), chunk=30), Draws(1, torch.arange(30), "masked")
        right = ~judge.decide(x, y)
        for name, attack in (
            ("square", Square(threat, queries=400)),
            ("pgd", Pgd(threat, attack_loss("ce"), steps=20, step_size=threat.eps / 4)),
        ):
            found = attack(Surrogate(model.trace), judge, x, y, draws, {})
            assert bool((threat.distance(found.x_adv, x) <= threat.eps + 1e-5).all())
            fallen[name, rounded] = int((found.broken & right).sum())
    assert fallen["pgd", False] >= fallen["square", False]
    assert fallen["square", True] >= 0.7 * fallen["square", False] > 0
    assert fallen["square", True] >= 2 * fallen["pgd", True] + 3


class Smooth(nn.Module):
    """Ten classes, a sine of mixed pixels: margins of many sizes, and a search that slows down."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = torch.randn(3 * SIDE * SIDE, 16, generator=generator) / SIDE
        self.second = torch.randn(16, 10, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * (x.flatten(1) - 0.5) @ self.first) @ self.second

    def trace(self, x: Tensor) -> ModelOutput:
        return ModelOutput(self(x), (), x, x)


def hopeless_after(margins: list[float], queries: int, bound: float) -> int | None:
    """After which thousand queries a search is given up; margins: the best one after 100 queries and at the end of each thousand."""
    rises = [later - earlier for earlier, later in itertools.pairwise(margins)]
    for k in range(2, (queries - 1) // 1000 + 1):
        before, now, left = rises[k - 2], rises[k - 1], queries / 1000 - k
        if bound < now <= before and -bound - margins[k] > 3 * now * max(left, 1):
            return 1000 * k
    return None


@pytest.mark.parametrize("queries", [5000, 2500, 2001, 2000, 1999])
def test_a_search_is_given_up_where_its_pace_leads_nowhere_in_time(queries: int) -> None:
    """After the thousand that the rule says, of 400 searches of all kinds; or, one in 32, not at all."""
    n, draw, bound = 400, np.random.default_rng(3), 0.01
    rises = np.sort(draw.choice([0.0, 0.005, 0.05, 0.2, 1.0], (n, 6)) * draw.random((n, 6)), 1)[:, ::-1]
    rises[:100] = rises[:100, ::-1]
    best = -draw.choice([1.0, 3.0, 9.0], (n, 1)) + rises.cumsum(1)
    best[:20, 0] = -np.inf  # no number was seen so early
    attack, y = Square(THREATS["l2"], queries=queries), torch.zeros(n, dtype=torch.int64)
    draws, cost = Draws(0, torch.arange(n), "hopeless"), Cost()
    state = attack.begin(images(1).expand(n, -1, -1, -1), y, draws, {}, y)
    over, sample = torch.full((n,), -1), draws.sub("sample").uniform(()) < 1 / 32
    for column, step in enumerate([100, *range(1000, queries + 1, 1000)]):
        state["best_margin"], state["step"] = torch.from_numpy(best[:, column].copy()), torch.full((n,), step)
        given = give_up(state, attack._hopeless(state, -bound), queries + 1 - state["step"], draws, cost)
        state["over"] = state["over"] | given
        over = torch.where((over < 0) & given, step, over)
    expected = torch.tensor([hopeless_after(row.tolist(), queries, bound) or -1 for row in best])
    assert len(set(expected.tolist())) == {5000: 4, 2500: 2, 2001: 2, 2000: 1, 1999: 1}[queries]
    assert torch.equal(over[~sample], expected[~sample])
    assert bool((over[sample] == -1).all())
    assert torch.equal(state["sampled"], (sample & (expected > 0)).long())
    assert int(state["sampled"].sum()) > 0 or queries < 2001
    assert cost.spared == int(state["spared"].sum()) == int((queries + 1 - over)[over > 0].sum())


def test_between_thousands_and_where_nothing_was_gained_nothing_is_concluded() -> None:
    attack, x, y = Square(THREATS["linf"]), images(6), torch.zeros(6, dtype=torch.int64)
    state = attack.begin(x, y, Draws(0, torch.arange(6), ""), {}, y)
    state |= {"best_margin": torch.full((6,), -9.0), "best_margin_before": torch.tensor([-9.1, -9.1, -9.0, -9.1, -9.005, -9.1])}
    state |= {"best_margin_rise": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.09]), "step": torch.tensor([2000, 2100, 2000, 1000, 2000, 2000])}
    assert attack._hopeless(state, -0.01).tolist() == [True, False, False, False, False, False]
    assert state["best_margin_before"].tolist() == pytest.approx([-9.0, -9.1, -9.0, -9.0, -9.0, -9.0])
    assert state["best_margin_rise"].tolist() == pytest.approx([0.1, 1.0, 0.0, 0.1, 0.005, 0.1], abs=1e-6)


@each_norm
def test_giving_up_spares_queries_and_loses_nothing(norm: str) -> None:
    """The same verdicts, and every pass accounted for; of l2, where no square is foreseen, what is spared is what was given up."""
    model, x = Smooth(), images(32)
    y = model(x).argmax(1)
    threat = Threat(norm, {"linf": 0.015, "l2": 0.35}[norm])  # type: ignore[arg-type]
    fallen, spent, mistakes = {}, {}, np.zeros(2, np.int64)
    for spares in (False, True):
        task, cost, attack = (
            Task(lambda pick: x[pick], y, Draws({"linf": 43, "l2": 98}[norm], torch.arange(32), ""), {}),
            Cost(),
            Square(threat, spares=spares),
        )
        broken, units = torch.zeros(32, dtype=torch.bool), torch.zeros(32, dtype=torch.int64)
        for a in stream(attack, Surrogate(model.trace, cost), Judge(model, chunk=16), task):
            broken[a.positions], units[a.positions] = a.found.broken, a.units
            mistakes += np.array([int(a.sparing[name].sum()) for name in ("mistaken", "sampled")]) if spares else 0
        gradients = 2 * 51 if spares and norm == "linf" else 0
        assert bool((units[~broken] == 5002 + gradients).all())
        fallen[spares], spent[spares] = broken, cost
    assert torch.equal(fallen[True], fallen[False])
    assert 3 < int(fallen[True].sum()) < 29
    assert mistakes[0] == 0 < mistakes[1]
    assert spent[False].spared == 0
    assert spent[True].spared > (0.2 if norm == "l2" else 0.5) * spent[True].units
