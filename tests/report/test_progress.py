"""Progress: a bar on a terminal, plain lines elsewhere, nothing when quiet; never on stdout."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from rich.console import Console

from advcli.report import progress
from advcli.report.progress import AttackProgress, TrainingProgress, duration

EVENT = {
    "epoch": 3,
    "loss": 1.23456,
    "lr": 0.05,
    "validation": {"clean": 0.5, "attack": "pgd-10", "robust": 0.25},
    "selected": True,
    "seconds": 2.0,
}


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def listen(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    heard = io.StringIO()
    monkeypatch.setattr(progress, "ERR", Console(file=heard, width=80, force_terminal=terminal, highlight=False))
    return heard


def train(display: Any, clock: Clock, *, done: int = 0) -> None:
    with display as watcher:
        watcher.started(done, 100)
        for step in range(done + 1, 51):
            clock.now += 1
            watcher.stepped(step, 10)
        watcher.measured(EVENT)


def attack(display: Any, clock: Clock, *, done: int = 0) -> None:
    with display as watcher:
        watcher.started(done, 64)
        for name, spent in itertools.product(("fgsm", "pgd-20"), (100, 200, 300)):
            clock.now += 6
            watcher.attacking(name, 30, 32)
            watcher.advanced(done + spent // 10, spent, 900 - spent)


def test_training_off_a_terminal_speaks_in_plain_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    heard = listen(monkeypatch, terminal=False)
    train(TrainingProgress(quiet=False), clock)
    lines = heard.getvalue().splitlines()
    assert "\x1b" not in heard.getvalue()
    assert "\r" not in heard.getvalue()
    assert lines[:-1] == [f"step {k} of 100, 10 img/s, {duration(100 - k)} left" for k in (10, 20, 30, 40, 50)]  # one in ten seconds
    assert lines[-1] == "epoch   3  loss 1.2346  lr 0.05  held out clean 50.0 pgd-10 25.0  2.0 s *"


def test_attacks_off_a_terminal_speak_in_plain_lines(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    heard = listen(monkeypatch, terminal=False)
    attack(AttackProgress(quiet=False), clock)
    lines = heard.getvalue().splitlines()
    assert lines[0] == "fgsm: 20 images done, 30 of 32 stand, 42 s left"  # 12 s for 200 passes, 700 to come
    assert lines[1] == "pgd-20: 10 images done, 30 of 32 stand, 3 min 12 s left"  # 24 s for 100 of 900
    assert len(lines) == 3  # one in ten seconds


def test_a_resumed_run_says_so_and_paces_itself_by_its_own_session(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    heard = listen(monkeypatch, terminal=False)
    train(TrainingProgress(quiet=False), clock, done=40)
    lines = heard.getvalue().splitlines()
    assert lines[0] == "going on after step 40 of 100"
    assert lines[1] == "step 50 of 100, 10 img/s, 50 s left"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("show", "display"), [(train, TrainingProgress), (attack, AttackProgress)])
def test_quiet_is_silent(monkeypatch: pytest.MonkeyPatch, clock: Clock, terminal: bool, show: Any, display: Any, capsys: Any) -> None:
    heard = listen(monkeypatch, terminal=terminal)
    show(display(quiet=True), clock, done=2)
    assert heard.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("show", "display"), [(train, TrainingProgress), (attack, AttackProgress)])
def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch, clock: Clock, show: Any, display: Any, capsys: Any) -> None:
    heard = listen(monkeypatch, terminal=True)
    shown = display(quiet=False)
    show(shown, clock)
    assert "\x1b[" in heard.getvalue()
    assert shown.bar.finished is False
    assert shown.bar.live.is_started is False
    assert capsys.readouterr().out == ""


def test_a_bar_is_taken_down_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    listen(monkeypatch, terminal=True)
    shown = TrainingProgress(quiet=False)

    def fail() -> None:
        with shown as watcher:
            watcher.started(0, 10)
            assert shown.bar is not None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert shown.bar is not None
    assert not shown.bar.live.is_started


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_an_evaluation_costs_is_said_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = listen(monkeypatch, terminal=False)
    AttackProgress(quiet=False).planned(4, 8_821_000, 754.0)
    assert heard.getvalue() == "4 attacks: at most 8,821,000 passes, about 12 min 34 s if nothing breaks\n"
    AttackProgress(quiet=True).planned(1, 1, 1.0)
    assert heard.getvalue().count("\n") == 1
