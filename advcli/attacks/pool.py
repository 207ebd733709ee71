"""Continuous batching: one pool of live examples an attack, always of the same number of rows.

An attack is a state machine over rows: `begin` makes the state of fresh examples, `advance` moves every row by one unit of
work. A row that has fooled the surrogate, or run out of iterations, leaves the pool for the judge and the next job takes its
place. Jobs are pairs of an example and a run (a restart, or a target); an example's next run is queued only when the judge
has seen the last one fail. What happens to an example depends on its own draws alone, so its outcome is the same for any
order, queue, number of processes and interruption.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advcli.attacks.attack import Found
from advcli.attacks.judge import Judge, pad
from advcli.attacks.losses import margin
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.draws import Draws

State = dict[str, Tensor]
"""Rows of live examples, first axis everywhere. Every attack keeps `x`, `y`, `x_adv` (the candidate), `step` (iterations so
far), `hit` (the surrogate is fooled at x_adv), `over` (no iterations left; x_adv was not looked at yet), `excused` (the judge
was not fooled at x_adv: go on), `forwards` and `backwards` (passes spent); `best` (the best point by the surrogate) where that
need not be x_adv. The pool adds `judged` (times the judge was asked), `position` (-1: a free row), `run`,
`index` and the condition's tensors as `given.NAME`."""


class Task(NamedTuple):
    """n examples: images (positions) -> (M, C, H, W) float32; labels (n,); draws of all; condition of all (n, ...)."""

    images: Callable[[Tensor], Tensor]
    labels: Tensor
    draws: Draws
    condition: Condition


class Attempt(NamedTuple):
    """Judged rows. positions (M,) in the task; found: their points and verdicts; runs, forwards, backwards, judged (M,).

    final (M,) bool: broken, or out of runs. forwards and backwards are all that was spent on the example in this attack, and
    judged says how many of the forwards were the judge's.
    """

    positions: Tensor
    found: Found
    runs: Tensor
    forwards: Tensor
    backwards: Tensor
    judged: Tensor
    final: Tensor


