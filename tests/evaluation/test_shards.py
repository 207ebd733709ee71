"""The clock of an evaluation that several processes shared: how long it took, not how long they worked."""

from __future__ import annotations

from advcli.evaluation.shards import _passed


def test_of_one_process_all_counts() -> None:
    assert _passed([{"seconds": 2.0}, {"seconds": 3.0, "rank": 0, "processes": 1}]) == 5.0


def test_of_several_the_slowest_counts() -> None:
    """Three survivors, all on one process: the others wrote nothing, and what it took is what everybody waited for."""
    headers = [{"seconds": s, "rank": r, "processes": 4} for s, r in ((80.0, 1), (5.0, 0), (6.0, 1), (7.0, 3))]
    assert _passed(headers) == 86.0


def test_sessions_with_other_numbers_of_processes_come_one_after_the_other() -> None:
    headers = [{"seconds": 10.0, "rank": r, "processes": 2} for r in (0, 1)] + [{"seconds": 4.0, "rank": 0, "processes": 1}]
    assert _passed(headers) == 14.0
