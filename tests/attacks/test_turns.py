"""Whose turn it is: what counts is what would have come one after the other, whichever run ends first; due runs go before further ones."""

from __future__ import annotations

import random

import pytest

from advcli.attacks.turns import Job, Turns


def end(turns: Turns, jobs: list[Job], successes: set[Job]) -> list[Job]:
    """Tell of jobs that end together; what counts from then on, in order. jobs keeps those that do not yet."""
    for job in jobs:
        if job in successes:
            turns.succeed(job)
    jobs[:] = [job for job in jobs if turns.counts(job)]
    counted = []
    while rows := turns.settle(jobs):
        counted += [jobs[row] for row in rows]
        jobs[:] = [job for row, job in enumerate(jobs) if row not in rows]
    return counted


@pytest.mark.parametrize("seed", range(100))
def test_any_order_of_ends_counts_what_one_after_another_does(seed: int) -> None:
    generator = random.Random(seed)
    n, runs, rows = generator.randint(1, 9), generator.randint(1, 6), generator.randint(1, 12)
    successes = {(i, r) for i in range(n) for r in range(runs) if generator.random() < 0.2}
    turns, under_way, ended, counted = Turns(n, runs), [], [], []
    while turns.due or under_way:
        under_way += turns.begin(rows - len(under_way))
        assert len(under_way) <= rows
        for job in generator.sample(under_way, generator.randint(0, len(under_way))):
            under_way.remove(job)
            ended.append(job)
        counted += end(turns, ended, successes)
        under_way = [job for job in under_way if turns.counts(job)]
    assert not turns.open_
    assert not ended
    for i in range(n):
        winner = next((r for r in range(runs) if (i, r) in successes), runs - 1)
        assert [job for job in counted if job[0] == i] == [(i, r) for r in range(winner + 1)]


def test_due_runs_begin_before_further_ones() -> None:
    turns = Turns(3, 3)
    assert turns.begin(2) == [(0, 0), (1, 0)]
    assert end(turns, [(0, 0)], set()) == [(0, 0)]
    assert turns.begin(1) == [(2, 0)]  # run 1 of example 0 is due, and waits for its turn
    assert turns.begin(1) == [(0, 1)]
    assert turns.begin(2) == [(1, 1), (2, 1)]  # nothing is due: the lowest further runs
    assert turns.begin(9) == [(0, 2), (1, 2), (2, 2)]
    assert turns.begin(9) == []


def test_with_a_row_for_nobody_else_nothing_begins_ahead() -> None:
    """Where examples fill the rows, their runs go one after another."""
    turns = Turns(6, 3)
    assert turns.begin(2) == [(0, 0), (1, 0)]
    for expected in ([(2, 0)], [(3, 0)], [(4, 0)], [(5, 0)], [(0, 1)]):
        end(turns, [(expected[0][0] - 2, 0)] if expected[0][1] == 0 else [(4, 0)], set())
        assert turns.begin(1) == expected


def test_nothing_begins_past_a_success() -> None:
    turns, ended = Turns(1, 9), [(0, 2)]
    assert turns.begin(4) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert end(turns, ended, {(0, 2)}) == []
    assert ended == [(0, 2)]  # it waits for runs 0 and 1
    assert not turns.counts((0, 3))
    assert turns.begin(4) == []
    ended.append((0, 1))
    assert end(turns, ended, {(0, 1), (0, 2)}) == []
    assert ended == [(0, 1)]
    ended.append((0, 0))
    assert end(turns, ended, {(0, 1)}) == [(0, 0), (0, 1)]
    assert not turns.open_
    assert not turns.due