@dataclass(frozen=True)
class PooledAttack:
    """The base of attacks that run in the pool. As a callable it is an Attack over one batch."""

    needs_logits: ClassVar[bool] = False  # whether begin reads condition["logits"] (N, K), the clean logits
    needs_float32: ClassVar[bool] = False  # whether a surrogate that rounds to bfloat16 would mislead it

    @property
    def runs(self) -> int:
        """Independent runs an example gets until one succeeds."""
        return 1

    @property
    def passes(self) -> int:
        """Forwards and backwards that an example which nothing breaks costs; what is left to do is estimated from it."""
        raise NotImplementedError

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

    def __call__(self, surrogate: Surrogate, judge: Judge, x: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Found:
        """All rows of x at once: each example's point of largest margin over its runs, and its verdict."""
        nothing = torch.full((len(x),), -torch.inf, device=x.device)  # float32, as the judge says it
        best = Found(x.clone(), nothing, torch.zeros_like(y, dtype=torch.bool), torch.full_like(y, -1))
        for attempt in stream(self, surrogate, judge, Task(lambda pick: x[pick], y, draws, condition)):
            better = attempt.found.broken | (attempt.found.margins > best.margins[attempt.positions])
            rows = attempt.positions[better]
            for target, source in zip(best, attempt.found, strict=True):
                target[rows] = source[better]
        return best


def fresh(x: Tensor, y: Tensor, x_adv: Tensor) -> State:
    """The entries that every attack's state has."""
    zeros, no = torch.zeros_like(y), torch.zeros_like(y, dtype=torch.bool)
    counts = {"step": zeros, "forwards": zeros.clone(), "backwards": zeros.clone()}
    return {"x": x, "y": y, "x_adv": x_adv, **counts, "hit": no, "over": no.clone(), "excused": no.clone()}


def note_hits(state: State, logits: Tensor, threshold: float) -> Tensor:
    """Set `hit` (N,) where x_adv's logits (N, K) reach threshold, but for a row that the judge has just refused at this point."""
    state["hit"] = (margin(logits.float(), state["y"]) >= threshold) & ~state["excused"]
    state["excused"] = torch.zeros_like(state["excused"])
    return state["hit"]


def given(state: State) -> Condition:
    """The condition of the rows of a state."""
    return {key.removeprefix("given."): value for key, value in state.items() if key.startswith("given.")}


def stream(
    attack: PooledAttack, surrogate: Surrogate, judge: Judge, task: Task, worked: Callable[[], None] = lambda: None
) -> Iterator[Attempt]:
    """Run the attack on every example of the task; yields attempts as they are judged, every example's last one with `final`.

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
            yield pool.judge_waiting()


class _Pool:
    def __init__(self, attack: PooledAttack, surrogate: Surrogate, judge: Judge, task: Task) -> None:
        self.attack, self.surrogate, self.judge, self.task = attack, surrogate, judge, task
        self.queue = deque((position, 0) for position in range(len(task.labels)))
        self.returned: deque[State] = deque()  # rows that the judge did not confirm: they go on where they were
        self.waiting: list[State] = []
        self.live: State = {}
        self.alive = 0
        self.spent = torch.zeros(3, len(task.labels), dtype=torch.int64, device=task.labels.device)

    @property
    def busy(self) -> bool:
        return bool(self.alive or self.queue or self.returned or self.waiting)

    @property
    def ready_to_judge(self) -> bool:
        """A whole chunk waits; or nothing is left to fill the pool with, and judging may free more work than it costs."""
        waiting = sum(len(rows["y"]) for rows in self.waiting)
        idle = not self.queue and not self.returned and 2 * waiting >= self.judge.chunk - self.alive
        return waiting >= self.judge.chunk or (waiting > 0 and (idle or not self.alive))

    def fill(self) -> None:
        """Put returned rows, then queued jobs, into free rows; the pool keeps its size from the first fill on."""
        chunk = self.judge.chunk
        free = torch.nonzero(self.live["position"] < 0)[:, 0] if self.live else torch.arange(chunk, device=self.task.labels.device)
        while self.returned and len(free):
            rows, n = self.returned.popleft(), len(free)
            if len(rows["y"]) > n:  # more than there are free rows: the others keep their turn
                self.returned.appendleft({key: value[n:] for key, value in rows.items()})
                rows = {key: value[:n] for key, value in rows.items()}
            self._place(rows, free[: len(rows["y"])])
            free = free[len(rows["y"]) :]
        jobs = [self.queue.popleft() for _ in range(min(len(free), len(self.queue)))]
        if jobs:
            self._place(self._begin(jobs), free[: len(jobs)])

    def _begin(self, jobs: list[tuple[int, int]]) -> State:
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
            pick = torch.arange(self.judge.chunk, device=slots.device).where(
                torch.arange(self.judge.chunk, device=slots.device) < len(slots), 0
            )
            self.live = {key: value[pick].clone() for key, value in rows.items()}
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
        draws = replace(self.task.draws, index=self.live["index"], counter=self.live["run"])
        self.attack.advance(self.surrogate, self.live, -self.judge.bound - self.surrogate.error, draws)
        leaving = torch.nonzero((self.live["hit"] | self.live["over"]) & (self.live["position"] >= 0))[:, 0]
        if len(leaving):
            self.waiting.append({key: value[leaving] for key, value in self.live.items()})
            self.live["position"][leaving] = -1
            self.alive -= len(leaving)

    def judge_waiting(self) -> Attempt:
        """Judge up to a chunk of waiting rows; queue next runs, and return to the pool what the judge did not confirm."""
        rows = {key: torch.cat([part[key] for part in self.waiting]) for key in self.waiting[0]}
        rest = {key: value[self.judge.chunk :] for key, value in rows.items()}
        rows = {key: value[: self.judge.chunk] for key, value in rows.items()}
        self.waiting = [rest] if len(rest["y"]) else []
        margins = self._ask(rows, rows["x_adv"], torch.ones_like(rows["hit"]))
        if self.surrogate.error and "best" in rows:
            margins = self._ask_for_best(rows, margins)
        broken = self.judge.broken(margins)
        unconfirmed = rows["hit"] & ~rows["over"] & ~broken
        if bool(unconfirmed.any()):
            back = {key: value[unconfirmed] for key, value in rows.items()}
            back |= {"hit": torch.zeros_like(back["hit"]), "excused": torch.ones_like(back["hit"])}
            self.returned.append(back)
        closed = {key: value[~unconfirmed] for key, value in rows.items()}
        return self._close(closed, margins[~unconfirmed], broken[~unconfirmed])

    def _ask(self, rows: State, points: Tensor, asked: Tensor) -> Tensor:
        """(M,) the judge's margins at points; rows of asked (M,) bool are charged for it."""
        rows["forwards"], rows["judged"] = rows["forwards"] + asked.long(), rows["judged"] + asked.long()
        return self.judge.margins(points, rows["y"])

    def _ask_for_best(self, rows: State, margins: Tensor) -> Tensor:
        """Rows that end unbroken get the judge's word on their best point as well, and keep the better of the two."""
        asked = rows["over"] & ~self.judge.broken(margins)
        if not bool(asked.any()):
            return margins
        best = self._ask(rows, rows["best"], asked)
        better = asked & (best > margins)
        rows["x_adv"] = torch.where(better[:, None, None, None], rows["best"], rows["x_adv"])
        return torch.where(better, best, margins)

    def _close(self, rows: State, margins: Tensor, broken: Tensor) -> Attempt:
        position, last = rows["position"], rows["run"] + 1 >= self.attack.runs
        self.spent[:, position] += torch.stack([rows["forwards"], rows["backwards"], rows["judged"]])
        again = ~broken & ~last
        self.queue.extend(zip(position[again].tolist(), (rows["run"][again] + 1).tolist(), strict=True))
        found = Found(rows["x_adv"], margins, broken, torch.where(broken, rows["step"], -1))
        forwards, backwards, judged = self.spent[:, position]
        return Attempt(position, found, rows["run"], forwards, backwards, judged, broken | last)


@torch.no_grad()
def _clean_logits(surrogate: Surrogate, judge: Judge, task: Task) -> Tensor:
    """(n, K) logits of the unperturbed images, in chunks."""
    positions = torch.arange(len(task.labels), device=task.labels.device)
    parts = []
    for part in torch.split(positions, judge.chunk):
        p, size = pad(part, judge.chunk)
        parts.append(surrogate(task.images(p), {key: value[p] for key, value in task.condition.items()}).logits[:size].float())
    return torch.cat(parts)


def other_classes(condition: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """(N, K - 1) classes other than y, likeliest first by the clean logits: the targets of AutoAttack's targeted attacks.

    The condition's `order` (N, M), where it is given, instead.
    """
    if "order" in condition:
        return condition["order"]
    masked = condition["logits"].scatter(1, y[:, None], -torch.inf)
    return masked.argsort(dim=1, descending=True, stable=True)[:, :-1]
