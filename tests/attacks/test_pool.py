"""Continuous batching: whose turn it is, who shares a batch and what the judge says change nobody's outcome; costs are exact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.attacks import Apgd, Cost, Fab, Judge, Pgd, Square, Surrogate, Threat, square
from advcli.attacks.losses import attack_loss, margin
from advcli.attacks.pool import Attempt, PooledAttack, Task, _Pool, stream
from advcli.attacks.state import State, fresh, size
from advcli.attacks.turns import Job, Turns
from advcli.draws import Draws
from advcli.models import ModelOutput

K, N = 4, 23
LINF, L2 = Threat("linf", 0.04), Threat("l2", 0.25)


class Spied(nn.Module):
    """A small smooth network that remembers the batch sizes it is shown."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(64, 24, generator=generator) / 4
        self.second = torch.randn(24, K, generator=generator)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return torch.tanh((x.flatten(1) - 0.5) @ self.first) @ self.second

    def trace(self, x: Tensor) -> ModelOutput:
        return ModelOutput(self(x), (), x, x)


class Refusing(Judge):
    """Never fooled, or only by what keeps away from the surrogate's own boundary by `reserve`."""

    def __init__(self, *args: Any, reserve: float = torch.inf, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.reserve = reserve

    def broken(self, margins: Tensor) -> Tensor:
        return margins >= self.reserve


ATTACKS: dict[str, PooledAttack] = {
    "pgd": Pgd(LINF, attack_loss("ce"), steps=6, step_size=0.01, restarts=3),
    "pgd-momentum": Pgd(LINF, attack_loss("margin"), steps=6, step_size=0.01, restarts=2, momentum=0.9),
    "apgd-ce": Apgd(LINF, "ce", steps=8, restarts=2),
    "apgd-t-l2": Apgd(L2, "dlr-targeted", steps=6, targets=3),
    "fab": Fab(LINF, steps=5, targets=3),
    "fab-l2": Fab(L2, steps=5, targets=3),
    "square": Square(LINF, queries=20),
    "square-l2": Square(L2, queries=20),
    "apgd-t-sparing": Apgd(LINF, "dlr-targeted", steps=45, targets=3),
    "apgd-ce-l2-sparing": Apgd(L2, "ce", steps=25, restarts=2),
    "fab-sparing": Fab(LINF, steps=45, targets=3),
    "square-sparing": Square(LINF, queries=320),
    "square-l2-sparing": Square(L2, queries=320),
}
SPARING = [name for name in ATTACKS if name.endswith("sparing")]
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that searches of 320 queries are given up, too."""
    monkeypatch.setattr(square, "_STRETCH", 100)


def examples(n: int = N) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, Spied()(x).argmax(1)


def task(rows: Tensor | None = None) -> Task:
    x, y = examples()
    rows = torch.arange(N) if rows is None else rows
    return Task(lambda pick: x[rows][pick], y[rows], Draws(0, rows * 7 + 1, "pool"), {})


def outcomes(attack: PooledAttack, rows: Tensor, chunk: int, judge: type[Judge] = Judge, **settings: Any) -> dict[int, tuple[Any, ...]]:
    """Of each example's last attempt, everything that there is to know, by its name."""
    model = Spied()
    attempts = stream(attack, Surrogate(model.trace), judge(model, chunk=chunk, **settings), task(rows))
    result = {}
    for a in attempts:
        for i in torch.nonzero(a.final)[:, 0].tolist():
            name = int(rows[a.positions[i]])
            assert name not in result, "a second final attempt"
            fields = (a.found.margins, a.found.broken, a.found.steps, a.runs, a.forwards, a.backwards, *a.sparing.values())
            result[name] = (a.found.x_adv[i].flatten().tolist(), *(field[i].item() for field in fields))
    return result


ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(0))


