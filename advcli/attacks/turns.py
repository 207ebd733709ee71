"""Whose turn it is: which run of which example begins next, and which of the runs that have ended count.

An example's outcome is what its runs would give one after the other, up to the first success. They may go at once all the same:
a run counts when all before it have failed, so the lowest success is the one that breaks the example, whichever came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

Job = tuple[int, int]
"""An example's position, and the number of its run."""


@dataclass
class _Example:
    wanted: int  # runs from here on do not count: there are no more, or one before has succeeded
    begun: int = 0  # runs 0 .. begun - 1
    settled: int = 0  # runs 0 .. settled - 1: ended, and those before them too


class Turns:
    """due: examples without a run under way, in the order in which they get one. open_: those that have begun and not ended."""

    def __init__(self, examples: int, runs: int) -> None:
        self.runs = runs
        self.due = deque(range(examples))
        self.open_: dict[int, _Example] = {}

    def begin(self, free: int) -> list[Job]:
        """Up to `free` jobs: runs that are due; when no more are, further ones of open examples, the lowest first."""
        jobs = [self._begin(self.due.popleft()) for _ in range(min(free, len(self.due)))]
        while len(jobs) < free and (more := [position for position, e in self.open_.items() if e.begun < e.wanted]):
            jobs.append(self._begin(min(more, key=lambda position: self.open_[position].begun)))
        return jobs

    def _begin(self, position: int) -> Job:
        example = self.open_.setdefault(position, _Example(self.runs))
        example.begun += 1
        return position, example.begun - 1

    def succeed(self, job: Job) -> None:
        """The runs after this one do not count any more."""
        position, run = job
        self.open_[position].wanted = min(self.open_[position].wanted, run + 1)

    def counts(self, job: Job) -> bool:
        """Whether what becomes of a run still matters."""
        position, run = job
        return position in self.open_ and run < self.open_[position].wanted

    def settle(self, ended: Sequence[Job]) -> list[int]:
        """Which of the jobs that have ended, and count, are their example's next to settle: one an example, so ask until there is none."""
        rows = [row for row, (position, run) in enumerate(ended) if run == self.open_[position].settled]
        for row in rows:
            self._settle(ended[row][0])
        return rows

    def _settle(self, position: int) -> None:
        example = self.open_[position]
        example.settled += 1
        if example.settled == example.wanted:
            del self.open_[position]
        elif example.settled == example.begun:
            self.due.append(position)
