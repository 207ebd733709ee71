"""Whether the other processes live. Each counts up a number of its own in torchrun's store, and reads those of all others.

A closed connection ends a collective at once. But a machine that vanishes closes none, a process that hangs does not either,
and an evaluation has no collective until its end. The counting has threads of its own, so that minutes of work are no silence.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread, get_ident

from torch.distributed.distributed_c10d import Store

from advcli import torchrun
from advcli.errors import AdvcliError, LostProcessError

EVERY, SILENCE = 2.0, 40.0  # seconds; all of it, with the grace, within a minute
_GRACE = 10.0  # seconds for the main thread to save what is finished
_WORD = "advcli/word"

Show = Callable[[AdvcliError], None]


class Heartbeat:
    """Lasts from its making, in the main thread, until stop(). An error elsewhere, and a process silent for `silence` seconds, end
    this one: by an interruption of the main thread and, where that sits in a collective, by `show` and at once.

    store: a connection for this alone, as a call may hang. lost: what was noticed.
    """

    def __init__(self, store: Store, show: Show, *, every: float = EVERY, silence: float = SILENCE) -> None:
        self.store, self.show, self.every, self.silence = store, show, every, silence
        self.lost: LostProcessError | None = None
        own = torchrun.number("RANK")
        self._name, self._number = f"process {own} on {socket.gethostname()}", f"advcli/beat/{own}"
        self._machine = torchrun.number("GROUP_RANK")
        self._others = {rank: f"advcli/beat/{rank}" for rank in range(torchrun.number("WORLD_SIZE")) if rank != own}
        self._heard: dict[int, int] = {}
        self._last: str | None = None
        self._word, self._first, self._over, self._main = "", True, Event(), get_ident()
        self._beating = Thread(target=self._beat, daemon=True)
        self._beating.start()
        Thread(target=self._watch, daemon=True).start()

    def stop(self, error: str | None = None) -> bool:
        """End it. error: the others are told of it; "": it is a consequence of another one's, which `lost` then tells.

        Returns whether this process is the first of its machine to leave with an error; where nobody can be asked, it is.
        """
        self._last = error
        self._over.set()
        self._beating.join(2 * self.every)
        if error == "" and self._word:
            self.lost = self.lost or LostProcessError(self._word)
        return self._first

    def _beat(self) -> None:
        """All talk with the store. Where its machine has vanished this may hang for good, or fail: then _watch hears nothing new."""
        with suppress(RuntimeError):
            while True:
                self.store.add(self._number, 1)
                self._heard = {rank: self.store.add(key, 0) for rank, key in self._others.items()}
                if self.store.check([_WORD]):
                    self._word = self.store.get(_WORD).decode()
                if self._over.wait(self.every):
                    break
            if self._last:
                self.store.compare_set(_WORD, "", f"{self._name}: {self._last}")
            if self._last is not None:
                self._word = self.store.get(_WORD).decode() if self.store.check([_WORD]) else ""
                self._first = self.store.add(f"advcli/left/{self._machine}", 1) == 1

    def _watch(self) -> None:
        """Silence is counted in rounds: where all processes were stopped and go on, nobody was silent. Who was never heard is late, and
        waited for where they meet."""
        before: dict[int, int] = {}
        silent = dict.fromkeys(self._others, 0)
        while not self._over.wait(self.every):
            heard = self._heard
            silent = {rank: rounds + 1 if heard.get(rank) == before.get(rank) else 0 for rank, rounds in silent.items()}
            before = heard
            gone = [str(rank) for rank, rounds in silent.items() if heard.get(rank) and rounds * self.every >= self.silence]
            if gone:
                self._end(f"nothing was heard of process {', '.join(gone)} for {self.silence:g} s")
            elif self._word:
                self._end(self._word)

    def _end(self, why: str) -> None:
        if self._over.wait(self.every):  # whoever meets a collective notices by itself
            return
        self.lost = LostProcessError(why)
        handled = callable(signal.getsignal(signal.SIGTERM))  # else by SIGINT, which a shell's background jobs are started without
        signal.pthread_kill(self._main, signal.SIGTERM if handled else signal.SIGINT)
        if self._over.wait(_GRACE):
            return
        if self.stop(""):
            self.show(self.lost)
        os._exit(LostProcessError.exit_code)
