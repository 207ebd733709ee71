"""A clock for things that are compared: they run by turns, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Seconds = dict[str, list[float]]


def by_turns(runs: Mapping[str, Callable[[], float]], rounds: int, watch: Callable[[str], None]) -> tuple[Seconds, dict[str, list[float]]]:
    """(seconds, what came back) of each run by its name, a value a round; whoever was first in a round is last in the next.

    A run comes back with a number that it read from the device, so that the device is done. watch is told what runs next.
    """
    seconds: Seconds = {name: [] for name in runs}
    values: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in runs if turn % 2 == 0 else reversed(list(runs)):
            watch(f"round {turn + 1} of {rounds}: {name}")
            began = time.perf_counter()
            values[name].append(runs[name]())
            seconds[name].append(time.perf_counter() - began)
    return seconds, values
