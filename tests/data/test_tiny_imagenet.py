"""Tiny-ImageNet in its published layout, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcli.data import load, load_test
from advcli.errors import DataError
from advcli.recipe.schema import Data

WNIDS = ("n02124075", "n01443537", "n04067472")  # published unsorted; their order gives the labels


def write(path: Path, value: int, grey: bool = False) -> None:
    """An even image, which JPEG keeps to within a level or two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64) if grey else (64, 64, 3), value, np.uint8)).save(path, quality=95)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """wnids.txt, train/WNID/images/WNID_i.JPEG with boxes, val/images with a table; one training image is grey, as some published are."""
    home = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for i in range(2):
            write(home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 40 * label + 10 * i, grey=label == i == 1)
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    rows = []
    for i, label in enumerate((2, 0, 1, 1)):
        write(home / "val" / "images" / f"val_{i}.JPEG", 200 + label)
        rows.append(f"val_{i}.JPEG\t{WNIDS[label]}\t0\t32\t44\t62\n")
    (home / "val" / "val_annotations.txt").write_text("".join(rows))
    write(home / "test" / "images" / "test_0.JPEG", 1)
    (home / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (home / "words.txt").write_text("n02124075\tEgyptian cat\n")
    return home


def data(root: Path) -> Data:
    return Data.model_validate({"name": "tiny-imagenet", "root": str(root), "validation": 0})


@pytest.mark.parametrize("direct", [True, False])
def test_the_published_layout_is_read(direct: bool, home: Path) -> None:
    """data.root may name the unpacked folder or the one around it. Labels follow wnids.txt, not the alphabet."""
    root = home if direct else home.parent
    train = load(data(root), 0)
    assert train.classes == WNIDS
    assert (train.train.images.shape, train.train.images[:].dtype) == ((6, 3, 64, 64), torch.uint8)
    assert train.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    levels = torch.tensor([40.0 * label + 10 * i for label in range(3) for i in range(2)])
    assert float((train.train.images[:].float().mean((1, 2, 3)) - levels).abs().max()) < 2
    test, classes = load_test(data(root))
    assert (classes, test.labels.tolist()) == (WNIDS, [2, 0, 1, 1])
    assert float((test.images[:].float().mean((1, 2, 3)) - (200 + test.labels)).abs().max()) < 2


def test_absent_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there") as caught:
        load(data(tmp_path), 0)
    assert caught.value.where == str(tmp_path / "tiny-imagenet-200")
    assert "tiny-imagenet-200.zip" in caught.value.next


@pytest.mark.parametrize(
    "table", [None, "val_0.JPEG n02124075\n", "val_0.JPEG\tn00000000\t0\t0\t1\t1\n", "val_0.JPEG\n", b"\xff\xfe\n"], ids=repr
)
def test_a_missing_or_damaged_table_is_named(table: str | bytes | None, home: Path) -> None:
    path = home / "val" / "val_annotations.txt"
    path.unlink()
    if table is not None:
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(DataError, match="table of validation labels") as caught:
        load_test(data(home))
    assert caught.value.where == str(path)


def test_a_missing_validation_image_is_named(home: Path) -> None:
    (home / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(DataError) as caught:
        load_test(data(home))
    assert "val_2.JPEG" in str(caught.value)


def test_training_images_that_were_not_unpacked_are_missed(home: Path) -> None:
    for wnid in WNIDS:
        (home / "train" / wnid / "images").rename(home / "train" / wnid / "elsewhere")
    with pytest.raises(DataError, match="no image files"):
        load(data(home), 0)
