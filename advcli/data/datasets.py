"""Data sets as uint8 images: digits (embedded), CIFAR-10, CIFAR-100, SVHN, Tiny-ImageNet, and any folder of images.

Absent data is a DataError that names the path and the way out.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advcli.data import folder, tiny_imagenet
from advcli.data.images import Images, place, take
from advcli.data.split import stratified_part
from advcli.errors import DataError
from advcli.recipe.schema import Data


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W) uint8, in memory or mapped; labels (N,) int64; index (N,) int64: each image's place in the split as published."""

    images: Images
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, pick: Tensor) -> Split:
        """The images at positions pick (M,)."""
        return Split(take(self.images, pick), self.labels[pick], self.index[pick])

    def to(self, device: torch.device, budget: int | None = None) -> Split:
        """For use on the device: labels and indices are there, images too where they take at most budget bytes (see `place`)."""
        return Split(place(self.images, device, budget), self.labels.to(device), self.index.to(device))


@dataclass(frozen=True)
class DataSet:
    """train, validation (held out of training; may be empty) and class names."""

    train: Split
    validation: Split
    classes: tuple[str, ...]


Raw = tuple[Images, Tensor, tuple[str, ...]]  # images (N, C, H, W) uint8, labels (N,), class names


def load(data: Data, seed: int) -> DataSet:
    """The training split as the recipe wants it: limited, and with its validation part held out. The test split is not touched."""
    images, labels, classes = _read(data, train=True)
    split = Split(images, labels, torch.arange(len(labels)))
    if data.limit is not None and data.limit < len(split):
        split = split.take(stratified_part(split.labels, data.limit, seed, "data/limit")[0])
    check_validation(data, len(split))
    held_out, rest = stratified_part(split.labels, data.validation, seed, "data/validation")
    return DataSet(split.take(rest), split.take(held_out), classes)


def check_validation(data: Data, images: int) -> None:
    """DataError where the validation part takes all of so many training images."""
    if data.validation >= images:
        raise DataError(
            f"validation would take {data.validation} of {images} training images: nothing is left to train on",
            where=f"data.validation of {data.name}",
            next=f"set data.validation to at most {images // 2}",
        )


def load_test(data: Data, split: str = "test") -> tuple[Split, tuple[str, ...]]:
    """A published split, `test` or `train`, whole and in its own order, with the class names."""
    images, labels, classes = _read(data, train=split == "train")
    return Split(images, labels, torch.arange(len(labels))), classes


def default_root() -> Path:
    """$ADVCLI_DATA, else ~/.cache/advcli/data."""
    return Path(os.environ.get("ADVCLI_DATA") or Path.home() / ".cache" / "advcli" / "data")


def _read(data: Data, *, train: bool) -> Raw:
    root = Path(data.root).expanduser() if data.root else default_root()
    images, labels, classes = _READERS[data.name](root, train, data)
    if len(labels) == 0:
        raise DataError("the split holds no images", where=str(root))
    return images, labels, classes


def _digits(root: Path, train: bool, data: Data) -> Raw:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels); 360 of them, stratified and always the same, are the test split."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images / 16 * 255).round().to(torch.uint8)[:, None]
    labels = torch.tensor(raw.target, dtype=torch.int64)
    test, rest = stratified_part(labels, 360, 0, "digits/test")
    pick = rest if train else test
    return images[pick], labels[pick], tuple(map(str, range(10)))


def _torchvision(name: str) -> Callable[[Path, bool, Data], Raw]:
    def read(root: Path, train: bool, data: Data) -> Raw:
        import torchvision

        cls = getattr(torchvision.datasets, name)
        which = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
        raw = _open(lambda download: cls(str(root), download=download, **which), root, name, download=data.download)
        images = torch.as_tensor(raw.data)
        images = images if name == "SVHN" else images.permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(raw.labels if name == "SVHN" else raw.targets, dtype=torch.int64)
        return images, labels, tuple(map(str, range(10))) if name == "SVHN" else tuple(raw.classes)

    return read


def _open(make: Callable[[bool], Any], root: Path, name: str, *, download: bool) -> Any:
    """make(False), and where the files are absent or damaged make(True), which downloads them and checks their sums."""
    try:
        return make(False)
    except RuntimeError:
        help = f"put {name}'s published files under {root}, or name their place with data.root or the environment variable ADVCLI_DATA"
        if not download:
            raise DataError(f"{name} is not there and data.download is false", where=str(root), next=help) from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints, and stdout may be somebody's JSON
            return make(True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(f"{name} is not there and could not be downloaded: {error}", where=str(root), next=help) from None


_READERS: dict[str, Callable[[Path, bool, Data], Raw]] = {
    "digits": _digits,
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "svhn": _torchvision("SVHN"),
    "tiny-imagenet": tiny_imagenet.read,
    "folder": folder.read,
}
