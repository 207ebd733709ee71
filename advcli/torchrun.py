"""What torchrun tells the processes that it starts. No torch here."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and number("WORLD_SIZE") > 1


def number(name: str) -> int:
    """RANK among all processes, LOCAL_RANK on this machine, GROUP_RANK of the machine, WORLD_SIZE; 0 where torchrun said nothing."""
    return int(os.environ.get(name, "0"))
