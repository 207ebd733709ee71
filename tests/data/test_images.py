"""Images on the host against the tensor they stand for: same rows, same shapes, and the device gets them whole where they fit."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advcli.data import Split, batches
from advcli.data.images import HostImages, mapped, pieces, place, take

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (20, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICKS: dict[str, Tensor | slice] = {
    "positions": torch.tensor([3, 1, 1, 19]),
    "one": torch.tensor([0]),
    "none": torch.tensor([], dtype=torch.int64),
    "from the end": torch.tensor([-1, -20]),
    "marked": torch.arange(20) % 3 == 0,
    "slice": slice(4, 9),
    "slice past the end": slice(15, 40),
    "all": slice(None),
}


@pytest.mark.parametrize("name", PICKS)
def test_rows_are_those_of_the_tensor(name: str) -> None:
    pick = PICKS[name]
    found = mapped(PIXELS.numpy())[pick]
    assert found.dtype == torch.uint8
    assert torch.equal(found, PIXELS[pick])


@pytest.mark.parametrize("name", PICKS)
def test_a_view_of_a_view_is_one_of_the_same_array(name: str) -> None:
    first = torch.tensor([*range(5, 20), 0, 1, 2, 3, 4])
    view = mapped(PIXELS.numpy()).take(first).take(PICKS[name])
    assert torch.equal(view[:], PIXELS[first][PICKS[name]])
    assert view.shape == PIXELS[first][PICKS[name]].shape
    assert view.source is mapped(view.source).source
    assert np.shares_memory(view.source, PIXELS.numpy())


def test_a_position_past_the_end_is_refused() -> None:
    with pytest.raises(IndexError):
        mapped(PIXELS.numpy())[torch.tensor([20])]


def test_rows_are_copies() -> None:
    images = mapped(PIXELS.numpy().copy())
    images[:].zero_()
    assert torch.equal(images[:], PIXELS)


@pytest.mark.parametrize("on_host", [True, False])
def test_what_takes_more_than_the_budget_stays_on_the_host(on_host: bool) -> None:
    images = mapped(PIXELS.numpy()) if on_host else PIXELS
    size = 20 * 3 * 4 * 5
    fits, not_ = place(images, CPU, size), place(images, CPU, size - 1)
    assert isinstance(fits, Tensor)
    assert isinstance(not_, HostImages)
    assert torch.equal(fits, PIXELS)
    assert torch.equal(not_[:], PIXELS)
    assert np.shares_memory(not_.source, PIXELS.numpy()), "nothing was copied"


def test_on_the_cpu_a_tensor_and_a_mapped_file_stay_what_they_are() -> None:
    host = mapped(PIXELS.numpy())
    assert place(PIXELS, CPU) is PIXELS
    stays = place(host, CPU)
    assert isinstance(stays, HostImages)
    assert stays.source is host.source


@pytest.mark.parametrize(("free", "whole"), [(4 * 1200, True), (4 * 1200 - 1, False)])
def test_a_data_set_takes_a_quarter_of_the_free_memory_of_a_cuda_device(free: int, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision alone, without a device: what would be moved there is asked for its bytes only."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(device), (free, 10**12))[1])
    monkeypatch.setattr("advcli.data.images._whole", lambda images: ("whole", images.target))
    cuda = torch.device("cuda:0")
    found: Any = place(mapped(PIXELS.numpy()), cuda)
    assert asked == [cuda]
    assert found == ("whole", cuda) if whole else isinstance(found, HostImages) and found.target == cuda


def test_moved_in_pieces_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcli.data.images._PIECE", 7 * 60)
    assert [piece.start for piece in pieces(PIXELS)] == [0, 7, 14]
    assert torch.equal(torch.cat([PIXELS[piece] for piece in pieces(PIXELS)]), PIXELS)
    moved = place(mapped(PIXELS.numpy()).take(torch.arange(19, -1, -1)), CPU, 10**9)
    assert isinstance(moved, Tensor)
    assert torch.equal(moved, PIXELS.flip(0))


def test_a_split_that_is_mapped_takes_views_and_keeps_its_columns_together() -> None:
    split = Split(mapped(PIXELS.numpy()), torch.arange(20) % 3, torch.arange(20) + 100)
    part = split.take(torch.tensor([7, 2])).to(CPU)
    assert isinstance(part.images, HostImages)
    assert torch.equal(part.images[:], PIXELS[[7, 2]])
    assert (part.labels.tolist(), part.index.tolist()) == ([1, 2], [107, 102])
    assert isinstance(take(PIXELS, torch.tensor([1])), Tensor)


def test_a_file_twice_as_large_as_memory_is_read_in_rows(tmp_path: Path) -> None:
    """A file with a hole in it: the disk holds little, but to the kernel it is as large as it says."""
    memory, row = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), (3, 512, 512)
    n, path = 2 * memory // math.prod(row), tmp_path / "large.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *row)})
        start = file.tell()
        for i in (0, n // 2, n - 1):
            file.seek(start + i * math.prod(row))
            file.write(bytes([7]) * math.prod(row))
    split = Split(mapped(np.lib.format.open_memmap(path, mode="r")), torch.arange(n) % 10, torch.arange(n))
    assert split.images[torch.tensor([0, 1, n // 2, n - 1])].flatten(1).float().mean(1).tolist() == [7, 0, 7, 7]
    stream = batches(split.take(torch.arange(n - 1, 0, -1)), batch_size=4, seed=0, epoch=0, augmentations=("crop",))
    assert next(stream).images.shape == (4, *row)
    stream.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("budget", [0, 10**6])
def test_on_a_cuda_device(budget: int) -> None:
    cuda = torch.device("cuda:0")
    images = place(mapped(PIXELS.numpy()), cuda, budget)
    for name, pick in PICKS.items():
        rows = images[pick]
        assert rows.device == cuda, name
        assert torch.equal(rows.cpu(), PIXELS[pick]), name
