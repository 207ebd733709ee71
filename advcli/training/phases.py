"""Where the time of a training step goes, seen from outside: a step itself keeps no time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from advcli.data import Batch
from advcli.objectives import Crafted, Objective
from advcli.training.machine import synchronize
from advcli.training.setup import Assembly

PHASES = ("data", "craft", "score", "rest")
"""What a step's time goes to: the batch; crafting; scoring and its backward (AWP's probe with it); the optimiser and all else."""


@contextmanager
def after_craft(objective: Objective, then: Callable[[Crafted], object]) -> Iterator[None]:
    """Inside, `then` is given whatever the objective crafts."""
    craft = objective.craft

    def watched(*args: Any) -> Any:
        made = craft(*args)
        then(made)
        return made

    objective.craft = watched  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del objective.craft


def split(parts: Assembly, draw: Callable[[], Batch], advance: Callable[[Batch], object], steps: int) -> dict[str, float]:
    """The share of each phase in the time of some steps; apart from the timed rounds, since it waits for the device at each border."""
    device, spent = parts.device, defaultdict[str, float](float)
    last = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal last
        synchronize(device)
        now = time.perf_counter()
        spent[phase] += now - last
        last = now

    hook = parts.optimizer.register_step_pre_hook(lambda *_: lap("score"))
    try:
        with after_craft(parts.objective, lambda _: lap("craft")):
            for _ in range(steps):
                batch = draw()
                lap("data")
                advance(batch)
                lap("rest")
    finally:
        hook.remove()
    total = sum(spent.values())
    return {phase: spent[phase] / total for phase in PHASES}
