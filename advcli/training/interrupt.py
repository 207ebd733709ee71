"""Ctrl-C and SIGTERM ask for a stop; the loop saves its state and leaves. A second Ctrl-C leaves at once.

Among several processes it does not: torchrun hands a Ctrl-C on to all of them, who have had it already.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from advcli.gates.whole import processes


class StopRequest:
    """Context manager; `requested` turns true on SIGINT or SIGTERM; never outside the main thread, where Python sets no handlers."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and processes() == 1:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM is a Ctrl-C: what is finished is saved, and the way on is told. torchrun sends it when a process has failed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
