"""Rows of the whole batch where several processes each hold a part of it.

Whatever couples examples (shuffled labels, mixed statistics, negatives, contrasts, class means) couples those of the whole
batch, so that training does not depend on the number of processes. With one process these functions do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def whole(rows: Tensor) -> Tensor:
    """rows (N, ...) of this process to (P N, ...) of all, in the order of their ranks; every process has as many.

    Gradients flow back to the process whose rows they are, summed over all losses.
    """
    if processes() == 1:
        return rows
    gathered: Tensor = _Gathered.apply(rows)
    return gathered


class _Gathered(torch.autograd.Function):
    """torch's own of this purpose is deprecated, and wrong where the gradient that comes in is not contiguous."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own(total)


def own(rows: Tensor) -> Tensor:
    """This process's part (N, ...) of rows (P N, ...) of all."""
    if processes() == 1:
        return rows
    n = len(rows) // processes()
    return rows[dist.get_rank() * n :][:n]


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Put in place of each tensor, all of one dtype, its mean over processes; one message for all of them.

    Every process must hand in the same shapes in the same order. The result has the same bits everywhere.
    """
    if processes() == 1 or not tensors:
        return
    message = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(message)
    message /= processes()
    for tensor, mean in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
