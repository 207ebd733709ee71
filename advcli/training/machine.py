"""What the machine is and what it can do at most: the ground that shares of its speed stand on."""

from __future__ import annotations

import platform
import sys
import time
from importlib import util
from pathlib import Path
from typing import Any

import torch

from advcli.training.device import computing

_SIDE = {"cpu": 1536, "cuda": 8192}  # of square matrices: large enough for full speed, small enough for many in a second
_TILES = 4  # products between two looks at the clock


def hardware(device: torch.device) -> dict[str, Any]:
    """What a measurement was made on."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else processor()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads(), "system": platform.platform()}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    rows = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.processor())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """FLOP a second of large matrix products in fp32, tf32 or bf16: the best that was seen, so what a network could reach at most."""
    side = _SIDE[device.type]
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    out = torch.empty_like(a)
    best, until = 0.0, time.perf_counter() + seconds
    with torch.no_grad(), computing(precision, device, autocast=False):
        torch.mm(a, a, out=out)  # warms up
        while best == 0.0 or time.perf_counter() < until:
            synchronize(device)
            began = time.perf_counter()
            for _ in range(_TILES):
                torch.mm(a, a, out=out)
            synchronize(device)
            best = max(best, _TILES * 2 * side**3 / (time.perf_counter() - began))
    return best


def low_convolutions(device: torch.device) -> tuple[float, float]:
    """(how many times as fast as float32's bfloat16 convolutions are, the cosine between their gradients), forward and backward.

    A layer as in a ResNet-18's first stage. A cosine under 0.99 is a fault of kernels, not rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator) / 24
    gradients, seconds = [], []
    for dtype in (torch.float32, torch.bfloat16):
        image, kernel = (part.to(device, dtype, memory_format=torch.channels_last) for part in (x, weight))
        times = []
        for _ in range(4):
            leaf = image.detach().requires_grad_(True)
            synchronize(device)
            began = time.perf_counter()
            (gradient,) = torch.autograd.grad(torch.conv2d(leaf, kernel, padding=1).float().square().sum(), leaf)
            synchronize(device)
            times.append(time.perf_counter() - began)
        gradients.append(gradient.double().flatten())
        seconds.append(min(times))
    return seconds[0] / seconds[1], float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0))


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that tensors took on a CUDA device, or that this process took of the machine's memory; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if util.find_spec("resource") is None:
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
