"""Batches: every image once an epoch, continued exactly, named, and in [0, 1]."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from advcli.data import Batch, Split, batches, epoch_order, to_float
from advcli.data.augment import augment
from advcli.data.batches import chunks, steps_per_epoch
from advcli.data.images import HostImages, mapped


def split_of(n: int) -> Split:
    """Each image tells its own place in all its pixels; names and labels differ from the places."""
    place = torch.arange(n)
    return Split(place.to(torch.uint8)[:, None, None, None].expand(n, 1, 8, 8).contiguous(), place % 3, place * 10 + 5)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("n", "size", "steps"), [(20, 5, 4), (23, 5, 4), (24, 5, 4), (3, 5, 1), (5, 5, 1), (1, 1, 1)])
def test_an_epoch_visits_distinct_images_and_leaves_out_less_than_a_batch(n: int, size: int, steps: int) -> None:
    epoch = list(batches(split_of(n), batch_size=size, seed=3, epoch=0))
    names = torch.cat([batch.index for batch in epoch])
    assert len(epoch) == steps == steps_per_epoch(n, size)
    assert len(set(names.tolist())) == len(names) == (min(n, steps * size))
    assert n - len(names) < size
    assert [len(batch.labels) for batch in epoch] == [min(n, size)] * steps


def test_images_labels_and_names_belong_together() -> None:
    for batch in batches(split_of(50), batch_size=8, seed=0, epoch=4):
        place = (batch.index - 5) // 10
        assert torch.equal(batch.labels, place % 3)
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long(), place)
        assert (batch.images.dtype, batch.labels.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)


@pytest.mark.parametrize("first", [0, 1, 3, 6])
def test_first_continues_the_epoch_exactly(first: int) -> None:
    """What a run does that was stopped in mid-epoch."""

    def start(step: int) -> list[Batch]:
        return list(batches(split_of(50), batch_size=8, seed=1, epoch=2, first=step, augmentations=("crop", "flip")))

    assert len(start(first)) == 6 - first
    assert all(same(a, b) for a, b in zip(start(0)[first:], start(first), strict=True))


def test_epochs_and_seeds_shuffle_differently_and_images_left_over_come_up() -> None:
    orders = {(seed, epoch): epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in range(20)}
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)
    assert all(torch.equal(order.sort().values, torch.arange(100)) for order in orders.values())
    seen = {int(i) for epoch in range(20) for batch in batches(split_of(100), batch_size=30, seed=0, epoch=epoch) for i in batch.index}
    assert len(seen) == 100


def test_an_order_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(epoch_order(10, 2**63 - 1, 7), epoch_order(10, 2**63 - 1, 7))
    list(batches(split_of(20), batch_size=4, seed=0, epoch=0, augmentations=("crop",)))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_goes_by_name_and_epoch_not_by_place() -> None:
    split = split_of(40)
    for batch in batches(split, batch_size=8, seed=1, epoch=2, augmentations=("crop",)):
        place = (batch.index - 5) // 10
        assert torch.equal(batch.images, to_float(augment(split.images[place], batch.index, ("crop",), seed=1, epoch=2)))


def test_to_float_is_division_by_255_for_all_bytes() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)
    values = to_float(bytes_)
    assert values.dtype == torch.float32
    assert values.double().tolist() == pytest.approx([b / 255 for b in range(256)], rel=2**-24)
    assert (values.min(), values.max()) == (0, 1)
    assert torch.equal((values * 255).round().to(torch.uint8), bytes_)


@pytest.mark.parametrize(("n", "size", "lengths"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 8, [3]), (0, 4, [])])
def test_chunks_are_the_whole_split_in_its_order(n: int, size: int, lengths: list[int]) -> None:
    split, pieces = split_of(n), list(chunks(split_of(n), size))
    assert [len(piece.labels) for piece in pieces] == lengths
    if n:
        whole = Batch(*map(torch.cat, zip(*pieces, strict=True)))
        assert same(whole, Batch(to_float(split.images), split.labels, split.index))


# Streamed from the host.

CPU = torch.device("cpu")


def random_split(n: int) -> Split:
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return Split(images, torch.arange(n) % 7, torch.arange(n) * 3 + 1)


def on_disk(split: Split, path: Path) -> Split:
    np.save(path, split.images[:].numpy())
    return Split(mapped(np.lib.format.open_memmap(path, mode="r")), split.labels, split.index)


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("augmentations", [(), ("crop", "flip")])
@pytest.mark.parametrize(("n", "size"), [(61, 10), (60, 10), (7, 10)])
def test_streamed_batches_have_the_bytes_of_resident_ones(
    n: int, size: int, augmentations: tuple[str, ...], first: int, tmp_path: Path
) -> None:
    """Out of memory or a mapped file, of a part of the split too, through several epochs, and continued in mid-epoch."""
    whole = random_split(n)
    part = torch.randperm(n, generator=torch.Generator().manual_seed(1))[: max(1, n - 3)]
    for resident, streamed in (
        (whole, whole.to(CPU, budget=0)),
        (whole, on_disk(whole, tmp_path / "x.npy").to(CPU)),
        (whole.take(part), on_disk(whole, tmp_path / "y.npy").take(part).to(CPU, budget=0)),
    ):
        assert isinstance(streamed.images, HostImages)
        for epoch in range(3):
            pairs = [
                batches(split, batch_size=size, seed=5, epoch=epoch, first=first, augmentations=augmentations)
                for split in (resident, streamed)
            ]
            assert all(same(a, b) for a, b in zip(*pairs, strict=True))
        assert all(same(a, b) for a, b in zip(chunks(resident, size), chunks(streamed, size), strict=True))


def waiting() -> int:
    return sum(thread.name.startswith("next-batch") for thread in threading.enumerate())


def test_only_what_is_streamed_takes_a_thread_and_closing_ends_it() -> None:
    for budget, expected in ((10**9, 0), (0, 1)):
        stream = batches(random_split(50).to(CPU, budget), batch_size=5, seed=0, epoch=0)
        next(stream)
        assert waiting() == expected
        stream.close()
        assert waiting() == 0


def test_an_error_of_the_disk_comes_up_in_the_loop() -> None:
    class Broken(np.ndarray):  # type: ignore[type-arg]
        def take(self, *_: object, **__: object) -> None:
            raise OSError("input/output error")

    split = random_split(20)
    broken = Split(mapped(split.images.numpy().view(Broken)), split.labels, split.index)
    with pytest.raises(OSError, match="input/output error"):
        list(batches(broken, batch_size=5, seed=0, epoch=0))
    assert waiting() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_cuda_device_streamed_batches_have_the_bytes_of_resident_ones() -> None:
    cuda, split = torch.device("cuda:0"), random_split(2000)
    pairs = [batches(split.to(cuda, budget), batch_size=64, seed=5, epoch=1, augmentations=("crop", "flip")) for budget in (0, 10**9)]
    assert all(same(a, b) for a, b in zip(*pairs, strict=True))


def test_parts_of_each_batch_are_disjoint_equal_and_in_order() -> None:
    """Whatever their number, together they are the batch of one process, augmented alike."""

    def epoch(part: tuple[int, int] = (0, 1)) -> list[Batch]:
        return list(batches(split_of(50), batch_size=12, seed=0, epoch=1, first=1, augmentations=("crop",), part=part))

    for several in (2, 3):
        parts = [epoch((number, several)) for number in range(several)]
        for step, whole in enumerate(epoch()):
            assert [len(part[step].labels) for part in parts] == [12 // several] * several
            for column, joined in enumerate(whole):
                assert torch.equal(torch.cat([part[step][column] for part in parts]), joined)
