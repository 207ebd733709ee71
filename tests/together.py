"""Several gloo processes that run one function, as torchrun would start them; and torchrun itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

LIMIT = 300  # seconds, after which something hangs
SILENCE = 1.5  # seconds, after which a process apart counts as gone
HERE = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _work(rank: int, size: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from advcli.training import distributed

    torch.set_num_threads(1)
    os.environ.update(HERE | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port)})
    with distributed.opened("cpu", print):
        try:
            found = work(*args)
        except Exception:  # the same on all, or the others wait in vain and the test ends by its time limit
            found = traceback.format_exc()
    torch.save(found, f"{folder}/rank{rank}.pt")


def together(work: Callable[..., Any], folder: Path, *args: Any, size: int = 2) -> list[Any]:
    """What work(*args), a function of a module, returns in each of size processes; folder: an empty one for their answers."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    started = [context.Process(target=_work, args=(rank, size, port, str(folder), work, args)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(LIMIT)
    try:
        assert [process.exitcode for process in started] == [0] * size
    finally:
        for process in started:
            process.kill()
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(size)]
    assert not [answer for answer in found if isinstance(answer, str)], found
    return found


def _work_apart(rank: int, port: int, folder: Path, work: Callable[[Path], Any]) -> None:
    from advcli.training import distributed, heartbeat

    torch.set_num_threads(1)
    given = {"RANK": rank, "LOCAL_RANK": 0, "GROUP_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update(HERE | {name: str(value) for name, value in given.items()})
    heartbeat._GRACE, distributed._MEETING = 1.0, timedelta(seconds=15)
    with distributed.opened("cpu", lambda error: (folder / f"shown{rank}").write_text(str(error)), every=0.1, silence=SILENCE):
        work(folder)


def apart(folder: Path, *works: Callable[[Path], Any]) -> tuple[list[int | None], list[str]]:
    """Two processes, each the only one of a machine, that do works(folder) and have little patience with each other.

    Returns their exit codes, None of one that is stopped for good, and what each has shown. One work alone: the other never comes.
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    started = [context.Process(target=_work_apart, args=(rank, port, folder, work)) for rank, work in enumerate(works)]
    for process in started:
        process.start()
    started[0].join(LIMIT)
    started[-1].join(10)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes, [file.read_text() if (file := folder / f"shown{rank}").is_file() else "" for rank in range(len(works))]


class Launched:
    """`torchrun OPTIONS -m -- advcli ARGUMENTS` in a folder, its output in two files."""

    def __init__(self, cwd: Path, *arguments: str, options: tuple[str, ...] = ("--nproc-per-node=2",), name: str = "torchrun") -> None:
        self.files = [cwd / f"{name}.out", cwd / f"{name}.err"]
        meeting = () if "--rdzv-backend=c10d" in options else (f"--master-port={free_port()}",)
        command = [sys.executable, "-m", "torch.distributed.run", *meeting, *options, "-m", "--", "advcli", *arguments]
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=cwd, env=os.environ | HERE, start_new_session=True)

    def workers(self) -> list[int]:
        """Process numbers of the processes that it started, by rank."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True).stdout
        return sorted(int(word) for word in found.split())

    def wait_for(self, path: Path) -> None:
        """Until something is in a file."""
        limit = time.monotonic() + LIMIT
        while not path.is_file() or not path.stat().st_size:
            if self.process.poll() is not None or time.monotonic() > limit:
                self.end()
                raise AssertionError(self.shown())
            time.sleep(0.05)

    def finish(self) -> int:
        try:
            return self.process.wait(LIMIT)
        finally:
            self.end()

    def end(self) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def shown(self) -> tuple[str, str]:
        """What it wrote to stdout and stderr so far."""
        out, err = (file.read_text(encoding="utf-8") for file in self.files)
        return out, err
