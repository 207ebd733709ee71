"""The decoded cache: it never lies, takes bounded memory, and is written once."""

from __future__ import annotations

import fcntl
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trees import caches, channels_first, colour_tree, pixels, read, write

from advcli.data import decode, folder
from advcli.data.images import HostImages, place
from advcli.errors import DataError, Notice
from advcli.recipe.schema import Data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return colour_tree(tmp_path / "set")


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_pixels", lambda *_: pytest.fail("decoded although cached"))


def test_the_second_reading_comes_from_the_cache(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(tree)
    assert len(caches(tree)) == 1
    no_decoding(monkeypatch)
    second = read(tree)
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


@pytest.mark.parametrize("change", ["pixels", "time", "added", "removed", "renamed", "size"])
def test_any_change_is_decoded_anew(change: str, tree: Path) -> None:
    read(tree)
    victim, options = tree / "train" / "cat" / "b.png", {}
    match change:
        case "pixels":
            write(victim, pixels(77))
        case "time":  # one nanosecond later is enough
            status = victim.stat()
            victim.write_bytes(victim.read_bytes())
            os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        case "added":
            write(tree / "train" / "cat" / "z.png", pixels(78))
        case "removed":
            victim.unlink()
        case "renamed":
            victim.rename(victim.with_name("0.png"))
        case "size":
            options = {"size": 4}
    images, labels, _ = read(tree, **options)
    files = [path for name in ("ant", "cat") for path in folder.image_files(tree / "train" / name)]
    assert len(labels) == len(files)
    if change == "size":
        assert images.shape[-2:] == (4, 4)
    else:
        assert torch.equal(images, torch.stack([channels_first(np.asarray(Image.open(path))) for path in files]))
    assert len(caches(tree)) == 2


def test_the_splits_have_caches_of_their_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = read(tree), read(tree, "test")
    no_decoding(monkeypatch)
    assert torch.equal(read(tree)[0], train[0])
    assert torch.equal(read(tree, "test")[0], test[0])


def npy(array: np.ndarray[tuple[int, ...], np.dtype[Any]]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut by a byte": whole[:-1],
        "cut in the header": whole[:50],
        "garbage": b"\xff" * 4000,
        "a header of garbage": whole[:10] + b"(" * 118 + whole[128:],
        "other numbers": npy(np.zeros((3, 3, 6, 5), np.float32)),
        "one image less": npy(np.zeros((2, 3, 6, 5), np.uint8)),
        "no images": npy(np.zeros(3, np.uint8)),
        "turned round": npy(np.asfortranarray(np.ones((3, 3, 6, 5), np.uint8))),
        "objects": npy(np.array([print], object)),
    }


@pytest.mark.parametrize("damage", damaged(b""))
def test_a_damaged_cache_is_made_anew(damage: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read(tree)
    (cache,) = caches(tree)
    whole = cache.read_bytes()
    cache.write_bytes(damaged(whole)[damage])
    assert torch.equal(read(tree)[0], first[0])
    assert cache.read_bytes() == whole, "whole again, and used again"
    no_decoding(monkeypatch)
    assert torch.equal(read(tree)[0], first[0])


def test_no_flipped_bit_of_a_cache_header_is_more_than_a_damaged_cache(tree: Path) -> None:
    """Whatever a header says after one of its bits was flipped, opening it gives an array that fits, or nothing."""
    read(tree)
    (cache,) = caches(tree)
    whole = bytearray(cache.read_bytes())
    for position in range(128):
        for bit in range(8):
            cache.write_bytes(bytes([*whole[:position], whole[position] ^ 1 << bit, *whole[position + 1 :]]))
            found = decode._open(cache, 3)
            assert found is None or (found.pixels.dtype, len(found.pixels), found.pixels.ndim) == (np.uint8, 3, 4)


def flip(file: Path, position: int) -> None:
    whole = bytearray(file.read_bytes())
    whole[position] ^= 1
    file.write_bytes(whole)


IMAGE, SUM = 3 * 6 * 5, 4  # bytes of one


@pytest.mark.parametrize("position", [IMAGE, 2 * IMAGE - 1, 3 * IMAGE + SUM], ids=["first byte", "last byte", "sum"])
def test_a_flipped_bit_of_the_cache_is_not_believed(position: int, tree: Path) -> None:
    """The second image is refused as often as it is asked for, by whatever view; the others are read; without the file all is well."""
    first = read(tree)[0]
    (cache,) = caches(tree)
    flip(cache, cache.stat().st_size - 3 * (IMAGE + SUM) + position)
    data = Data.model_validate({"name": "folder", "root": str(tree)})
    images = folder.read(tree, True, data)[0]
    assert isinstance(images, HostImages)
    for view in (images, images.take(torch.tensor([2, 1])), images.to(torch.device("cpu"))):
        with pytest.raises(DataError, match="the cache of decoded images is damaged") as caught:
            view[:]
        assert caught.value.where == str(cache)
        assert "remove that file" in caught.value.next
    with pytest.raises(DataError, match="damaged"):
        place(images, torch.device("cpu"), budget=10**6)
    assert torch.equal(images[torch.tensor([0, 2])], first[[0, 2]])
    cache.unlink()
    assert torch.equal(read(tree)[0], first)


def test_a_cache_without_sums_is_made_anew(tree: Path) -> None:
    """As they were written before."""
    first = read(tree)[0]
    (cache,) = caches(tree)
    whole = cache.read_bytes()
    cache.write_bytes(whole[: -3 * SUM])
    assert torch.equal(read(tree)[0], first)
    assert cache.read_bytes() == whole


def test_a_cache_of_the_earlier_format_is_left_alone(tree: Path) -> None:
    old = tree / ".advcli-cache" / "train-0123456789abcdef.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"as it was")
    read(tree)
    assert old.read_bytes() == b"as it was"
    assert len(caches(tree)) == 2


def test_a_folder_that_cannot_be_written_is_cached_elsewhere(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    first = read(tree)
    assert not (tree / ".advcli-cache").exists()
    no_decoding(monkeypatch)
    assert torch.equal(read(tree)[0], first[0])


def test_two_folders_never_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unwritable folders whose files agree in name, length and time, as uncompressed images out of an archive do, and not in pixels."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for seed, name in enumerate(("one", "two")):
        os.utime(write(tmp_path / name / "train" / "a" / "x.bmp", pixels(seed)), ns=(0, 0))
    assert torch.equal(read(tmp_path / "one")[0][0], channels_first(pixels(0)))
    assert torch.equal(read(tmp_path / "two")[0][0], channels_first(pixels(1)))


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_costs_the_cache_and_not_the_run(when: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(tree)[0]
    shutil.rmtree(tree / ".advcli-cache")
    full(when, monkeypatch)
    with pytest.warns(Notice, match=r"no cache of decoded images in .*set/\.advcli-cache \(.*\): 0\.0 MB of memory are taken") as said:
        images = read(tree)[0]
    assert len(said) == 1
    assert "TMPDIR names another place" in str(said[0].message)
    assert torch.equal(images, expected)
    assert caches(tree) == []


def full(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 3 * 6 * 5 - 1))
    else:
        monkeypatch.setattr(os, "fsync", refused)


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_room_neither_on_the_disk_nor_in_memory_is_said(when: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(when, monkeypatch)
    monkeypatch.setattr(decode, "_free_memory", lambda: 3 * 3 * 6 * 5 - 1)
    with pytest.raises(DataError, match="there is no cache") as caught:
        read(tree)
    assert caught.value.where == str(tree / ".advcli-cache")
    assert "make room" in caught.value.next


def test_free_memory_is_told_in_bytes() -> None:
    free, all_ = decode._free_memory(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free == math.inf or 2**20 < free <= all_


def test_processes_that_start_together_decode_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for them: a lock belongs to the open file, not to the process."""
    written, write_ = [], decode._write
    monkeypatch.setattr(decode, "_write", lambda *arguments: (written.append(1), write_(*arguments)))
    together(tree)
    assert len(written) == 1


def test_without_locks_everybody_decodes_and_nobody_reads_a_half(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    together(tree)


def together(tree: Path) -> None:
    start = threading.Barrier(4)

    def one(_: int) -> torch.Tensor:
        start.wait()
        return read(tree)[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    expected = torch.stack([channels_first(pixels(i)) for i in (2, 1, 0)])
    assert all(torch.equal(images, expected) for images in found)
    assert [path.suffix for path in caches(tree)] == [".npy"]


def test_what_a_kill_left_is_cleared_away(tree: Path) -> None:
    left = tree / ".advcli-cache" / "train-0123456789abcdef.77.partial"
    left.parent.mkdir()
    left.write_bytes(b"half")
    read(tree)
    assert [path.suffix for path in caches(tree)] == [".npy"]


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 images and headers 3 at a time give what one block gives."""
    for i in range(7):
        write(tmp_path / "train" / "a" / f"{i}.png", pixels(i))
    whole = read(tmp_path)[0]
    shutil.rmtree(tmp_path / ".advcli-cache")
    monkeypatch.setattr(decode, "_BLOCK", 2 * 3 * 6 * 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(decode, "_HEADERS", 3)
    assert torch.equal(read(tmp_path)[0], whole)


MEASURED = """
import sys, torch
from pathlib import Path
from advcli.data import batches, load
from advcli.recipe.schema import Data

def memory(line):
    return next(int(row.split()[1]) / 1024 for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line))

def measured(root):
    # Peak memory after decoding, and the most private memory during an epoch.
    train = load(Data.model_validate({"name": "folder", "root": root, "validation": 8}), 0).train
    peak = memory("VmHWM")
    stream = batches(train, batch_size=16, seed=0, epoch=0, augmentations=("crop", "flip"))
    return peak, max(memory("RssAnon") for _ in stream)

small, large = map(measured, sys.argv[1:])
print(large[0] - small[0], large[1] - small[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_a_tree_of_300_mb_is_decoded_and_read_in_100(tmp_path: Path) -> None:
    """Peak memory while decoding, and private memory during an epoch of streamed batches, over what a tree of 20 MB takes."""
    for name, copies in (("small", 400), ("large", 6400)):
        for i in range(4):
            image = write(tmp_path / name / "train" / "a" / f"{i}.jpg", np.kron(pixels(i, (4, 4, 3)), np.ones((32, 32, 1), np.uint8)))
            for copy in range(copies // 4 - 1):
                os.link(image, image.with_name(f"{i}-{copy}.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "small"), str(tmp_path / "large")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    decoding, reading = map(float, done.stdout.split())
    (cache,) = (tmp_path / "large" / ".advcli-cache").glob("*.npy")
    assert cache.stat().st_size > 300e6
    assert decoding < 100
    assert reading < 100
