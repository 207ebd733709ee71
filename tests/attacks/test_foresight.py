"""What Square foresees: the formula, that nothing better is passed by where gradients tell the truth, and that lies are found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from advcli.attacks import Judge, Square, Surrogate, Threat, foresight
from advcli.attacks.foresight import Foresight, unknown
from advcli.attacks.losses import attack_loss, margin
from advcli.attacks.pool import Attempt, Task, stream
from advcli.attacks.square import propose_linf
from advcli.attacks.state import SPARING, fresh
from advcli.draws import Draws
from advcli.models import ModelOutput

pytestmark = pytest.mark.usefixtures("one_thread")

THREAT = Threat("linf", 0.1)
N, Q, CHUNK, QUERIES = 5, 7, 8, 420


def images(n: int, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return (1.4 * torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) - 0.2).clamp(0, 1)


def known(n: int, height: int = 12, width: int = 9, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...], Tensor]:
    """(state, gradient, places, up) in float64, anything."""
    draw = torch.Generator().manual_seed(seed)
    x = images(n, 3, height, width).double()
    best = THREAT.project(x + torch.randn(x.shape, generator=draw, dtype=torch.float64), x)
    size = torch.randint(1, 10, (n, Q), generator=draw)
    places = tuple((torch.rand(n, Q, generator=draw) * (length - size + 1)).long() for length in (height, width))
    gradient = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.int64)
    return {**fresh(x, zeros, best), "best": best, **unknown(x)}, gradient, (*places, size), torch.rand(n, Q, 3, generator=draw) < 0.5


def changes(state: dict[str, Tensor], places: tuple[Tensor, ...], up: Tensor) -> Tensor:
    """(N, Q, C, H, W): what the proposals change, pixel after pixel."""
    result = torch.zeros(*up.shape[:2], *state["x"].shape[1:], dtype=torch.float64)
    for n in range(up.shape[0]):
        for q in range(up.shape[1]):
            top, left, size = (int(place[n, q]) for place in places)
            for c in range(3):
                for i in range(top, top + size):
                    for j in range(left, left + size):
                        pixel = float(state["x"][n, c, i, j]) + (THREAT.eps if up[n, q, c] else -THREAT.eps)
                        result[n, q, c, i, j] = min(max(pixel, 0.0), 1.0) - float(state["best"][n, c, i, j])
    return result


def test_what_is_foreseen_is_the_gradient_times_the_change() -> None:
    state, gradient, places, up = known(N)
    seen = Foresight(THREAT, state, gradient, places, up, torch.ones(N, Q))  # type: ignore[arg-type]
    d = changes(state, places, up)
    torch.testing.assert_close(seen._slope, (gradient[:, None] * d).sum((2, 3, 4)), rtol=0, atol=1e-12)
    scale = ((gradient[:, None].abs() + foresight._FAINT) * d.abs()).sum((2, 3, 4)).sqrt()
    torch.testing.assert_close(seen._scale, scale, rtol=0, atol=1e-12)
    assert bool(seen.looked.all()), "who knows nothing of errors looks at everything"


def test_a_proposal_is_looked_at_that_may_raise_the_margin_within_three_errors() -> None:
    state, gradient, places, up = known(N)
    state |= {"squared": torch.linspace(0, 0.05, N, dtype=torch.float64), "counted": torch.full((N,), 8.0, dtype=torch.float64)}
    state["width"][3] = 24.0
    sample = torch.rand(N, Q, generator=torch.Generator().manual_seed(3)).round()
    seen = Foresight(THREAT, state, gradient, places, up, sample)  # type: ignore[arg-type]
    width = torch.tensor([3.0, 3, 3, 24, 3], dtype=torch.float64)
    worth = seen._slope + (width * (state["squared"] / 8).sqrt())[:, None] * seen._scale > 0
    worth[0] = True  # it has seen no error
    assert torch.equal(seen.worth, worth)
    assert torch.equal(seen.looked, worth | (sample < 1 / 32))
    assert 0 < int(worth.sum()) < worth.numel()
    assert bool((seen.looked & ~worth).any())


def test_what_changes_nothing_is_never_looked_at() -> None:
    """Whatever is known of errors, and were it to be in the sample; what a gradient of zero hides always is."""
    state, gradient, places, up = known(N)
    top, left, size = places
    for n in range(N):
        place = (n, slice(None), slice(int(top[n, 2]), int(top[n, 2] + size[n, 2])), slice(int(left[n, 2]), int(left[n, 2] + size[n, 2])))
        sign = torch.where(up[n, 2], 1.0, -1.0)[:, None, None].double()
        state["best"][place] = (state["x"][place] + THREAT.eps * sign).clamp(0, 1)
    for counted in (0.0, 9.0):
        state |= {"counted": torch.full((N,), counted, dtype=torch.float64), "squared": torch.full((N,), counted, dtype=torch.float64)}
        seen = Foresight(THREAT, state, gradient, places, up, torch.zeros(N, Q))  # type: ignore[arg-type]
        assert not bool(seen.looked[:, 2].any())
        hidden = Foresight(THREAT, state, torch.zeros_like(gradient), places, up, torch.ones(N, Q))  # type: ignore[arg-type]
        assert torch.equal(hidden.looked, changes(state, places, up).abs().sum((2, 3, 4)) > 0)


@pytest.mark.parametrize("rows", [[3], [0, 4, 9], list(range(20)), [7, 19] * 6])
def test_rows_with_a_new_best_point_are_foreseen_anew_and_no_others(rows: list[int]) -> None:
    state, gradient, places, up = known(20)
    state |= {"counted": torch.full((20,), 9.0, dtype=torch.float64), "squared": torch.full((20,), 0.09, dtype=torch.float64)}
    seen = Foresight(THREAT, state, gradient, places, up, torch.ones(20, Q))  # type: ignore[arg-type]
    before, moved = seen._slope.clone(), state["best"].clone()
    moved[rows] = state["x"][rows]
    seen.improved(moved, torch.tensor(rows))
    anew = Foresight(THREAT, state | {"best": moved}, gradient, places, up, torch.ones(20, Q))  # type: ignore[arg-type]
    assert torch.equal(seen._slope, anew._slope)
    assert torch.equal(seen.looked, anew.looked)
    others = torch.ones(20, dtype=torch.bool).index_fill(0, torch.tensor(rows), False)
    assert torch.equal(seen._slope[others], before[others])


def test_errors_are_learnt_and_half_forgotten_with_every_block() -> None:
    """By whoever is at its end; a row that the judge has sent back begins another part of the same one."""
    state, gradient, places, up = known(2)
    for block in range(3):
        seen = Foresight(THREAT, state, gradient, places, up, torch.ones(2, Q))  # type: ignore[arg-type]
        error = torch.tensor([0.5, -0.25, 1.0]) * 2.0**block
        rows, queries = torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2])
        seen.note(rows, queries, seen._slope[rows, queries] + error * seen._scale[rows, queries])
        seen.learn(state, torch.tensor([True, False]))
    squares = [(0.5**2 + 0.25**2) * (4**2 + 2**2 / 2 + 1 / 4), 4.0**2 + 2.0**2 + 1]
    torch.testing.assert_close(state["squared"], torch.tensor(squares, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(state["counted"], torch.tensor([2 * 1.75, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("squared", "counted"), [(0.0, 50.0), (1e-9, 7.0), (torch.nan, 50.0), (torch.inf, 50.0)])
def test_nothing_is_concluded_from_few_looks_from_none_that_erred_or_from_no_numbers(squared: float, counted: float) -> None:
    state, gradient, places, up = known(N)
    state |= {"squared": torch.full((N,), squared, dtype=torch.float64), "counted": torch.full((N,), counted, dtype=torch.float64)}
    for slopes in (gradient, gradient * torch.inf, -gradient.abs() * 1e308):
        assert bool(Foresight(THREAT, state, slopes, places, up, torch.ones(N, Q)).looked.all())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan, 3.4e38])
def test_a_gradient_that_is_no_number_hides_nothing(wrong: float) -> None:
    """One pixel's, float32, in or out of the squares: all that changes anything is looked at."""
    state, gradient, places, up = known(N)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    state |= {"counted": torch.full((N,), 50.0), "squared": torch.full((N,), 1e-6)}
    slopes = gradient.float()
    slopes[:, :, 3, :] = wrong
    seen = Foresight(THREAT, state, slopes, places, up, torch.ones(N, Q))  # type: ignore[arg-type]
    touched = (places[0] <= 3) & (places[0] + places[2] > 3)
    assert bool(touched.any())
    assert bool(seen.looked[touched].all())


