"""Continuous batching: one pool of live examples an attack, always of the same number of rows.

An attack is a state machine over rows: `begin` makes the state of fresh examples, `advance` moves every row by one unit of
work. A row that has fooled the surrogate, or run out of iterations, leaves the pool for the judge and the next job takes its
place. Jobs are pairs of an example and a run (a restart, or a target); an example's next run begins when the judge has seen the
last one fail, or ahead of that, where a row would idle. What happens to an example depends on its own draws alone and its lowest
successful run is the one that counts, so its outcome is the same for any order, queue, number of processes and interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advcli.attacks.attack import Found
from advcli.attacks.judge import Judge, pad
from advcli.attacks.state import SPARING, State, join, pick, size
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.attacks.turns import Job, Turns
from advcli.draws import Draws

_PATIENCE = 5  # units of work for which rows wait for company before the judge is asked, when nothing waits for their places
_SPENT = ("forwards", "backwards", "judged", *SPARING)  # summed over an example's runs
_ENDED = ("position", "run", "x_adv", "step", "wasted", *_SPENT)  # what is kept of a row that was judged


class Task(NamedTuple):
    """n examples: images (positions) -> (M, C, H, W) float32; labels (n,); draws of all; condition of all (n, ...)."""

    images: Callable[[Tensor], Tensor]
    labels: Tensor
    draws: Draws
    condition: Condition


class Attempt(NamedTuple):
    """Judged rows. positions (M,) in the task; found: their points and verdicts; runs, forwards, backwards, judged (M,).

    final (M,) bool: broken, or out of runs. forwards and backwards are all that was spent on the example up to this run, and
    judged says how many of the forwards were the judge's. wasted: passes that were made ahead and came to nothing, those of later
    runs that its success made needless among them; unlike the others it depends on the company, so it is for the clock alone.
    sparing: of attacks that spare, (M,) each: the counts of SPARING as states have them, on all runs up to this one.
    """

    positions: Tensor
    found: Found
    runs: Tensor
    forwards: Tensor
    backwards: Tensor
    judged: Tensor
    wasted: Tensor
    final: Tensor
    sparing: Mapping[str, Tensor]

    @property
    def units(self) -> Tensor:
        """(M,) units of work, as Cost counts them."""
        return self.forwards + self.backwards + self.sparing.get("spared", 0)


@dataclass(frozen=True)
class PooledAttack:
    """The base of attacks that run in the pool. As a callable it is an Attack over one batch."""

    needs_logits: ClassVar[bool] = False  # whether begin reads condition["logits"] (N, K), the clean logits
    follows_gradient: ClassVar[bool] = True  # whether that is its work, and not asking for answers
    needs_float32: ClassVar[bool] = False  # whether a surrogate that rounds to bfloat16 would mislead it

    @property
    def can_spare(self) -> bool:
        """Whether it may leave out passes that are foreseen to come to nothing, and keeps count of that."""
        return bool(getattr(self, "spares", False))

    @property
    def runs(self) -> int:
        """Independent runs an example gets until one succeeds."""
        return 1

    @property
    def passes(self) -> int:
        """Forwards and backwards that an example which nothing breaks costs or spares; what is left to do is estimated from it."""
        raise NotImplementedError

    def slots(self, images: int, chunk: int, *, repeatable: bool = True) -> float:
        """Passes, of idle rows too, for images that nothing breaks, in a pool of chunk rows: a run is in one at a time.

        repeatable: whether the surrogate answers alike when asked twice, so that it may be asked ahead.
        """
        return chunk * math.ceil(images * self.runs / chunk) * self.passes / self.runs

    def timed(self, *, repeatable: bool) -> tuple[PooledAttack, float]:
        """(attack, share): a pass, spared ones counted, takes that share of what one takes in the attack's first unit of work."""
        return self, 1.0

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        """The state of fresh rows; draws already has each row's run as its counter."""
        raise NotImplementedError

    def order(self, surrogate: Surrogate, task: Task, chunk: int) -> Tensor | None:
        """(n, M) classes in the order in which they are to be targets, a forward and a backward each; None: by likelihood, for nothing."""
        return None

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        """One unit of work on every row, in place. A row whose margin reaches threshold sets `hit` and must then stand still.

        draws: the rows', with each one's run as its counter.
        """
        raise NotImplementedError

    def judged(self, state: State, broken: Tensor) -> None:
        """What the judge says of rows that wait: broken (N,) bool."""

    def __call__(self, surrogate: Surrogate, judge: Judge, x: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Found:
        """All rows of x at once: each example's point of largest margin over its runs, and its verdict."""
        nothing = torch.full((len(x),), -torch.inf, device=x.device)  # float32, as the judge says it
        best = Found(x.clone(), nothing, torch.zeros_like(y, dtype=torch.bool), torch.full_like(y, -1))
        for attempt in stream(self, surrogate, judge, Task(lambda positions: x[positions], y, draws, condition)):
            better = attempt.found.broken | (attempt.found.margins > best.margins[attempt.positions])
            rows = attempt.positions[better]
            for target, source in zip(best, attempt.found, strict=True):
                target[rows] = source[better]
        return best


def stream(
    attack: PooledAttack, surrogate: Surrogate, judge: Judge, task: Task, worked: Callable[[], None] = lambda: None
) -> Iterator[Attempt]:
    """Run the attack on every example of the task; yields each one's attempts in the order of its runs, the last with `final`.

    worked is called after each unit of work.
    """
    if attack.needs_logits and "logits" not in task.condition:
        task = task._replace(condition={**task.condition, "logits": _clean_logits(surrogate, judge, task)})
    order = attack.order(surrogate, task, judge.chunk)
    if order is not None:
        task = task._replace(condition={**task.condition, "order": order})
    pool = _Pool(attack, surrogate, judge, task)
    pool.spent[:2] += 0 if order is None else order.shape[1]
    while pool.busy:
        pool.fill()
        pool.work()
        worked()
        while pool.ready_to_judge:
            yield from pool.judge_waiting()


class _Pool:
    def __init__(self, attack: PooledAttack, surrogate: Surrogate, judge: Judge, task: Task) -> None:
        self.attack, self.surrogate, self.judge, self.task = attack, surrogate, judge, task
        self.turns = Turns(len(task.labels), attack.runs)
        self.live: State = {}
        self.alive = 0
        self.waiting: State = {}  # rows for the judge
        self.patience = _PATIENCE
        self.returned: State = {}  # rows that the judge did not confirm: they go on where they were
        self.ended: State = {}  # judged rows of runs that count once those before them have failed
        self.spent = torch.zeros(len(_SPENT), len(task.labels), dtype=torch.int64, device=task.labels.device)
        self.wasted = torch.zeros_like(self.spent[0])

    @property
    def busy(self) -> bool:
        return bool(self.alive or self.turns.due or size(self.returned) or size(self.waiting))

    @property
    def ready_to_judge(self) -> bool:
        """A whole chunk waits; or nothing is due that could fill the pool, and rows have waited long enough: judging may save work."""
        waiting, queued = size(self.waiting), bool(self.turns.due or size(self.returned))
        return waiting >= self.judge.chunk or (waiting > 0 and (not self.alive or (not queued and self.patience <= 0)))

    def fill(self) -> None:
        """Put returned rows, then jobs, into free rows; the pool keeps its size from the first fill on."""
        chunk = self.judge.chunk
        free = torch.nonzero(self.live["position"] < 0)[:, 0] if self.live else torch.arange(chunk, device=self.task.labels.device)
        back = min(size(self.returned), len(free))
        if back:
            self._place(pick(self.returned, slice(back)), free[:back])
            self.returned = pick(self.returned, slice(back, None))
        jobs = self.turns.begin(len(free) - back)
        if jobs:
            self._place(self._begin(jobs), free[back : back + len(jobs)])

    def _begin(self, jobs: list[Job]) -> State:
        position, run = torch.tensor(jobs, device=self.task.labels.device).unbind(1)
        condition = {key: value[position] for key, value in self.task.condition.items()}
        draws = self.task.draws.select(position).at(run)
        state = self.attack.begin(self.task.images(position), self.task.labels[position], draws, condition, run)
        return {
            **state,
            **{f"given.{key}": value for key, value in condition.items()},
            "position": position,
            "run": run,
            "index": draws.index,
            "judged": torch.zeros_like(run),
        }

    def _place(self, rows: State, slots: Tensor) -> None:
        if not self.live:  # rows past the jobs are copies of the first, marked free, so that the shape is right from the start
            row = torch.arange(self.judge.chunk, device=slots.device)
            self.live = pick(rows, torch.where(row < len(slots), row, 0))
            self.live["position"][len(slots) :] = -1
        else:
            for key, value in rows.items():
                self.live[key][slots] = value
        self.alive += len(slots)

    def work(self) -> None:
        """One unit of work; rows that are done with it move from the pool to those who wait for the judge.

        A surrogate with an error believes itself done that much earlier, so that nothing which may fool the judge is passed by.
        """
        if not self.alive:
            return
        self.live["over"] = self.live["position"] < 0  # a free row needs no work
        draws = replace(self.task.draws, index=self.live["index"], counter=self.live["run"])
        self.attack.advance(self.surrogate, self.live, -self.judge.bound - self.surrogate.error, draws)
        self.patience -= 1 if size(self.waiting) else 0
        self.waiting = join(self.waiting, self._take_out((self.live["hit"] | self.live["over"]) & (self.live["position"] >= 0)))

    def _take_out(self, leaving: Tensor) -> State:
        """The live rows of leaving (chunk,) bool, which become free."""
        rows = pick(self.live, torch.nonzero(leaving)[:, 0])
        self.live["position"][leaving] = -1
        self.alive -= size(rows)
        return rows

    def judge_waiting(self) -> Iterator[Attempt]:
        """Judge up to a chunk of waiting rows; return to the pool what the judge did not confirm, and settle what has ended."""
        rows, self.waiting = (pick(self.waiting, part) for part in (slice(self.judge.chunk), slice(self.judge.chunk, None)))
        self.patience = _PATIENCE
        margins = self._ask(rows, rows["x_adv"], torch.ones_like(rows["hit"]))
        if self.surrogate.error and "best" in rows:
            margins = self._ask_for_best(rows, margins)
        broken = self.judge.broken(margins)
        self.attack.judged(rows, broken)
        unconfirmed = rows["hit"] & ~rows["over"] & ~broken
        back = pick(rows, unconfirmed)
        back |= {"hit": torch.zeros_like(back["hit"]), "excused": torch.ones_like(back["hit"])}
        self.returned = join(self.returned, back)
        ended = {key: rows[key] for key in _ENDED} | {"margin": margins, "broken": broken}
        yield from self._settle(pick(ended, ~unconfirmed))

    def _ask(self, rows: State, points: Tensor, asked: Tensor) -> Tensor:
        """(M,) the judge's margins at points; rows of asked (M,) bool are charged for it."""
        rows["forwards"], rows["judged"] = rows["forwards"] + asked.long(), rows["judged"] + asked.long()
        numbers = points.flatten(1).isfinite().all(1)  # a network's answer to what is no image breaks nothing
        return torch.where(numbers, self.judge.margins(points, rows["y"]), -torch.inf)

    def _ask_for_best(self, rows: State, margins: Tensor) -> Tensor:
        """Rows that end unbroken get the judge's word on their best point as well, and keep the better of the two."""
        asked = rows["over"] & ~self.judge.broken(margins)
        if not bool(asked.any()):
            return margins
        best = self._ask(rows, rows["best"], asked)
        better = asked & (best > margins)
        rows["x_adv"] = torch.where(better[:, None, None, None], rows["best"], rows["x_adv"])
        return torch.where(better, best, margins)

    def _settle(self, rows: State) -> Iterator[Attempt]:
        """The attempts that count from now on, one run of an example at a time."""
        self.ended = join(self.ended, rows)
        if bool(rows["broken"].any()):
            self._cancel(rows)
        while settled := self.turns.settle(_jobs(self.ended)):
            counted = torch.zeros_like(self.ended["broken"])
            counted[settled] = True
            rows, self.ended = pick(self.ended, counted), pick(self.ended, ~counted)
            yield self._attempt(rows)

    def _cancel(self, rows: State) -> None:
        """Runs past a success of rows leave, wherever they are."""
        for job in _jobs(pick(rows, rows["broken"])):
            self.turns.succeed(job)
        self._take_out(self._needless(self.live))
        self.waiting, self.returned, self.ended = (pick(part, ~self._needless(part)) for part in (self.waiting, self.returned, self.ended))

    def _needless(self, rows: State) -> Tensor:
        """(M,) bool: rows of runs that do not count any more; their passes are booked as wasted."""
        counts = torch.tensor([self.turns.counts(job) for job in _jobs(rows)], dtype=torch.bool, device=self.wasted.device)
        needless = ~counts & (rows["position"] >= 0)
        passes = rows["forwards"] + rows["backwards"] + rows["spared"] + rows["wasted"]
        self.wasted.index_add_(0, rows["position"][needless], passes[needless])
        return needless

    def _attempt(self, rows: State) -> Attempt:
        position, broken = rows["position"], rows["broken"]
        self.spent[:, position] += torch.stack([rows[name] for name in _SPENT])
        self.wasted[position] += rows["wasted"]
        forwards, backwards, judged, *spared = self.spent[:, position]
        found = Found(rows["x_adv"], rows["margin"], broken, torch.where(broken, rows["step"], -1))
        last = rows["run"] + 1 >= self.attack.runs
        sparing = dict(zip(SPARING, spared, strict=True)) if self.attack.can_spare else {}
        return Attempt(position, found, rows["run"], forwards, backwards, judged, self.wasted[position], broken | last, sparing)


def _jobs(rows: State) -> list[Job]:
    return list(zip(rows["position"].tolist(), rows["run"].tolist(), strict=True))


@torch.no_grad()
def _clean_logits(surrogate: Surrogate, judge: Judge, task: Task) -> Tensor:
    """(n, K) logits of the unperturbed images, in chunks."""
    positions = torch.arange(len(task.labels), device=task.labels.device)
    parts = []
    for part in torch.split(positions, judge.chunk):
        p, n = pad(part, judge.chunk)
        parts.append(surrogate(task.images(p), {key: value[p] for key, value in task.condition.items()}).logits[:n].float())
    return torch.cat(parts)
