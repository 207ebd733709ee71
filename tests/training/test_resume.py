"""The central promise: killed at any moment and resumed, a run ends with the bytes of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advcli.cli.app import app
from advcli.data import DataSet, load
from advcli.data.images import HostImages
from advcli.errors import AdvcliError, CheckpointError, InterruptedRunError, ResourceError
from advcli.recipe import Recipe
from advcli.runs import atomic, container, log
from advcli.training import loop, session, setup
from advcli.training.step import Step

PROMISED = ("model.safetensors", "last.safetensors", "metrics.jsonl", "recipe.yaml")

EVERYTHING = (  # every kind of state that a run can have
    "objective.name=trades",
    "craft.loss=kl",
    "craft.start=normal",
    "objective.wrapper.name=awp",
    "objective.wrapper.warmup=1",
    "train.ema=0.8",
    "optim.nesterov=true",
)


def promised(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PROMISED}


def run(recipe: Recipe, out: Path, watcher: Any, *, resume: bool = True) -> loop.Outcome:
    return session.run(recipe, watcher, out=out, resume=resume, device="cpu")


class Killed(BaseException):
    """No handler of the program may take this for an error of its own."""


class Guillotine:
    """Counts the moments at which a kill could change what is on disk, and falls at one of them."""

    def __init__(self, falls_at: int | None) -> None:
        self.falls_at, self.moments = falls_at, 0

    def moment(self) -> None:
        self.moments += 1
        if self.moments - 1 == self.falls_at:
            raise Killed

    def around(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.moment()
            result = fn(*args, **kwargs)
            self.moment()
            return result

        return watched

    def half_written(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """A kill in mid-write leaves a part of the line."""

        def watched(own: log.Log, event: dict[str, Any]) -> None:
            try:
                self.moment()
            except Killed:
                with own.path.open("ab") as file:
                    file.write(json.dumps(event).encode()[:20])
                raise
            write(own, event)
            self.moment()

        return watched


def guarded(recipe: Recipe, out: Path, watcher: Any, falls_at: int | None) -> int:
    """Run until the end or the kill; the number of moments that passed."""
    blade = Guillotine(falls_at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "write_bytes", blade.around(atomic.write_bytes))
        patch.setattr(log.Log, "write", blade.half_written(log.Log.write))
        patch.setattr(Step, "__call__", blade.around(Step.__call__))
        patch.setattr(os, "fsync", lambda descriptor: blade.moment())  # in mid-write; the machine itself stays up
        try:
            run(recipe, out, watcher)
        except Killed:
            pass
        else:
            assert falls_at is None or blade.moments <= falls_at
    return blade.moments


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # saves time
    recipe = tiny(*EVERYTHING)
    moments = guarded(recipe, tmp_path / "whole", silent, None)
    expected = promised(tmp_path / "whole")
    selected = sum(event["selected"] for event in log.read(tmp_path / "whole" / "metrics.jsonl"))
    writes, lines = 2 + 6 + 2 * 2 + selected, 2 * 2  # recipe and probe, state a step, last and state an epoch, model; two logs
    assert moments == 2 * 6 + 3 * writes + 3 * lines
    wrong = []
    for falls_at in range(moments):
        out = tmp_path / str(falls_at)
        assert guarded(recipe, out, silent, falls_at) == falls_at + 1
        run(recipe, out, silent)
        wrong += [(falls_at, name) for name, data in promised(out).items() if data != expected[name]]
    assert wrong == []


def test_a_run_killed_again_and_again_arrives(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    recipe = tiny(*EVERYTHING)
    run(recipe, tmp_path / "whole", silent)
    sessions = 0
    while not guarded(recipe, tmp_path / "cut", silent, 19) <= 19:
        sessions += 1
        assert sessions < 40
    assert sessions >= 3
    assert promised(tmp_path / "cut") == promised(tmp_path / "whole")


@pytest.mark.parametrize("save_every", ["0", "60"])
def test_how_often_the_state_is_saved_changes_no_number(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, save_every: str) -> None:
    recipe = tiny(f"train.save_every={save_every}")
    run(tiny(), tmp_path / "whole", silent)
    for falls_at in (7, 23):
        out = tmp_path / str(falls_at)
        guarded(recipe, out, silent, falls_at)
        run(tiny(), out, silent)
        for name in ("model.safetensors", "last.safetensors", "metrics.jsonl"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Real processes.

KILLED_WHILE_WRITING = """
import os, signal, sys
number = int(sys.argv.pop(1))
real, calls = os.fsync, 0
def fsync(descriptor):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
from advcli.cli.app import app
app()
"""


def start(arguments: Sequence[str], *, code: Sequence[str] = ("-m", "advcli")) -> subprocess.Popen[str]:
    """advcli in a process group of its own, at one thread."""
    return subprocess.Popen(
        [sys.executable, *code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        start_new_session=True,
    )


def progress(out: Path) -> tuple[int, int]:
    """(epoch, step in epoch) of the saved state; (-1, 0) where there is none."""
    try:
        counters = container.read_header(out / "state.safetensors", "state")["counters"]
    except CheckpointError:
        return -1, 0
    return counters["epoch"], counters["step_in_epoch"]


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Until it is so, or the process is over."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline, "the process got nowhere"
        time.sleep(0.002)


def test_a_process_killed_while_it_writes_is_resumed_to_the_same_bytes(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, tiny_overrides: Sequence[str]
) -> None:
    out = tmp_path / "cut"
    arguments = ["12", "adv-train", "quickstart", *tiny_overrides, *EVERYTHING, "--out", str(out), "--quiet"]
    process = start(arguments, code=("-c", KILLED_WHILE_WRITING))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert progress(out) > (0, 0)
    run(tiny(*EVERYTHING), tmp_path / "whole", silent)
    assert not (out / "model.safetensors").is_file() or promised(out) != promised(tmp_path / "whole")
    run(tiny(*EVERYTHING), out, silent)
    assert promised(out) == promised(tmp_path / "whole")


SHORT = ("schedule.epochs=3", "model.width=0.25", "train.save_every=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "earliest"),
    [(SHORT, (-1, 0)), ((*SHORT, *EVERYTHING), (0, 1))],
    ids=["pgd-at, from its start on", "trades, awp, ema"],
)
def test_the_quickstart_killed_at_random_moments(
    tmp_path: Path, silent: Any, one_thread: None, overrides: Sequence[str], earliest: tuple[int, int]
) -> None:
    from advcli.recipe import load

    recipe = load("quickstart", overrides)
    run(recipe, tmp_path / "whole", silent)
    out = tmp_path / "cut"
    dice = random.Random(len(overrides))
    for target in (earliest, (dice.randrange(3), dice.randrange(1, 15))):
        process = start(["adv-train", "quickstart", *overrides, "--out", str(out), "--resume"])
        wait_until(process, lambda target=target: (out / "metrics.jsonl").is_file() and progress(out) >= target)  # type: ignore[misc]
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it finished before it was killed"
        assert progress(out) < (3, 0)
    assert run(recipe, out, silent).epochs == 3
    assert promised(out) == promised(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_saves_the_state(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, tiny_overrides: Sequence[str], number: signal.Signals
) -> None:
    longer = "schedule.epochs=20"
    out = tmp_path / "cut"
    process = start(["adv-train", "quickstart", *tiny_overrides, longer, "train.save_every=3600", "--out", str(out)])
    wait_until(process, lambda: progress(out) >= (2, 0))
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "state is saved" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert (2, 0) <= progress(out) < (20, 0)
    run(tiny(longer), out, silent)
    run(tiny(longer), tmp_path / "whole", silent)
    assert {name: data for name, data in promised(out).items() if name != "recipe.yaml"} == {
        name: data for name, data in promised(tmp_path / "whole").items() if name != "recipe.yaml"
    }


# Signals in this process, at exactly known moments.


class SignalsAt:
    """A watcher that sends a signal to its own process after a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def started(self, done: int, total: int) -> None: ...

    def stepped(self, step: int, images: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)

    def noted(self, text: str) -> None: ...
    def measured(self, event: dict[str, Any]) -> None: ...


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_signal_between_steps(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, step: int, number: signal.Signals) -> None:
    recipe = tiny("train.save_every=3600")
    with pytest.raises(InterruptedRunError) as raised:
        run(recipe, tmp_path / "cut", SignalsAt(step, number))
    assert raised.value.exit_code == 130
    assert progress(tmp_path / "cut") == divmod(step, 3) or (step == 3 and progress(tmp_path / "cut") == (0, 3))
    run(recipe, tmp_path / "cut", silent)
    run(recipe, tmp_path / "whole", silent)
    assert promised(tmp_path / "cut") == promised(tmp_path / "whole")


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("measurement", [1, 2, 3])
def test_a_signal_while_measuring(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, measurement: int) -> None:
    recipe = tiny("train.save_every=3600")
    real, calls = loop.measure, iter(range(1, 99))

    def measure(*args: Any, **kwargs: Any) -> dict[str, float]:
        if next(calls) == measurement:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "measure", measure)
        with pytest.raises(InterruptedRunError):
            run(recipe, tmp_path / "cut", silent)
    run(recipe, tmp_path / "cut", silent)
    run(recipe, tmp_path / "whole", silent)
    assert promised(tmp_path / "cut") == promised(tmp_path / "whole")