@each_attack
@pytest.mark.parametrize("judge", [Judge, Refusing], ids=["believing", "refusing"])
def test_outcomes_belong_to_the_example(attack: PooledAttack, judge: type[Judge]) -> None:
    """To the bit, whoever else is there, in which order, in a chunk that they fill or not; everyone gets one final attempt."""
    settings = {"reserve": 0.05} if judge is Refusing else {}
    whole = outcomes(attack, torch.arange(N), 8, judge, **settings)
    assert set(whole) == set(range(N))
    assert 0 < sum(outcome[2] for outcome in whole.values()) < N
    for rows in (ORDER, ORDER[:16], ORDER[:3], ORDER[3:4], ORDER[:9]):
        part = outcomes(attack, rows, 8, judge, **settings)
        assert part == {int(i): whole[int(i)] for i in rows}


@pytest.mark.parametrize("name", SPARING)
def test_the_cases_above_that_may_spare_do(name: str) -> None:
    assert sum(outcome[7] > 0 for outcome in outcomes(ATTACKS[name], torch.arange(N), 8).values()) > 1


@each_attack
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_every_example_gets_one_final_attempt_at_any_chunk(attack: PooledAttack, chunk: int) -> None:
    assert set(outcomes(attack, torch.arange(N), chunk)) == set(range(N))


@pytest.mark.parametrize("refuse", [False, True], ids=["believing", "refusing"])
@each_attack
def test_runs_in_order_until_success_and_costs_exact(attack: PooledAttack, refuse: bool) -> None:
    """Runs 0, 1, ... and none after a success; the last attempt's costs are all that the example took part in."""
    model = Spied()
    judge = (Refusing if refuse else Judge)(model, chunk=6)
    history: dict[int, list[tuple[int, bool, bool, int, int, int]]] = {}
    for a in stream(attack, Surrogate(model.trace), judge, task()):
        rows = (a.positions, a.runs, a.found.broken, a.final, a.forwards, a.backwards, a.units)
        for position, *rest in zip(*(field.tolist() for field in rows), strict=True):
            history.setdefault(position, []).append(tuple(rest))
    black = isinstance(attack, Square)
    for attempts in history.values():
        assert [run for run, *_ in attempts] == list(range(len(attempts)))
        assert [final for _, _, final, *_ in attempts] == [False] * (len(attempts) - 1) + [True]
        assert [broken for _, broken, *_ in attempts[:-1]] == [False] * (len(attempts) - 1)
        _, broken, _, forwards, backwards, units = attempts[-1]
        assert broken or len(attempts) == attack.runs
        assert units == forwards + backwards or attack.can_spare
        if not refuse:
            assert forwards - len(attempts) == backwards or black
            if not broken:
                assert units == attack.passes
        assert not (broken and refuse)
    assert len(history) == N


# Runs of one example at once.


Row = tuple[Any, ...]


def history(attack: PooledAttack, surrogate: Surrogate, judge: Judge, todo: Task) -> dict[int, list[Row]]:
    """Every attempt of every example, in the order in which they come: (run, point, margin, broken, steps, passes, final)."""
    attempts: dict[int, list[Row]] = {}
    for a in stream(attack, surrogate, judge, todo):
        assert len(a.positions) == len(a.positions.unique()) > 0
        columns = (a.runs, a.found.x_adv.flatten(1), *a.found[1:], a.forwards, a.backwards, a.judged, *a.sparing.values(), a.final)
        for position, *row in zip(a.positions.tolist(), *(column.tolist() for column in columns), strict=True):
            attempts.setdefault(position, []).append(tuple(row))
    return attempts


@pytest.fixture
def one_after_another() -> Iterator[pytest.MonkeyPatch]:
    """While it is patched, no run begins before the one before it has failed; undo() ends that."""

    def only_due(turns: Turns, free: int) -> list[Job]:
        return [turns._begin(turns.due.popleft()) for _ in range(min(free, len(turns.due)))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turns, "begin", only_due)
        yield patch


