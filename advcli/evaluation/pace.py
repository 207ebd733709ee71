"""How much work is left, in seconds as they passed at the start: what progress turns into a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advcli.attacks import Surrogate
from advcli.attacks.pool import PooledAttack, Task
from advcli.evaluation.entries import Entry


class Pace:
    """seconds: of one pass of one image, for each entry; attacks differ in precision and in what they do beside the network.

    repeatable: whether the network answers alike when asked twice, so that idle rows may ask ahead.
    """

    def __init__(self, entries: Sequence[Entry], seconds: Sequence[float], chunk: int, *, repeatable: bool = True) -> None:
        self.entries, self.seconds, self.chunk, self.repeatable = entries, seconds, chunk, repeatable

    def left(self, number: int, spent: int, due: int, standing: int) -> float:
        """Seconds still to come while entry `number` runs, if nothing breaks from now on.

        spent: passes in it so far, but for what images took that it broke, and what was wasted on them; due: images that it has not
        broken, of those it was to attack;
        standing: images that nothing has broken.
        """
        here = max(0.0, self._slots(self.entries[number], due) - spent) * self.seconds[number]
        for later, entry in enumerate(self.entries[number + 1 :], number + 1):
            here += self._slots(entry, min(standing, entry.sample or standing)) * self.seconds[later]
        return here

    def _slots(self, entry: Entry, images: int) -> float:
        return slots(entry, images, self.chunk, repeatable=self.repeatable)


def slots(entry: Entry, images: int, chunk: int, *, repeatable: bool = True) -> float:
    """Passes, of idle rows too, for images that nothing breaks."""
    attack = entry.attack
    if not images or not isinstance(attack, PooledAttack):
        return float(images * attack.passes)
    return attack.slots(images, chunk, repeatable=repeatable)


def measure(entries: Sequence[Entry], surrogate: Callable[[Entry], Surrogate], task: Task, chunk: int) -> list[float]:
    """Seconds of one pass of one image for each entry, from one unit of its work on a chunk; 1 for attacks outside the pool."""
    rows = torch.arange(chunk, device=task.labels.device) % len(task.labels)
    return [_unit(entry.attack, surrogate(entry), task, rows) if isinstance(entry.attack, PooledAttack) else 1.0 for entry in entries]


def _unit(attack: PooledAttack, surrogate: Surrogate, task: Task, rows: Tensor) -> float:
    attack, share = attack.timed(repeatable=surrogate.repeatable)
    condition = {key: value[rows] for key, value in task.condition.items()}
    draws = task.draws.select(rows).at(torch.zeros_like(rows))
    state = attack.begin(task.images(rows), task.labels[rows], draws, condition, torch.zeros_like(rows))
    state |= {f"given.{key}": value for key, value in condition.items()}
    before, began = surrogate.cost.units, time.perf_counter()
    attack.advance(surrogate, state, torch.inf, draws)
    float(state["x_adv"].sum())  # reading a number waits for the device
    return share * (time.perf_counter() - began) / (surrogate.cost.units - before)