@pytest.mark.usefixtures("_handlers")
def test_a_second_ctrl_c_leaves_at_once() -> None:
    with loop.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


# What --resume takes and refuses.


def test_another_recipe_is_refused_and_the_run_left_alone(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, tiny_overrides: Any
) -> None:
    out = tmp_path / "run"
    run(tiny(), out, silent)
    before = promised(out)
    done = CliRunner().invoke(app, ["adv-train", "quickstart", *tiny_overrides, "optim.lr=0.3", "seed=5", "--out", str(out), "--resume"])
    assert done.exit_code == 2
    assert "optim.lr: 0.1 in the run, 0.3 now" in done.stderr
    assert "seed: 0 in the run, 5 now" in done.stderr
    assert promised(out) == before


def test_a_finished_run_is_reported_and_not_touched(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, tiny_overrides: Any) -> None:
    out = tmp_path / "run"
    outcome = run(tiny(), out, silent)
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", lambda *args: pytest.fail("a finished run trained on"))
        done = CliRunner().invoke(app, ["adv-train", "quickstart", *tiny_overrides, "--out", str(out), "--resume", "--json"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["best_epoch"], facts["epochs"], facts["measured"]) == (outcome.best_epoch, 2, outcome.measured)
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir() if path.name != "recipe.yaml"} == {
        name: value for name, value in before.items() if name != "recipe.yaml"
    }