@each_attack
@pytest.mark.parametrize("reserve", [-0.0, 0.05], ids=["believing", "refusing"])
@pytest.mark.parametrize("error", [0.0, 0.02])
def test_runs_at_once_change_no_byte(attack: PooledAttack, reserve: float, error: float, one_after_another: pytest.MonkeyPatch) -> None:
    """Every attempt, its point and its costs, of many examples in 16 rows and of a few."""

    def all_of(rows: Tensor) -> dict[int, list[Row]]:
        model = Spied()
        return history(attack, Surrogate(model.trace, error=error), Refusing(model, chunk=16, reserve=reserve), task(rows))

    parts = [torch.arange(N), ORDER[:5], ORDER[7:8]]
    before = [all_of(rows) for rows in parts]
    one_after_another.undo()
    assert [all_of(rows) for rows in parts] == before


@dataclass(frozen=True)
class Scripted(PooledAttack):
    """Run r of example i believes itself done at the steps hits[i][r]; its point tells (i, r, step), which the judge is to look up."""

    hits: tuple[tuple[tuple[int, ...], ...], ...]
    steps: int = 6

    @property
    def runs(self) -> int:
        return len(self.hits[0])

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Any, run: Tensor) -> State:
        x_adv = torch.stack([draws.index, run, 0 * run], 1).float()[:, :, None, None]
        return fresh(x, y, x_adv)

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        told = [self.hits[i][r] for i, r in zip(draws.index.tolist(), draws.counter.tolist(), strict=True)]  # type: ignore[union-attr]
        now = torch.tensor([step in steps for step, steps in zip(state["step"].tolist(), told, strict=True)])
        state["hit"] = now & ~state["excused"]
        state["excused"] = torch.zeros_like(now)
        state["forwards"] += 1
        surrogate.cost.forwards += len(now)
        state["step"] = state["step"] + (~state["hit"]).long()
        state["x_adv"] = torch.cat([state["x_adv"][:, :2], state["step"].float()[:, None, None, None]], 1)
        state["over"] = ~state["hit"] & (state["step"] >= self.steps)


class Lookup(nn.Module):
    """Fooled at the points (i, r, step) of `wrong`, and nowhere else."""

    def __init__(self, wrong: set[tuple[int, int, int]]) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        fooled = torch.tensor([tuple(map(int, row)) in self.wrong for row in x.flatten(1).tolist()])
        return torch.stack([torch.zeros(len(x)), torch.where(fooled, 1.0, -1.0)], 1)


def scripted(
    hits: Sequence[Sequence[Sequence[int]]], wrong: set[tuple[int, int, int]], chunk: int, steps: int = 6
) -> tuple[list[Attempt], int]:
    """(attempts, units of work)."""
    n, units = len(hits), Counter[str]()
    attack = Scripted(tuple(tuple(map(tuple, runs)) for runs in hits), steps)
    todo = Task(lambda rows: torch.zeros(len(rows), 3, 1, 1), torch.zeros(n, dtype=torch.int64), Draws(0, torch.arange(n), ""), {})
    model = Lookup(wrong)
    surrogate = Surrogate(lambda x: ModelOutput(model(x), (), x, x))
    return list(stream(attack, surrogate, Judge(model, chunk=chunk), todo, lambda: units.update("u"))), units["u"]


def test_the_lowest_success_wins_though_a_later_run_is_there_first() -> None:
    """Run 3 succeeds at once, run 1 at its fourth step, the judge refuses what run 0 believes: run 1, and runs 0 and 1 are counted."""
    attempts, _ = scripted([[[2], [4], [], [0], [0]]], {(0, 1, 4), (0, 3, 0), (0, 4, 0)}, chunk=8)
    assert [a.runs.tolist() for a in attempts] == [[0], [1]]
    assert [a.found.broken.tolist() for a in attempts] == [[False], [True]]
    assert attempts[-1].final.tolist() == [True]
    assert attempts[-1].found.x_adv.flatten().tolist() == [0, 1, 4]
    assert attempts[-1].found.steps.tolist() == [4]
    assert attempts[-1].judged.tolist() == [3]  # run 0 at the refused point and at its end, run 1
    assert attempts[-1].forwards.tolist() == [7 + 5 + 3]
    assert attempts[-1].wasted.tolist() > [0]


