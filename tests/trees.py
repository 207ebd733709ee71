"""Small trees of images that tests write, and what the program reads from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advcli.data import load_test
from advcli.recipe.schema import Data

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def pixels(seed: int, shape: tuple[int, ...] = (6, 5, 3)) -> Pixels:
    """(H, W) grey or (H, W, 3) colour."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, array: Pixels, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def channels_first(array: Pixels) -> Tensor:
    return torch.tensor(array.transpose(2, 0, 1) if array.ndim == 3 else array[None])


def read(root: Path, split: str = "train", **rest: Any) -> tuple[Tensor, list[int], tuple[str, ...]]:
    found, classes = load_test(Data.model_validate({"name": "folder", "root": str(root), **rest}), split)
    return found.images[:], found.labels.tolist(), classes


def colour_tree(root: Path) -> Path:
    """Two classes of colour PNG files, three training images and one test image."""
    for i, name in enumerate(("train/cat/b.png", "train/cat/a.png", "train/ant/c.PNG", "test/cat/d.png")):
        write(root / name, pixels(i))
    return root


def caches(root: Path) -> list[Path]:
    """All that decoding has left beside the images, but for the lock."""
    return sorted(path for path in (root / ".advcli-cache").glob("*") if path.name != "lock")
