"""Under torchrun: which processes run a command, and which of them talks. No torch here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from advcli.errors import AdvcliError, InterruptedRunError, LostProcessError

SHARED = ("pretrain", "adv-train", "finetune", "attack")
"""Commands that processes do together; all others are done by the first alone."""
_PATIENCE = 10.0  # seconds; torchrun ends all processes of a machine as soon as one has failed


def _number(name: str) -> int:
    return int(os.environ.get(name, "0"))


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and _number("WORLD_SIZE") > 1


def follows() -> bool:
    """Whether this process is one of several and not the first."""
    return launched() and _number("RANK") > 0


def mute() -> None:
    """Nothing of what this process shows is seen; tracebacks are."""
    from advcli.report.terminal import ERR

    ERR.quiet = True
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def tells(error: AdvcliError) -> bool:
    """Whether this process is to show an error that others may have met, too: one panel is enough.

    The first of each machine does. Another one waits to be ended together with it; where that does not happen, the error
    is its own.
    """
    if not launched():
        return True
    if _number("LOCAL_RANK") and not isinstance(error, LostProcessError):
        if isinstance(error, InterruptedRunError):
            return False
        time.sleep(_PATIENCE)
    from advcli.report.terminal import ERR

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, once another process has left, would cut the panel short
    ERR.quiet = False
    return True