def test_whoever_is_found_mistaken_looks_twice_as_far_and_it_is_counted() -> None:
    state, gradient, places, up = known(3)
    state |= {"counted": torch.full((3,), 9.0, dtype=torch.float64), "squared": torch.full((3,), 9e-6, dtype=torch.float64)}
    seen = Foresight(THREAT, state, gradient, places, up, torch.zeros(3, Q))  # type: ignore[arg-type]
    poor, good = (~seen.worth).int().argmax(1), seen.worth.int().argmax(1)
    assert not bool(seen.worth[torch.arange(3), poor].any())
    seen.note(torch.tensor([0, 1, 2]), torch.stack([poor[0], poor[1], good[2]]), torch.tensor([0.1, -0.1, 0.1], dtype=torch.float64))
    seen.learn(state, torch.ones(3, dtype=torch.bool))
    assert state["width"].tolist() == [6.0, 3.0, 3.0]
    assert state["queries_sampled"].tolist() == [1, 1, 0]
    assert state["queries_mistaken"].tolist() == [1, 0, 0]


# Whole searches.


class Classifier(nn.Module):
    """Four classes, smooth in the pixels; bent: what its gradients are made into."""

    def __init__(self, bent: Callable[[Tensor], Tensor] = lambda g: g) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.first, self.last = torch.randn(3 * 12 * 12, 16, generator=draw) / 12, torch.randn(16, 4, generator=draw)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.last

    def trace(self, x: Tensor) -> ModelOutput:
        z = self(x)
        if z.requires_grad:
            z.register_hook(self.bent)
        return ModelOutput(z, (), x, x)


