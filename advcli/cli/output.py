"""The one JSON object of --json, and the lines of whoever watches."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from advcli.errors import Notice


@contextmanager
def notices_shown() -> Iterator[None]:
    """Inside, a Notice is one line on stderr; other warnings stay what they are."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, Notice):
                return others(message, category, *place)
            from advcli.report.terminal import ERR

            return ERR.print(f"note {message}", markup=False, soft_wrap=True)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def print_json(value: Any) -> None:
    plain = not sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain, allow_nan=False) + "\n")


def watcher(*, quiet: bool) -> Callable[[str], None]:
    """Says on stderr what runs next; nothing when quiet."""
    if quiet:
        return lambda text: None
    from advcli.report.terminal import ERR

    return lambda text: ERR.print(text, highlight=False, markup=False)
