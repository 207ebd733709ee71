"""Where the pixels of a split lie: whole on the device, or on the host, from where rows come when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARE = 0.25
"""Of a CUDA device's free memory, what a data set may take; the network, its activations and its gradients need the rest."""

_PIECE = 2**26  # bytes that are moved or read at once where a whole data set passes


Check = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
"""Given positions (M,) and the pixels (M, C, H, W) that were read there, raises where those are not what should be."""


@dataclass(frozen=True)
class HostImages:
    """A view of images on the host that answers on a device: what a tensor is to its users, but for being whole in memory.

    source (M, C, H, W) uint8, contiguous, usually a memory-mapped file; rows (N,) int64: the images' positions in it, on the
    CPU; target: the device that rows are brought to; check: made of all pixels as they are read.
    """

    source: NDArray[np.uint8]
    rows: Tensor
    target: torch.device
    check: Check | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    @property
    def device(self) -> torch.device:
        """Where positions are best given: elsewhere, asking for rows waits for the device."""
        return self.rows.device

    def __getitem__(self, pick: Tensor | slice) -> Tensor:
        """(M, C, H, W) uint8 on the target; to a CUDA device out of pinned memory, in the current stream, without waiting."""
        rows = self.take(pick).rows
        pixels = torch.empty((len(rows), *self.source.shape[1:]), dtype=torch.uint8, pin_memory=self.target.type == "cuda")
        np.take(self.source, rows.numpy(), axis=0, out=pixels.numpy(), mode="clip")  # any other mode makes a second copy
        if self.check is not None:
            self.check(rows.numpy(), pixels.numpy())
        return pixels.to(self.target, non_blocking=True)

    def take(self, pick: Tensor | slice) -> HostImages:
        """The view of some positions, (M,) int64, or (N,) bool that marks them; no pixel is read."""
        return replace(self, rows=self.rows[pick.to(self.device) if isinstance(pick, Tensor) else pick])

    def to(self, device: torch.device) -> HostImages:
        return replace(self, target=device)


Images = Tensor | HostImages
"""(N, C, H, W) uint8; `[positions]` or `[slice]` of either is a tensor on the device, and `[:]` is all of it."""


def mapped(source: NDArray[np.uint8], check: Check | None = None) -> HostImages:
    """All images of an array (N, C, H, W)."""
    return HostImages(source, torch.arange(len(source)), torch.device("cpu"), check)


def take(images: Images, pick: Tensor) -> Images:
    """Those at positions pick (M,): a copy of a tensor, a view of what stays on the host."""
    return images.take(pick) if isinstance(images, HostImages) else images[pick]


def place(images: Images, device: torch.device, budget: int | None = None) -> Images:
    """Whole on the device where they take at most budget bytes; else on the host, and rows are taken to the device when asked for.

    budget None: a quarter of what is free on a CUDA device, where a tensor that is there already stays. On the CPU the device
    is memory: a tensor stays, and a memory-mapped file stays mapped.
    """
    if budget is None and (device.type != "cuda" or images.device.type == "cuda"):
        return images.to(device)
    budget = int(SHARE * torch.cuda.mem_get_info(device)[0]) if budget is None else budget
    if math.prod(images.shape) > budget:
        return images.to(device) if isinstance(images, HostImages) else mapped(images.contiguous().numpy()).to(device)
    return _whole(images.to(device)) if isinstance(images, HostImages) else images.to(device)


def _whole(images: HostImages) -> Tensor:
    """Piece by piece: the device may hold more than the host has memory."""
    whole = torch.empty(images.shape, dtype=torch.uint8, device=images.target)
    for piece in pieces(images):
        whole[piece] = images[piece]
    return whole


def pieces(images: Images) -> Iterator[slice]:
    """Slices of about 64 MB that together are all images."""
    step = max(1, _PIECE // max(1, math.prod(images.shape[1:])))
    return (slice(start, start + step) for start in range(0, images.shape[0], step))
