"""Any tree of images `train/CLASS/*`, `test/CLASS/*`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from advcli.data.decode import ENDINGS, decode
from advcli.data.images import Images
from advcli.errors import DataError
from advcli.recipe.schema import Data


def read(root: Path, train: bool, data: Data) -> tuple[Images, Tensor, tuple[str, ...]]:
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
        sorted(p for p in directory.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".")) if directory.is_dir() else []
    )
