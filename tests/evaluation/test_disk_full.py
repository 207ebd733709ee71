"""A disk that fills up while a ledger is written: a clear stop, what was stored stays valid, and --resume goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advcli.errors import ResourceError
from advcli.evaluation.session import Options, run
from advcli.runs import atomic
from advcli.runs.ledger import Ledger

RECEIPTS = ("report.json", "ledger/ledger.safetensors", "identity.json")


def attack(checkpoint: Path, silent: Any, out: Path, *, resume: bool = False) -> None:
    run(Options(checkpoint, "quick", n=40, batch_size=8, device="cpu", out=out, resume=resume), silent)


def receipts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RECEIPTS}


@pytest.mark.parametrize("full_at", [2, 5, "ledger.safetensors", "report.json"])
def test_a_full_disk_stops_clearly_and_resume_goes_on(
    checkpoint: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int | str
) -> None:
    attack(checkpoint, silent, tmp_path / "whole")
    write, calls = atomic.write_bytes, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if full_at in (len(calls), path.name):
            monkeypatch.setattr(os, "fsync", _no_space)
        write(path, data)

    monkeypatch.setattr(atomic, "write_bytes", full)
    stopped = tmp_path / "stopped"
    with pytest.raises(ResourceError, match="No space left on device") as raised:
        attack(checkpoint, silent, stopped)
    assert raised.value.exit_code == 3
    assert "--resume" in raised.value.next
    assert not list(stopped.rglob("*.partial"))
    ledger = Ledger(stopped / "ledger")
    assert all(len(ledger.read_shard(number)[0]["index"]) for number in ledger.shards())
    monkeypatch.undo()
    attack(checkpoint, silent, stopped, resume=True)
    assert receipts(stopped) == receipts(tmp_path / "whole")


def _no_space(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_limit_of_the_system_in_mid_evaluation(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """By the kernel itself: no file may grow beyond what a shard takes, so the joined ledger does not fit."""
    attack(checkpoint, silent, tmp_path / "whole")
    size = (tmp_path / "whole" / "ledger" / "ledger.safetensors").stat().st_size
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
        "from advcli.cli.app import app; import torch; torch.set_num_threads(1); app(sys.argv[2:])\n"
    )
    command = ["attack", str(checkpoint), "--n", "40", "--batch-size", "8", "--device", "cpu", "--out", str(tmp_path / "stopped")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(size - 1), *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(Ledger(tmp_path / "stopped" / "ledger").shards()) > 3
    attack(checkpoint, silent, tmp_path / "stopped", resume=True)
    assert receipts(tmp_path / "stopped") == receipts(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_an_unwritable_folder_is_an_error_of_ours(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """A device that is always full takes the place of the first shard's temporary file."""
    attack(checkpoint, silent, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ledger")
    (tmp_path / "run" / "ledger").mkdir()
    (tmp_path / "run" / "ledger" / f".shard-00000.safetensors.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="cannot write"):
        attack(checkpoint, silent, tmp_path / "run", resume=True)
