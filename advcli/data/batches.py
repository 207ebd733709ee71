"""Batches of a split: shuffled by epoch, augmented on the device, always with the examples' names."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advcli.data.augment import augment
from advcli.data.datasets import Split
from advcli.data.images import HostImages
from advcli.data.prefetch import ahead


class Batch(NamedTuple):
    """images (N, C, H, W) float32 in [0, 1]; labels (N,) int64; index (N,) int64, which names each example for ever."""

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple.index is shadowed on purpose


class Moment(NamedTuple):
    """When a step happens: with Batch.index it is the key of every random draw.

    epoch counts from 0; step counts optimiser steps from 0 over the whole run; progress is in [0, 1).
    """

    seed: int
    epoch: int
    step: int
    progress: float


def to_float(images: Tensor) -> Tensor:
    """uint8 images in 0..255 to float32 in [0, 1]."""
    return images.float() / 255


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order (n,) in which an epoch visits the examples; on the CPU, so the same for every device."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole batches in an epoch; the incomplete last one is left out, unless it is the only one."""
    return max(1, n // batch_size)


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int = 0,
    augmentations: Sequence[str] = (),
    part: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """The training batches of an epoch from step `first` on. Images left over at the end come up in other epochs.

    part: (r, P) for the r-th of the P contiguous parts of each batch, P a divisor of batch_size. Where images stay on the host
    the next batch is made while one is used, in a thread that ends when the generator is closed.
    """
    number, size = part[0], batch_size // part[1]
    order = epoch_order(len(split), seed, epoch)
    places, names = order.to(split.images.device), order.to(split.labels.device)  # once an epoch, so that no step waits for them

    def make(step: int) -> Batch:
        begin = step * batch_size + number * size
        pick = slice(begin, begin + size)
        index = split.index[names[pick]]
        images = augment(split.images[places[pick]], index, augmentations, seed=seed, epoch=epoch)
        return Batch(to_float(images), split.labels[names[pick]], index)

    steps = range(first, steps_per_epoch(len(split), batch_size))
    yield from ahead(make, steps, split.labels.device) if isinstance(split.images, HostImages) else map(make, steps)


def chunks(split: Split, size: int) -> Iterator[Batch]:
    """The whole split in its own order, without augmentation, in pieces of at most size."""
    for i in range(math.ceil(len(split.labels) / size)):
        part = slice(i * size, (i + 1) * size)
        yield Batch(to_float(split.images[part]), split.labels[part], split.index[part])
