"""Files that are either whole or absent: written under a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from advcli.errors import ResourceError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace path by data in one step; a reader, or a kill, sees the old file or the new one. ResourceError on a full disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"cannot write: {error.strerror or error}",
            where=str(path),
            next="what was stored before is intact; make room and go on with --resume",
        ) from None


def is_free(folder: Path) -> bool:
    """Whether folder can be written into: absent, empty, or with nothing in it but what a kill left of a first write."""
    return not folder.exists() or (folder.is_dir() and all(path.name.endswith(".partial") for path in folder.iterdir()))


def make_folder(folder: Path) -> None:
    """The folder with all above it; ResourceError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make a folder: {error.strerror or error}", where=str(folder), next="--out names another place"
        ) from None


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Sorted keys and a fixed layout, so that equal values have equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