def test_a_success_ends_the_runs_past_it_at_once_and_leaves_those_before_alone() -> None:
    """Half way through the others' steps its runs 2 and 3 are gone, and run 0 goes on, for it may succeed yet."""
    live: list[set[Job]] = []
    work = _Pool.work

    def spy(pool: _Pool) -> None:
        live.append({job for job in zip(pool.live["position"].tolist(), pool.live["run"].tolist(), strict=True) if job[0] >= 0})
        work(pool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Pool, "work", spy)
        attempts, _ = scripted([[[], [0], [], []], [[], [], [], []]], {(0, 1, 0)}, chunk=8, steps=12)
    assert live[0] == {(i, r) for i in range(2) for r in range(4)}
    assert live[6] == {(0, 0), *((1, r) for r in range(4))}
    outcome = {(p, r): f for a in attempts for p, r, f in zip(a.positions.tolist(), a.runs.tolist(), a.final.tolist(), strict=True)}
    assert outcome == {(0, 0): False, (0, 1): True, (1, 0): False, (1, 1): False, (1, 2): False, (1, 3): True}


@pytest.mark.parametrize("seed", range(20))
def test_a_script_has_one_outcome_at_any_width(seed: int) -> None:
    """Random beliefs, of which the judge confirms a half: from one row, where nothing can go at once, to more than there are runs."""
    generator = random.Random(seed)
    hits = [[sorted(generator.sample(range(6), generator.choice((0, 0, 0, 1, 2)))) for _ in range(4)] for _ in range(5)]
    wrong = {(i, r, s) for i, runs in enumerate(hits) for r, steps in enumerate(runs) for s in steps if generator.random() < 0.5}
    outcomes = []
    for chunk in (1, 3, 8, 32):
        attempts, _ = scripted(hits, wrong, chunk)
        rows = [(a.positions, a.runs, a.found.broken, a.found.steps, a.forwards, a.judged, a.final) for a in attempts]
        told = [row for columns in rows for row in zip(*(column.tolist() for column in columns), strict=True)]
        outcomes.append(sorted(told))
        for i in range(5):
            assert [run for position, run, *_ in told if position == i] == list(range(sum(row[0] == i for row in told)))
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize(("examples", "chunk", "waves"), [(1, 4, 1), (1, 8, 1), (2, 4, 2), (3, 8, 2), (8, 4, 8)])
def test_a_pool_that_nothing_breaks_takes_as_many_steps_as_rows_allow(examples: int, chunk: int, waves: int) -> None:
    _, units = scripted([[[]] * 4] * examples, set(), chunk)
    assert units == 6 * waves


class Table(nn.Module):
    """The margin of label 0 after the step it is asked at; an image's pixel is its step count."""

    def __init__(self, success: int) -> None:
        super().__init__()
        self.success = success

    def forward(self, x: Tensor) -> Tensor:
        step = x[:, 0, 0, 0] * 100
        return torch.stack([0 * step, step - self.success + 0.5], 1)


@pytest.mark.parametrize(
    ("success", "forwards", "backwards", "steps"), [(0, 2, 1, 0), (1, 3, 2, 1), (4, 6, 5, 4), (5, 6, 5, 5), (99, 6, 5, -1)]
)
def test_costs_of_an_example_that_breaks_at_a_known_step(success: int, forwards: int, backwards: int, steps: int) -> None:
    """A success seen by the surrogate after s steps costs s + 1 forwards and backwards; after the last step only the judge looks."""
    model, x = Table(success), torch.zeros(3, 1, 2, 2)
    attack = Pgd(Threat("linf", 0.5), attack_loss("margin"), steps=5, step_size=0.01, start="none")
    surrogate = Surrogate(lambda x: ModelOutput(model(x), (), x, x))
    job = Task(lambda pick: x[pick], torch.zeros(3, dtype=torch.int64), Draws(0, torch.arange(3), ""), {})
    (a,) = stream(attack, surrogate, Judge(model, chunk=4), job)
    assert a.forwards.tolist() == [forwards] * 3
    assert a.backwards.tolist() == [backwards] * 3
    assert a.found.steps.tolist() == [steps] * 3


