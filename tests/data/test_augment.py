"""Crop and flip against one image at a time, from the same draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advcli import draws
from advcli.data.augment import augment, crop, flip


def random_images(n: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def crop_one(image: Tensor, name: int, seed: int, epoch: int) -> Tensor:
    """Paste into a black frame an eighth of the height wide, then cut the old size out at the drawn corner."""
    channels, height, width = image.shape
    pad = height // 8
    top, left = draws.integers((seed, "augment/crop"), torch.tensor([name]), epoch, 2 * pad + 1, (2,))[0].tolist()
    frame = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=torch.uint8)
    frame[:, pad : pad + height, pad : pad + width] = image
    return frame[:, top : top + height, left : left + width]


def flip_one(image: Tensor, name: int, seed: int, epoch: int) -> Tensor:
    if not draws.integers((seed, "augment/flip"), torch.tensor([name]), epoch, 2).item():
        return image
    return torch.stack([image[..., column] for column in reversed(range(image.shape[-1]))], -1)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 16, 24), (2, 7, 5)])
@pytest.mark.parametrize("epoch", [0, 13])
def test_equal_to_one_image_at_a_time(channels: int, height: int, width: int, epoch: int) -> None:
    images, index = random_images(40, channels, height, width), torch.arange(40) * 7 + 3
    cropped = torch.stack([crop_one(x, int(i), 5, epoch) for x, i in zip(images, index, strict=True)])
    both = torch.stack([flip_one(x, int(i), 5, epoch) for x, i in zip(cropped, index, strict=True)])
    assert torch.equal(crop(images, index, seed=5, epoch=epoch), cropped)
    assert torch.equal(augment(images, index, ("crop", "flip"), seed=5, epoch=epoch), both)
    assert torch.equal(augment(images, index, ("flip", "crop"), seed=5, epoch=epoch), both), "the order of the names does not matter"
    flipped = torch.stack([flip_one(x, int(i), 5, epoch) for x, i in zip(images, index, strict=True)])
    assert torch.equal(augment(images, index, ["flip"], seed=5, epoch=epoch), flipped)


def test_nothing_named_is_nothing_done() -> None:
    images = random_images(4, 3, 8, 8)
    assert torch.equal(augment(images, torch.arange(4), (), seed=0, epoch=0), images)


@pytest.mark.parametrize("which", [crop, flip])
def test_an_image_is_augmented_alike_in_any_batch(which: object) -> None:
    images, index = random_images(30, 3, 16, 16), torch.arange(30)
    whole = which(images, index, seed=1, epoch=2)  # type: ignore[operator]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    parts = [which(images[p], index[p], seed=1, epoch=2) for p in order.split([1, 9, 20])]  # type: ignore[operator]
    assert torch.equal(torch.cat(parts), whole[order])


@pytest.mark.parametrize("which", [crop, flip])
def test_seeds_and_epochs_augment_differently_and_inputs_stay(which: object) -> None:
    images, index = random_images(30, 3, 16, 16), torch.arange(30)
    before = images.clone()
    results = [which(images, index, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]  # type: ignore[operator]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(images, before)


def test_every_corner_and_both_sides_come_up_equally_often() -> None:
    """81 corners at 32 pixels, 2 sides: each within five standard errors of its share, over 8,100 images that mark a place."""
    n, images = 8100, torch.zeros(8100, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 16, 16] = 255
    place = crop(images, torch.arange(n), seed=0, epoch=0).flatten(1).float().argmax(1)
    rows, columns = place // 32 - 12, place % 32 - 12
    counts = torch.bincount(rows * 9 + columns, minlength=81).double()
    assert len(counts) == 81
    assert float((counts - n / 81).abs().max()) < 5 * (n / 81) ** 0.5
    images[:, :, 16, 16], images[:, :, 16, 0] = 0, 255
    right = int((flip(images, torch.arange(n), seed=0, epoch=0).flatten(1).float().argmax(1) % 32 == 31).sum())
    assert abs(right - n / 2) < 5 * (n / 4) ** 0.5
