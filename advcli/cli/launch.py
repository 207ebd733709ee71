"""Under torchrun: which processes run a command, and which of them talks. No torch here where one process works alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advcli.errors import AdvcliError
from advcli.torchrun import launched, number

SHARED = ("pretrain", "adv-train", "finetune", "attack")
"""Commands that processes do together; all others are done by the first alone."""


def follows() -> bool:
    """Whether this process is one of several and not the first."""
    return launched() and number("RANK") > 0


@contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, the processes that torchrun started work as one, and an error of one ends all. A command goes in as a whole: what fails
    before on one machine, such as a file that only that one lacks, would leave the others waiting."""
    if not launched():
        yield
        return
    from advcli.training import distributed

    with distributed.opened(device, show):
        yield


def mute() -> None:
    """Nothing of what this process shows is seen; errors and tracebacks are."""
    from advcli.report.terminal import ERR

    ERR.quiet = True
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def show(error: AdvcliError) -> None:
    """One panel, also of a process that is mute, and though a progress bar may not have put the cursor back."""
    from advcli.report.terminal import ERR, show_error

    ERR.quiet = False
    ERR.show_cursor()
    show_error(error)