def searched(model: Classifier, rows: Tensor, *, chunk: int = CHUNK, **more: bool) -> list[Attempt]:
    """Attempts on those of twenty images."""
    x = images(20)
    y = model(x).argmax(1)
    job = Task(lambda pick: x[rows][pick], y[rows], Draws(3, rows, "foresight"), {})
    judge = Judge(model, chunk=chunk, bound=-torch.inf)
    return list(stream(Square(THREAT, queries=QUERIES, **more), Surrogate(model.trace), judge, job))


def column(attempts: list[Attempt], read: Callable[[Attempt], Tensor]) -> Tensor:
    """(N, ...) by position."""
    order = torch.cat([a.positions for a in attempts]).argsort()
    return torch.cat([read(a) for a in attempts])[order]


def test_the_search_goes_the_way_that_it_would_have_gone_with_far_fewer_looks() -> None:
    rows = torch.arange(20)
    plain, seeing = (searched(Classifier(), rows, spares=spares) for spares in (False, True))
    for read in (lambda a: a.found.margins, lambda a: a.found.x_adv):
        torch.testing.assert_close(column(seeing, read), column(plain, read), rtol=0, atol=1e-5)
    looks = int(column(seeing, lambda a: a.forwards - a.backwards).sum())
    assert looks < 0.6 * int(column(plain, lambda a: a.forwards).sum())
    assert bool((column(seeing, lambda a: a.units) == Square(THREAT, queries=QUERIES).passes).all())
    assert int(column(seeing, lambda a: a.sparing["queries_sampled"]).sum()) > 0


LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda g: 0 * g,
    "next to nothing": lambda g: 1e-9 * g,
    "the opposite": lambda g: -g,
    "another class's": lambda g: g.flip(1),
    "no number": lambda g: g * torch.inf,
}


@pytest.mark.parametrize("bent", LIES.values(), ids=LIES)
def test_where_gradients_lie_next_to_everything_is_looked_at(bent: Callable[[Tensor], Tensor]) -> None:
    """And nothing is lost by it: to the bit what the search without foresight finds, but where a lie is true by chance."""
    rows = torch.arange(20)
    plain, lied_to = searched(Classifier(), rows, spares=False), searched(Classifier(bent), rows)
    spared = column(lied_to, lambda a: a.sparing["spared"]).double().mean() / QUERIES
    assert spared < 0.06
    lost = column(plain, lambda a: a.found.margins) - column(lied_to, lambda a: a.found.margins)
    assert int((lost != 0).sum()) <= 4 * (bent is LIES["another class's"])
    assert float(lost.abs().max()) < 0.05


class Hard(Classifier):
    """Nothing but decisions, or plateaus of them: no margin moves before it jumps."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return (self.levels * z).round() / self.levels if self.levels else 20 * torch.eye(4)[z.argmax(1)]

    def trace(self, x: Tensor) -> ModelOutput:
        return ModelOutput(self(x) + 0 * x.flatten(1)[:, :1], (), x, x)


@pytest.mark.parametrize("levels", [0.0, 1.0, 4.0, 30.0])
def test_plateaus_are_looked_at_as_without_foresight(levels: float) -> None:
    rows = torch.arange(20)
    plain, seeing = (searched(Hard(levels), rows, spares=spares) for spares in (False, True))
    assert torch.equal(column(seeing, lambda a: a.found.x_adv), column(plain, lambda a: a.found.x_adv))
    assert not bool(column(seeing, lambda a: a.sparing["queries_sampled"]).any()), "spared is what changes nothing, and no more"


def test_answers_that_are_no_numbers_teach_nothing() -> None:
    """One in a hundred: what was learnt of the others stays, and so does the way."""

    class Failing(Classifier):
        def trace(self, x: Tensor) -> ModelOutput:
            fails = (x.detach() * 7919).sum((1, 2, 3)).remainder(1) < 0.01
            return ModelOutput(self(x) + torch.where(fails, torch.nan, 0.0)[:, None], (), x, x)

    rows = torch.arange(20)
    plain, seeing = (searched(Failing(), rows, spares=spares) for spares in (False, True))
    lost = column(plain, lambda a: a.found.margins) - column(seeing, lambda a: a.found.margins)
    assert int((lost.abs() < 1e-4).sum()) >= 18  # a proposal that is missed changes which ones fail from there on
    assert column(seeing, lambda a: a.sparing["spared"]).double().mean() > 0.1 * QUERIES


def test_what_jumps_where_it_seemed_linear_is_found_out_and_looked_at() -> None:
    """Gates that begin to shut after three blocks, at three points in ten: the sample finds it, and then nearly all is looked at."""

    class Late(Classifier):
        shutting = False

        def trace(self, x: Tensor) -> ModelOutput:
            margins = (x.flatten(1) @ self.first[:, :1])[:, 0]
            shut = self.shutting & ((x.detach() * 7919).sum((1, 2, 3)).remainder(1) < 0.3)
            z = torch.stack([-margins, 0.5 * shut, margins - margins, margins - margins], 1)
            return ModelOutput(z, (), x, x)

    x, rows = images(CHUNK), torch.arange(CHUNK)
    attack, model = Square(THREAT, queries=1200), Late()
    draws, y = Draws(0, rows, "late"), torch.zeros(CHUNK, dtype=torch.int64)
    state = attack.begin(x, y, draws, {}, torch.zeros_like(y))
    shares = []
    while not bool(state["over"].all()):
        model.shutting = len(shares) >= 3
        before, spared = state["step"], state["spared"]
        attack.advance(Surrogate(model.trace), state, torch.inf, draws)
        shares.append(float((state["spared"] - spared).sum() / (state["step"] - before).sum()))
    assert shares[0] < 0.05
    assert min(shares[1:3]) > 0.5
    assert max(shares[5:]) < 0.1
    assert bool((state["width"] > 3).any())


@pytest.mark.parametrize("chunk", [CHUNK, 13])
def test_company_changes_nothing(chunk: int) -> None:
    """Alone, in part and turned round: the same points, looks and counts; only what is wasted differs."""
    reads = {
        "points": lambda a: a.found.x_adv,
        "forwards": lambda a: a.forwards,
        "steps": lambda a: a.found.steps,
        **{name: lambda a, name=name: a.sparing[name] for name in SPARING},
    }
    whole = searched(Classifier(), torch.arange(20), chunk=chunk)
    for rows in (torch.arange(20).flip(0), torch.tensor([4]), torch.tensor([19, 2, 11]), torch.arange(3, 16)):
        part = searched(Classifier(), rows, chunk=chunk)
        for name, read in reads.items():
            assert torch.equal(column(part, read), column(whole, read)[rows]), name


def test_the_whole_written_down_query_after_query() -> None:
    """One image, in plain loops: which queries are looked at, what they teach, and where it ends."""
    model, x = Classifier(), images(20)[2:3]
    y, attack, draws = model(x).argmax(1), Square(THREAT, queries=QUERIES), Draws(3, torch.tensor([2]), "foresight")
    best, highest = attack.begin(x, y, draws, {}, torch.zeros_like(y))["best"], -float("inf")
    squared = counted = 0.0
    width, looks, foreseen, sampled, mistaken = 3.0, 0, 0, 0, 0
    for block in range(QUERIES // 100 + 1):
        random = draws.sub("squares").at(block).uniform((100, 8))[0]
        g, _, _ = Surrogate(model.trace).gradient(attack_loss("margin"), best, y, {})
        bound, new, doubled = width * (squared / counted) ** 0.5 if counted else float("inf"), [], False
        for query in range(100 * block, min(100 * block + 100, QUERIES + 1)):
            numbers = random[query % 100][None]
            size = attack._sizes(torch.tensor([query - 1]), 12)
            candidate = propose_linf(THREAT, x, best, size, numbers) if query else best
            d = (candidate - best).double()
            slope, scale = float((g * d).sum()), float(((g.abs() + foresight._FAINT) * d.abs()).sum()) ** 0.5
            worth = scale > 0 and slope + bound * scale > 0
            if query and not worth and not (scale > 0 and float(numbers[0, 4]) < 1 / 32):
                foreseen += 1
                continue
            now = float(margin(model.trace(candidate).logits, y))
            looks += 1
            if query:
                new.append(((now - highest - slope) / scale) ** 2)
                sampled += not worth
                mistaken += not worth and now > highest
                doubled |= not worth and now > highest
            if now > highest:
                best, highest = candidate, now
        squared, counted, width = squared / 2 + sum(new), counted / 2 + len(new), width * (2 if doubled else 1)
    (a,) = searched(model, torch.tensor([2]))
    torch.testing.assert_close(a.found.x_adv, best, rtol=0, atol=0)
    assert (int(a.forwards) - int(a.backwards) - 1, int(a.sparing["spared"])) == (looks, foreseen)
    assert (int(a.sparing["queries_sampled"]), int(a.sparing["queries_mistaken"])) == (sampled, mistaken)


def test_only_squares_of_one_colour_are_foreseen_and_only_where_asking_twice_is_allowed() -> None:
    assert Square(Threat("l2", 1.0)).passes == 5002
    assert Square(THREAT).passes == 5002 + 2 * 51
    assert Square(THREAT, spares=False).timed(repeatable=True)[1] == 1.0
    assert Square(THREAT).timed(repeatable=False)[1] == 1.0
    attack, share = Square(THREAT).timed(repeatable=True)
    assert share < 1
    assert attack == replace(Square(THREAT), queries=20)
