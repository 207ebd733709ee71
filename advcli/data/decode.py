"""Image files decoded once, by all cores and in bounded memory, into a cache that is memory-mapped from then on.

The cache is an .npy file, named by a digest of the file list, with a CRC-32 of each image behind its end. safetensors, the format of
everything else here, is mapped in a way that the kernel refuses for files larger than memory. An image is checked whenever it is read:
that finds every damage that would be seen, and a start need not read the whole of a file that may be larger than memory.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import tempfile
import uuid
import warnings
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from advcli.data.images import Images, mapped
from advcli.errors import DataError, Notice

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

_GREY = {"1", "L"}
_BLOCK = 2**24  # bytes decoded before they are written
_HEADERS = 4096  # files whose headers are read before they are looked at
_UNREADABLE = "remove or replace the file"
_NO_CACHE = "make room there, or let this user write there; TMPDIR names another place for folders that cannot be written"

_SUM = np.dtype("<u4")

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class _Layout(NamedTuple):
    """What all files become. size: side to which they are resized and cropped; None: they have one size."""

    grey: bool
    size: int | None
    shape: tuple[int, int, int, int]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape)


class _Cache(NamedTuple):
    """A whole file, mapped. sums (N,): the CRC-32 of each image as it was written."""

    file: Path
    pixels: Pixels
    sums: NDArray[np.uint32]

    def check(self, rows: NDArray[np.int64], pixels: Pixels) -> None:
        """DataError unless the pixels (M, C, H, W) of these images are what was written."""
        for image, expected in zip(pixels, self.sums[rows].tolist(), strict=True):
            if zlib.crc32(image) != expected:
                what, next = "the cache of decoded images is damaged", "remove that file; the next start decodes the images anew"
                raise DataError(what, where=str(self.file), next=next)


def decode(files: Sequence[Path], root: Path, size: int | None, *, name: str) -> Images:
    """(N, C, H, W) uint8 of the files, mapped from the cache where the list of files (path, length, time) is the one that was cached.

    One channel where every file is grey, else three. size: side to which the shorter side is resized before a centre crop;
    None: the files' own size, which must then be one and the same. Where no cache can be written they are decoded into memory, with a
    Notice; DataError where they do not fit, where a file cannot be read, and, as they are read, for images damaged in the cache.
    """
    if not files:
        raise DataError("no image files", where=str(root), next=f"known endings: {' '.join(sorted(ENDINGS))}")
    cache = _cache_file(files, root, size, name)
    found = _open(cache, len(files))
    if found is None:
        try:
            found = _cached(cache, files, size)
        except OSError as error:
            return torch.from_numpy(_in_memory(files, size, cache, error))
    return mapped(found.pixels, found.check)


def _cache_file(files: Sequence[Path], root: Path, size: int | None, name: str) -> Path:
    home = root if os.access(root, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(f"{size}\0{root.resolve() if home != root else ''}".encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"an image is missing: {error}", where=str(path)) from None
        digest.update(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return home / ".advcli-cache" / f"{name}-{digest.hexdigest()[:16]}.npy"


def _open(cache: Path, n: int) -> _Cache | None:
    """The file; None where it is absent, cut, or not one of n images and their sums."""
    try:
        found = np.lib.format.open_memmap(cache, mode="r")
        sums = np.fromfile(cache, _SUM, offset=found.offset + found.nbytes)
    except (OSError, ValueError, SyntaxError, TokenError):
        return None
    fits = found.dtype == np.uint8 and found.ndim == 4 and len(found) == len(sums) == n and found.flags.c_contiguous
    return _Cache(cache, found, sums) if fits else None


def _cached(cache: Path, files: Sequence[Path], size: int | None) -> _Cache:
    """The file, written first where nobody else has; OSError where that cannot be done."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with _alone(cache.parent):
        found = _open(cache, len(files))
        if found is None:
            _write(cache, files, _layout(files, size))
            found = _open(cache, len(files))
    if found is None:
        raise OSError(errno.EIO, "what was written cannot be read")
    return found


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time, so that those that start together decode once; on file systems without locks each does for itself."""
    with (directory / "lock").open("ab") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            for left in directory.glob("*.partial"):  # by a kill, for nobody else writes now
                left.unlink()
        yield


def _write(cache: Path, files: Sequence[Path], layout: _Layout) -> None:
    """Under a temporary name, synced, renamed: a reader, or a kill, sees the whole file or none."""
    if shutil.disk_usage(cache.parent).free < layout.bytes:  # better said now than after hours
        raise OSError(errno.ENOSPC, f"{layout.bytes / 1e9:.1f} GB do not fit on the disk")
    partial, sums = cache.with_suffix(f".{uuid.uuid4().hex}.partial"), array("I")
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": layout.shape})
            for block in _blocks(files, layout):
                file.write(block.data)
                sums.extend(map(zlib.crc32, block))
            file.write(np.array(sums, _SUM).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(cache)
    finally:
        partial.unlink(missing_ok=True)


def _in_memory(files: Sequence[Path], size: int | None, cache: Path, why: OSError) -> Pixels:
    """What is left where there is no room for a cache."""
    layout = _layout(files, size)
    free = _free_memory()
    if layout.bytes > free:
        raise DataError(
            f"{layout.bytes / 1e9:.1f} GB of images: there is no cache ({why.strerror or why}), and of memory {free / 1e9:.1f} GB",
            where=str(cache.parent),
            next=_NO_CACHE,
        )
    said = f"no cache of decoded images in {cache.parent} ({why.strerror or why}): {layout.bytes / 1e6:,.1f} MB of memory are taken"
    warnings.warn(f"{said}, and every start decodes anew; {_NO_CACHE}", Notice, stacklevel=2)
    images, done = np.empty(layout.shape, np.uint8), 0
    for block in _blocks(files, layout):
        images[done : done + len(block)] = block
        done += len(block)
    return images


def _free_memory() -> float:
    """Bytes; infinity where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return math.inf


def _layout(files: Sequence[Path], size: int | None) -> _Layout:
    """From the headers of all files; DataError where they differ in size and none is asked for."""
    grey, width, height = True, 0, 0
    for path, (mode, own) in zip(files, chain.from_iterable(_in_parallel(_header, files, _HEADERS)), strict=True):
        grey, (width, height) = grey and mode in _GREY, (width, height) if width else own
        if size is None and own != (width, height):
            raise DataError(
                f"images differ in size: {files[0].name} is {(width, height)}, {path.name} is {own} (width, height)",
                where=str(path.parent),
                next="data.size=64 resizes them all, the shorter side first, then a centre crop",
            )
    width, height = (width, height) if size is None else (size, size)
    return _Layout(grey, size, (len(files), 1 if grey else 3, height, width))


def _blocks(files: Sequence[Path], layout: _Layout) -> Iterator[Pixels]:
    """The pixels of all files in their order, about 16 MB at a time, but a file at least for every core."""
    several = max(os.cpu_count() or 1, _BLOCK // math.prod(layout.shape[1:]))
    return map(np.stack, _in_parallel(lambda path: _pixels(path, layout.grey, layout.size), files, several))


def _in_parallel(do: Callable[[Path], T], files: Sequence[Path], several: int) -> Iterator[list[T]]:
    """do of every file by all cores, so many at a time: neither results nor waiting tasks pile up."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), several):
            yield list(pool.map(do, files[start : start + several]))


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read an image: {error}", where=str(path), next=_UNREADABLE) from None


def _pixels(path: Path, grey: bool, size: int | None) -> Pixels:
    """(C, H, W) uint8 of one file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if grey else "RGB")
            if size is not None and pixels.size != (size, size):
                pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read an image: {error}", where=str(path), next=_UNREADABLE) from None
    array = np.asarray(pixels)
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))
