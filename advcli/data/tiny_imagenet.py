"""Tiny-ImageNet in its published layout: 200 classes, 64x64; its validation images, whose labels are public, are the test split."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from advcli.data.decode import decode
from advcli.data.folder import image_files
from advcli.data.images import Images
from advcli.errors import DataError
from advcli.recipe.schema import Data


def read(root: Path, train: bool, data: Data) -> tuple[Images, Tensor, tuple[str, ...]]:
    """images (N, 3, 64, 64) uint8, labels (N,) and the WordNet ids as class names, in the order of wnids.txt."""
    home = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    if not (home / "wnids.txt").is_file():
        raise DataError(
            "Tiny-ImageNet is not there, and its publishers ask that it is fetched by hand",
            where=str(home),
            next="unpack tiny-imagenet-200.zip there (it holds wnids.txt, train/ and val/), or name its place with data.root",
        )
    classes = tuple((home / "wnids.txt").read_text(encoding="utf-8").split())
    files, labels = _train_files(home, classes) if train else _validation_files(home, classes)
    return decode(files, home, None, name="train" if train else "val"), torch.tensor(labels, dtype=torch.int64), classes


def _train_files(home: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    pairs = [(path, label) for label, name in enumerate(classes) for path in image_files(home / "train" / name / "images")]
    return [path for path, _ in pairs], [label for _, label in pairs]


def _validation_files(home: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    table = home / "val" / "val_annotations.txt"
    label_of = {name: label for label, name in enumerate(classes)}
    try:
        rows = [line.split("\t")[:2] for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [home / "val" / "images" / name for name, _ in rows], [label_of[wnid] for _, wnid in rows]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"the table of validation labels is missing or damaged: {error}", where=str(table)) from None