@each_attack
@pytest.mark.parametrize("n", [1, 6, 23])
def test_every_forward_is_a_whole_chunk(attack: PooledAttack, n: int) -> None:
    """Of the surrogate and of the judge; clean logits included, which nobody gave here. A unit of Square's work is many forwards."""
    ours, judged = Spied(), Spied()
    worked: Counter[str] = Counter()
    judge = Judge(judged, chunk=6)
    list(stream(attack, Surrogate(ours.trace), judge, task(ORDER[:n]), lambda: worked.update("u")))
    assert set(ours.seen) == {6}
    assert set(judged.seen) == {6}
    clean = -(-n // 6) if attack.needs_logits else 0
    assert isinstance(attack, Square) or len(ours.seen) == worked["u"] + clean


@pytest.mark.parametrize("reserve", [torch.inf, 0.4], ids=["all refused", "some refused"])
@each_attack
def test_a_judge_that_is_not_fooled_makes_rows_go_on_and_end(attack: PooledAttack, reserve: float) -> None:
    """At most one refusal an iteration, so the loop ends; the surrogate's verdict alone breaks nothing."""
    model, cost = Spied(), Cost()
    units = iter(range(20000))
    judge = Refusing(model, chunk=6, reserve=reserve, cost=cost)
    attempts = list(stream(attack, Surrogate(model.trace), judge, task(), lambda: next(units)))
    assert sum(int(a.final.sum()) for a in attempts) == N
    assert not any(bool((a.found.broken & (a.found.margins < reserve)).any()) for a in attempts)
    assert cost.forwards > N  # some were refused and looked at again
    steps = attack.queries + 1 if isinstance(attack, Square) else attack.steps  # type: ignore[attr-defined]
    assert cost.forwards <= N * attack.runs * (steps + 1)


@pytest.mark.parametrize("name", ["pgd", "pgd-momentum", "apgd-ce", "apgd-t-l2"])
def test_a_refusal_leaves_the_path_as_it_was(name: str) -> None:
    """The last points of runs with all successes refused are those of runs in which none was ever noticed."""
    ends = []
    for judge in (Refusing(Spied(), chunk=8), Judge(Spied(), chunk=8, bound=-torch.inf)):
        points = {}
        for a in stream(ATTACKS[name], Surrogate(Spied().trace), judge, task()):
            points |= {(p, r): x.tolist() for p, r, x in zip(a.positions.tolist(), a.runs.tolist(), a.found.x_adv, strict=True)}
        ends.append(points)
    assert ends[0] == ends[1]


@each_attack
def test_another_judge_than_the_surrogate_has_the_last_word(attack: PooledAttack) -> None:
    surrogate, judged = Spied(), Spied()
    judged.second = judged.second + 0.3 * torch.randn(judged.second.shape, generator=torch.Generator().manual_seed(9))
    x, y = examples()
    found = attack(Surrogate(surrogate.trace), Judge(judged, chunk=8), x, y, Draws(0, torch.arange(N), "pool"), {})
    assert torch.equal(found.broken, Judge(judged, chunk=8).decide(found.x_adv, y))
    assert torch.equal(found.steps >= 0, found.broken)
    assert found.broken.any()


def test_an_empty_task_does_nothing() -> None:
    model = Spied()
    nothing = task(torch.arange(0))._replace(condition={"logits": torch.zeros(0, K)})
    for attack in ATTACKS.values():
        assert list(stream(attack, Surrogate(model.trace), Judge(model, chunk=4), nothing)) == []
    assert model.seen == []


@each_attack
@pytest.mark.parametrize("judge", [Judge, Refusing])
def test_never_more_live_rows_than_the_chunk(attack: PooledAttack, judge: type[Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at every unit of work, all tensors of it; and no row is free as long as there is a run to begin."""
    work, most = _Pool.work, []

    def spy(pool: _Pool) -> None:
        assert all(len(value) == 6 for value in pool.live.values())
        assert pool.alive == int((pool.live["position"] >= 0).sum()) <= 6
        could_begin = [e for e in pool.turns.open_.values() if e.begun < e.wanted]
        assert pool.alive == 6 or not (pool.turns.due or size(pool.returned) or could_begin)
        jobs = [job for job in zip(pool.live["position"].tolist(), pool.live["run"].tolist(), strict=True) if job[0] >= 0]
        assert len(set(jobs)) == len(jobs)
        assert size(pool.waiting) < 6
        assert size(pool.ended) <= sum(e.begun - e.settled for e in pool.turns.open_.values())
        most.append(pool.alive)
        work(pool)

    monkeypatch.setattr(_Pool, "work", spy)
    model = Spied()
    list(stream(attack, Surrogate(model.trace), judge(model, chunk=6), task()))
    assert max(most) == 6


def test_as_a_callable_it_keeps_the_point_of_largest_margin_over_runs() -> None:
    model, (x, y) = Spied(), examples()
    attack, judge, draws = ATTACKS["pgd"], Judge(model, chunk=8), Draws(0, torch.arange(N), "pool")
    found = attack(Surrogate(model.trace), judge, x, y, draws, {})
    attempts: list[Attempt] = list(stream(attack, Surrogate(model.trace), judge, Task(lambda pick: x[pick], y, draws, {})))
    for i in range(N):
        margins = [m for a in attempts for p, m in zip(a.positions.tolist(), a.found.margins.tolist(), strict=True) if p == i]
        assert found.margins[i] == (margins[-1] if found.broken[i] else max(margins))
    torch.testing.assert_close(margin(model(found.x_adv), y), found.margins, rtol=0, atol=1e-5)


# Surrogates that compute otherwise than the judge.


class Shy(Surrogate):
    """Takes every margin for smaller than it is, by `shift`."""

    def __init__(self, model: Spied, shift: float, error: float) -> None:
        super().__init__(model.trace, error=error)
        self.shift = shift

    def __call__(self, x: Tensor, condition: Any) -> ModelOutput:
        output = super().__call__(x, condition)
        return output._replace(logits=output.logits + self.shift * nn.functional.one_hot(condition["label"], K))


@pytest.mark.parametrize("name", ["pgd-momentum", "square", "square-l2"])
def test_within_its_error_a_shy_surrogate_finds_what_an_exact_one_finds(name: str) -> None:
    """These follow the margin, which a shift leaves alone; only when they ask the judge depends on it."""
    model, (x, y) = Spied(), examples()
    run = [
        ATTACKS[name](surrogate, Judge(model, chunk=8), x, y, Draws(0, torch.arange(N), "pool"), {"label": y})
        for surrogate in (Surrogate(model.trace), Shy(model, 0.2, 0.2000001), Shy(model, 0.2, 0.0))
    ]
    exact, told, blind = run
    assert 0 < exact.broken.sum() < N
    assert torch.equal(told.broken, exact.broken)
    assert torch.equal(told.steps, exact.steps)
    assert blind.broken.sum() <= exact.broken.sum()


@pytest.mark.parametrize(("error", "asked"), [(0.0, 1), (1e-9, 2)])
def test_the_judge_sees_the_last_point_and_where_the_surrogate_errs_the_best_one(error: float, asked: int) -> None:
    model = Spied()
    for attack in (Apgd(Threat("linf", 1e-9), "ce", steps=5, restarts=2), Apgd(Threat("linf", 1e-9), "dlr-targeted", steps=5, targets=3)):
        finals = [a for a in stream(attack, Surrogate(model.trace, error=error), Judge(model, chunk=8), task()) if bool(a.final.any())]
        for attempt in finals:
            assert (attempt.judged[attempt.final] == asked * attack.runs).all()
            assert (attempt.forwards - attempt.judged == attempt.backwards).all()