def test_resume_takes_the_newest_folder_of_the_name(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tiny(), None, silent, resume=False)  # type: ignore[arg-type]
    with pytest.raises(InterruptedRunError):
        session.run(tiny(), SignalsAt(2, signal.SIGTERM), out=None, resume=False, device="cpu")
    outcome = session.run(tiny(), silent, out=None, resume=True, device="cpu")
    assert outcome.folder == Path("runs/quickstart-2")
    assert promised(Path("runs/quickstart-2")) == promised(Path("runs/quickstart"))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["quickstart", "quickstart-2"]


@pytest.mark.parametrize("named", [False, True], ids=["under runs/", "--out"])
def test_resume_without_any_run_starts_afresh(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = session.run(tiny(), silent, out=Path("mine") if named else None, resume=True, device="cpu")
    assert outcome.folder == Path("mine" if named else "runs/quickstart")
    run(tiny(), Path("whole"), silent, resume=False)
    assert promised(outcome.folder) == promised(Path("whole"))


def test_resume_never_writes_into_a_folder_that_is_no_run(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"somebody's only copy")
    with pytest.raises(AdvcliError):
        run(tiny(), out, silent)
    assert (out / "model.safetensors").read_bytes() == b"somebody's only copy"


def test_auto_precision_takes_the_stored_decision(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        run(tiny("train.precision=bf16"), out, SignalsAt(2, signal.SIGTERM))
    run(tiny("train.precision=auto"), out, silent)
    assert container.read_header(out / "model.safetensors", "model")["precision"] == "bf16"


@pytest.mark.parametrize("wound", ["cut", "flipped", "model in its place"])
def test_a_damaged_state_is_refused(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, wound: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        run(tiny(), out, SignalsAt(4, signal.SIGTERM))
    state = (out / "state.safetensors").read_bytes()
    other = {"cut": state[:-9], "flipped": state[:-9] + bytes([state[-9] ^ 1]) + state[-8:], "model in its place": None}[wound]
    (out / "state.safetensors").write_bytes((out / "last.safetensors").read_bytes() if other is None else other)
    with pytest.raises(CheckpointError):
        run(tiny(), out, silent)


def test_a_log_with_lost_events_is_refused(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        run(tiny(), out, SignalsAt(4, signal.SIGTERM))
    (out / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ResourceError, match="events are missing"):
        run(tiny(), out, silent)


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    recipe, out, calls = tiny(), tmp_path / "cut", iter(range(99))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(calls) == 8:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(ResourceError, match="No space left"):
            run(recipe, out, silent)
    run(recipe, out, silent)
    run(recipe, tmp_path / "whole", silent)
    assert promised(out) == promised(tmp_path / "whole")


# Images that stay on the host.


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set as if it were too large for the device."""
    monkeypatch.setattr(setup, "load_data", lambda *arguments: on_host(load(*arguments)))


def on_host(data: DataSet) -> DataSet:
    train, validation = (part.to(torch.device("cpu"), budget=0) for part in (data.train, data.validation))
    return DataSet(train, validation, data.classes)


def threads() -> int:
    return sum(thread.name.startswith("next-batch") for thread in threading.enumerate())


@pytest.mark.parametrize("step", [1, 2, 4])
def test_streamed_stopped_and_resumed_it_trains_the_bytes_of_resident_images(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, step: int, request: pytest.FixtureRequest
) -> None:
    recipe = tiny("train.save_every=3600")
    run(recipe, tmp_path / "resident", silent)
    request.getfixturevalue("streamed")
    seen = []

    class Watching(SignalsAt):
        def stepped(self, step: int, images: int) -> None:
            seen.append(threads())
            super().stepped(step, images)

    with pytest.raises(InterruptedRunError):
        run(recipe, tmp_path / "cut", Watching(step, signal.SIGTERM))
    assert seen == [1] * step, "the next batch is made in a thread"
    assert threads() == 0
    run(recipe, tmp_path / "cut", silent)
    assert promised(tmp_path / "cut") == promised(tmp_path / "resident")


@pytest.mark.usefixtures("streamed")
def test_a_disk_that_fails_in_mid_epoch_ends_the_run_with_its_error(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = HostImages.__getitem__, iter(range(99))

    def failing(self: HostImages, pick: Any) -> Any:
        if next(calls) == 2:
            raise OSError(5, "Input/output error")
        return read(self, pick)

    monkeypatch.setattr(HostImages, "__getitem__", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run(tiny(), tmp_path / "run", silent)
    assert threads() == 0
