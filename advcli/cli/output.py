"""The one JSON object of --json, and the lines of whoever watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def print_json(value: Any) -> None:
    plain = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False) + "\n")


def watcher(*, quiet: bool) -> Callable[[str], None]:
    """Says on stderr what runs next; nothing when quiet."""
    if quiet:
        return lambda text: None
    from advcli.report.terminal import ERR

    return lambda text: ERR.print(text, highlight=False, markup=False)
