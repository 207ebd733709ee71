"""Any tree of images `train/CLASS/*`, `test/CLASS/*`: decoded once, in parallel, and cached beside a digest of the file list."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from advcli.errors import DataError
from advcli.recipe.schema import Data

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_GREY = {"1", "L"}


def read(root: Path, train: bool, data: Data) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """images (N, C, H, W) uint8, labels (N,) and class names, which are the folder names of train/, sorted."""
    split = "train" if train else "test"
    classes = _class_names(root / "train")
    unknown = [name for name in _class_names(root / split) if name not in classes]
    if unknown:
        raise DataError(f"classes of {split}/ that train/ lacks: {', '.join(unknown[:5])}", where=str(root / split))
    files, labels = [], []
    for label, name in enumerate(classes):
        members = image_files(root / split / name)
        files += members
        labels += [label] * len(members)
    return decode(files, root, data.size, name=split), torch.tensor(labels, dtype=torch.int64), classes


def _class_names(directory: Path) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))) if directory.is_dir() else ()
    if not names:
        raise DataError(
            "a folder of images is a directory with train/CLASS/* and test/CLASS/*; this one has no class folders",
            where=str(directory),
            next="data.root=DIR names the directory that holds train/ and test/",
        )
    return names


def image_files(directory: Path) -> list[Path]:
    """The image files straight under directory, sorted by name; none where there is no such directory."""
    return (
        sorted(p for p in directory.iterdir() if p.suffix.lower() in _ENDINGS and not p.name.startswith(".")) if directory.is_dir() else []
    )


def decode(files: Sequence[Path], root: Path, size: int | None, *, name: str) -> Tensor:
    """(N, C, H, W) uint8 of the files, from the cache where the list of files (path, length, time) is the one that was cached.

    One channel where every file is grey, else three. size: side to which the shorter side is resized before a centre crop;
    None: the files' own size, which must then be one and the same.
    """
    if not files:
        raise DataError("no image files", where=str(root), next=f"known endings: {' '.join(sorted(_ENDINGS))}")
    cache = _cache_file(files, root, size, name)
    try:
        if cache.is_file():
            return load_file(cache)["images"]
    except (SafetensorError, OSError, KeyError):
        cache.unlink(missing_ok=True)  # damaged, for example by a full disk: decode again
    images = _decode_all(files, size)
    _store(images, cache)
    return images


def _cache_file(files: Sequence[Path], root: Path, size: int | None, name: str) -> Path:
    home = root if os.access(root, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(f"{size}\0{root.resolve() if home != root else ''}".encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"an image is missing: {error}", where=str(path)) from None
        digest.update(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return home / ".advcli-cache" / f"{name}-{digest.hexdigest()[:16]}.safetensors"


def _store(images: Tensor, cache: Path) -> None:
    """Best effort: a full disk costs the cache, not the run."""
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(save({"images": images}))
        partial.replace(cache)
    except OSError:
        partial.unlink(missing_ok=True)


def _decode_all(files: Sequence[Path], size: int | None) -> Tensor:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = list(pool.map(_header, files, chunksize=256))
        grey = all(mode in _GREY for mode, _ in headers)
        if size is None:
            odd = next((i for i, header in enumerate(headers) if header[1] != headers[0][1]), None)
            if odd is not None:
                raise DataError(
                    f"images differ in size: {files[0].name} is {headers[0][1]}, {files[odd].name} is {headers[odd][1]} (width, height)",
                    where=str(files[odd].parent),
                    next="data.size=64 resizes them all, the shorter side first, then a centre crop",
                )
        width, height = headers[0][1] if size is None else (size, size)
        images = np.empty((len(files), 1 if grey else 3, height, width), np.uint8)

        def fill(i: int) -> None:
            images[i] = _pixels(files[i], grey, size)

        list(pool.map(fill, range(len(files)), chunksize=256))
    return torch.from_numpy(images)


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read an image: {error}", where=str(path), next="remove or replace the file") from None


def _pixels(path: Path, grey: bool, size: int | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(C, H, W) uint8 of one file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if grey else "RGB")
            if size is not None and pixels.size != (size, size):
                pixels = ImageOps.fit(pixels, (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read an image: {error}", where=str(path), next="remove or replace the file") from None
    array = np.asarray(pixels)
    return array[None] if grey else array.transpose(2, 0, 1)
