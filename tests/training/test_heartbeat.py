"""A process that is gone, stopped or never came ends the others with its error told; one that is only busy does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from together import LIMIT, SILENCE, apart

from advcli.errors import DataError, InterruptedRunError
from advcli.training import distributed, heartbeat


def stopped(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def failing(folder: Path) -> None:
    raise DataError("no images on this machine", where="data.root")


def interrupted(folder: Path) -> None:
    raise KeyboardInterrupt


def waiting(folder: Path) -> None:
    distributed.wait()


def working(folder: Path) -> None:
    """As an evaluation: for long without a word to the others, and what is finished is saved."""
    try:
        time.sleep(LIMIT)
    except KeyboardInterrupt:
        (folder / "saved").touch()
        raise InterruptedRunError("interrupted; every finished image is saved") from None


def busy(folder: Path) -> None:
    """For longer than the silence that ends a process, without giving way to another thread for long."""
    until = time.monotonic() + 2 * SILENCE
    while time.monotonic() < until:
        sum(range(10**5))
    distributed.wait()


@pytest.mark.slow
def test_a_stopped_process_ends_one_that_waits_for_it(tmp_path: Path) -> None:
    """No connection is closed, as by a machine that vanishes."""
    codes, shown = apart(tmp_path, waiting, stopped)
    assert codes == [InterruptedRunError.exit_code, None]
    assert f"nothing was heard of process 1 for {SILENCE:g} s" in shown[0]
    assert "--resume" in shown[0]


@pytest.mark.slow
@pytest.mark.parametrize("other", [stopped, killed])
def test_one_that_works_alone_saves_and_ends(tmp_path: Path, other: Callable[[Path], None]) -> None:
    codes, shown = apart(tmp_path, working, other)
    assert codes[0] == InterruptedRunError.exit_code
    assert "another process of this work has gone (nothing was heard of process 1" in shown[0]
    assert (tmp_path / "saved").is_file()


@pytest.mark.slow
def test_an_error_elsewhere_is_told_on_every_machine(tmp_path: Path) -> None:
    codes, shown = apart(tmp_path, working, failing)
    assert codes == [InterruptedRunError.exit_code, DataError.exit_code]
    assert shown[1] == "no images on this machine\nwhere: data.root"
    assert "process 1 on " in shown[0]
    assert "no images on this machine" in shown[0]
    assert (tmp_path / "saved").is_file()


@pytest.mark.slow
def test_an_early_interruption_of_one_process_is_told(tmp_path: Path) -> None:
    codes, shown = apart(tmp_path, waiting, interrupted)
    assert codes == [InterruptedRunError.exit_code] * 2
    assert shown[1] == "interrupted"
    assert ": interrupted)" in shown[0]


@pytest.mark.slow
def test_who_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    codes, shown = apart(tmp_path, waiting)
    assert codes == [InterruptedRunError.exit_code]
    assert "1/2 clients joined" in shown[0]


@pytest.mark.slow
def test_a_busy_process_is_not_lost(tmp_path: Path) -> None:
    assert apart(tmp_path, waiting, busy) == ([0, 0], ["", ""])


@pytest.mark.parametrize(("machines", "first"), [(("0", "0"), [True, False]), (("0", "1"), [True, True])])
def test_the_first_of_each_machine_speaks(monkeypatch: pytest.MonkeyPatch, machines: tuple[str, str], first: list[bool]) -> None:
    store, beats = torch.distributed.HashStore(), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, machine in enumerate(machines):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("GROUP_RANK", machine)
        beats.append(heartbeat.Heartbeat(store, print, every=0.05, silence=60.0))
    assert [beat.stop("gone") for beat in beats] == first


def test_who_is_late_is_not_silent_and_who_was_heard_once_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports may take one machine minutes longer; after its first word silence counts."""
    store = torch.distributed.HashStore()
    for name, value in {"RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    beat = heartbeat.Heartbeat(store, print, every=0.05, silence=0.3)
    time.sleep(1.0)
    assert beat.lost is None
    store.add("advcli/beat/1", 1)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(LIMIT)
    beat.stop("")
    assert beat.lost is not None
    assert "nothing was heard of process 1 for 0.3 s" in beat.lost.what
