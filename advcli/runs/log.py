"""metrics.jsonl: one event a line, the truth of a run. Cut back to the saved state's length on resume, so no event is doubled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advcli.errors import ResourceError


class Log:
    """Appends events to a file; `size` is its length in bytes, which a saved state remembers."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Opens path and cuts it to size bytes; a shorter file than that is an error, for events are missing."""
        path.touch()
        if path.stat().st_size < size:
            raise ResourceError(
                f"the log is shorter than the saved state says: events are missing ({path.stat().st_size} of {size} bytes)", where=str(path)
            )
        os.truncate(path, size)
        self.path, self.size = path, size

    def write(self, event: dict[str, Any]) -> None:
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(f"cannot write: {error.strerror}", where=str(self.path), next="make room and go on with --resume") from None
        self.size += len(line)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events; a last line that a kill left unfinished is passed over."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)
