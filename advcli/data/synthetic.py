"""Random images of a published data set's shape: for measuring speed where the data set itself is not at hand, and for nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch

from advcli.data.datasets import DataSet, Split, check_validation
from advcli.errors import AdvcliError, UsageError
from advcli.recipe.schema import Data


class Shape(NamedTuple):
    """Of a training split as published."""

    images: int
    channels: int
    side: int
    classes: int


SHAPES = {
    "digits": Shape(1437, 1, 8, 10),
    "cifar10": Shape(50_000, 3, 32, 10),
    "cifar100": Shape(50_000, 3, 32, 100),
    "svhn": Shape(73_257, 3, 32, 10),
    "tiny-imagenet": Shape(100_000, 3, 64, 200),
}


def shape_of(data: Data) -> Shape:
    """UsageError for a folder, whose shape is known once it is there."""
    if data.name not in SHAPES:
        raise UsageError(
            f"random images in place of {data.name} have no known shape",
            where="--synthetic",
            next="name a data set, as in data.name=cifar10",
        )
    return SHAPES[data.name]


def planned_images(data: Data) -> int:
    """Training images that the recipe would have, its validation taken out. DataError where that leaves none, as `load` has it."""
    published = shape_of(data).images
    count = min(data.limit or published, published)
    check_validation(data, count)
    return count - data.validation


def can_stand_in(data: Data) -> bool:
    """Whether random images can take the place of what the recipe names."""
    try:
        return planned_images(data) > 0
    except AdvcliError:
        return False


def synthetic(data: Data, images: int, seed: int = 0) -> DataSet:
    """A training split of that many random images (N, C, H, W), uint8, every class as often as the others; nothing is held out."""
    _, channels, side, classes = shape_of(data)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, channels, side, side), dtype=torch.uint8, generator=generator)
    index = torch.arange(images)
    split = Split(pixels, index % classes, index)
    return DataSet(split, split.take(index[:0]), tuple(map(str, range(classes))))
