"""A file is the old one or the new one, whatever fails and whoever is killed."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from advcli.errors import ResourceError
from advcli.runs import atomic

OLD, NEW = b"old" * 1000, b"new!" * 1000


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class HalfWritten(io.FileIO):
    """Takes half of what it is given, then the disk is full."""

    def write(self, data: Any) -> int:
        super().write(data[: len(data) // 2])
        return int(full())


def fail_in_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "open", lambda self, mode: HalfWritten(self, mode))


def fail_in_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", full)


def fail_in_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "replace", full)


def fail_in_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "open", full)


@pytest.mark.parametrize("break_disk", [fail_in_open, fail_in_write, fail_in_sync, fail_in_rename])
@pytest.mark.parametrize("old", [OLD, None], ids=["replaced", "fresh"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, break_disk: Any, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch)
        with pytest.raises(ResourceError, match="No space left") as raised:
            atomic.write_bytes(path, NEW)
    assert raised.value.exit_code == 3
    assert raised.value.where == str(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)


def test_a_file_size_limit_of_the_system_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    done = python(
        "import resource, sys; from pathlib import Path; from advcli.runs import atomic; from advcli.errors import ResourceError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try: atomic.write_bytes(Path(sys.argv[1]), b'x' * 1_000_000)\n"
        "except ResourceError as error: print(error.what)\n",
        path,
    )
    assert done.stdout.startswith("cannot write"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == OLD


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("os.fsync", OLD), ("Path.replace", OLD), ("after", NEW)],
)
def test_a_kill_leaves_the_old_file_or_the_new(tmp_path: Path, moment: str, expected: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    patch = "" if moment == "after" else f"{moment} = die"
    done = python(
        "import os, signal, sys; from pathlib import Path; from advcli.runs import atomic\n"
        "def die(*args): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{patch}\n"
        "atomic.write_bytes(Path(sys.argv[1]), b'new!' * 1000); die()\n",
        path,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == expected


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    versions = [b"a" * 300_000, b"b" * 200_000]
    path.write_bytes(versions[0])
    seen, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(60):
        atomic.write_bytes(path, versions[number % 2])
    done.set()
    reader.join()
    assert seen
    assert seen <= set(versions)


def test_a_missing_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        atomic.write_text(tmp_path / "absent" / "file", "text")


def test_equal_values_are_equal_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    atomic.write_json(a, {"x": 1, "y": {"ä": [1.5, None], "b": True}})
    atomic.write_json(b, {"y": {"b": True, "ä": [1.5, None]}, "x": 1})
    assert a.read_bytes() == b.read_bytes()
    assert "ä".encode() in a.read_bytes()
    assert a.read_bytes().endswith(b"}\n")
