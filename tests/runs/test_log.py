"""metrics.jsonl: nothing doubled, nothing lost, whatever stopped the writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from advcli.errors import ResourceError
from advcli.runs.log import Log, read

EVENTS = [{"event": "epoch", "epoch": k, "name": "ä", "loss": 1 / k} for k in (1, 2, 3)]


def write(path: Path, events: list[dict[str, object]], size: int = 0) -> Log:
    log = Log(path, size)
    for event in events:
        log.write(event)
    return log


def test_events_come_back_in_order_and_size_is_the_length_in_bytes(tmp_path: Path) -> None:
    log = write(tmp_path / "log", EVENTS)
    assert list(read(tmp_path / "log")) == EVENTS
    assert log.size == (tmp_path / "log").stat().st_size


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_reopening_cuts_back_to_the_saved_state(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "log"
    whole = write(path, EVENTS) and path.read_bytes()
    size = len(b"".join(whole.splitlines(keepends=True)[:kept]))
    log = Log(path, size)
    assert list(read(path)) == EVENTS[:kept]
    for event in EVENTS[kept:]:
        log.write(event)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_kill_left_unfinished_is_passed_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log"
    write(path, EVENTS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read(path)) == EVENTS[:2]


def test_a_log_shorter_than_the_state_says_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    size = write(path, EVENTS).size
    with pytest.raises(ResourceError, match="events are missing") as raised:
        Log(path, size + 1)
    assert str(path) in str(raised.value)
    assert list(read(path)) == EVENTS


def test_a_full_disk_is_an_error_of_ours_and_the_next_session_starts_clean(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = write(path, EVENTS[:1])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            log.write(EVENTS[1])
    write(path, EVENTS[1:], size=log.size)
    assert list(read(path)) == EVENTS


def test_an_absent_log_has_no_events(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []
