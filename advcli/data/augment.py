"""Random crop and flip of a whole batch at once, each image by its own keyed draw.

torchvision's transforms draw one parameter for a whole batch, which is another augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli import draws


def augment(images: Tensor, index: Tensor, names: Sequence[str], *, seed: int, epoch: int) -> Tensor:
    """images (N, C, H, W) uint8, index (N,); names of `crop`, `flip`, in any order. Same shape and type."""
    if "crop" in names:
        images = crop(images, index, seed=seed, epoch=epoch)
    if "flip" in names:
        images = flip(images, index, seed=seed, epoch=epoch)
    return images


def crop(images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Zero padding of an eighth of the height (4 of 32) on each side, then a crop of the old size at a place of its own for each image."""
    height, width = images.shape[-2:]
    pad = height // 8
    offsets = draws.integers((seed, "augment/crop"), index, epoch, 2 * pad + 1, (2,))
    rows = offsets[:, 0, None] + torch.arange(height, device=images.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (pad, pad, pad, pad))
    example = torch.arange(len(images), device=images.device)
    return padded[example[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip(images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Left and right exchanged with probability 1/2."""
    heads = draws.integers((seed, "augment/flip"), index, epoch, 2).bool()
    return torch.where(heads[:, None, None, None], images.flip(-1), images)
