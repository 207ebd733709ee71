"""Which device, and how precisely it computes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from advcli import torchrun
from advcli.errors import UsageError


def pick_device(name: str) -> torch.device:
    """`auto`: a CUDA device where there is one, else the CPU. UsageError for a device that is not there.

    Of several processes on a machine each takes the CUDA device of its own number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if torchrun.launched() and name.startswith("cuda"):
        if name != "cuda":
            raise UsageError("every process has a GPU of its own", where="--device", next="--device cuda")
        name = f"cuda:{torchrun.number('LOCAL_RANK')}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("networks run on cpu or cuda here")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}", where="--device", next="--device auto takes what there is"
        ) from None
    return device


def plain_precision(device: torch.device) -> str:
    """What float32 networks compute in on this device where nothing was measured: tf32 where the hardware has it, else fp32."""
    return "tf32" if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"


def set_precision(precision: str, device: torch.device) -> None:
    """Make float32 convolutions and products exact (fp32), or let them round their inputs to 10 bits (tf32, and beside bf16)."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.deterministic = True


@contextmanager
def computing(precision: str, device: torch.device, *, autocast: bool = True) -> Iterator[None]:
    """Networks inside compute in this precision; what was set before is put back.

    bf16: convolutions and products in bfloat16, by autocast; weights, losses and the optimiser stay float32. autocast False:
    for a network that says itself what it computes in bfloat16.
    """
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) if device.type == "cuda" else None
    set_precision(precision, device)
    try:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" and autocast else nullcontext():
            yield
    finally:
        if before is not None:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
