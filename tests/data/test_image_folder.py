"""Folders of images: what is decoded and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trees import caches, channels_first, colour_tree, pixels, read, write

from advcli.data import load
from advcli.errors import DataError
from advcli.recipe.schema import Data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return colour_tree(tmp_path / "set")


def test_classes_files_and_pixels_in_sorted_order(tree: Path) -> None:
    images, labels, classes = read(tree)
    assert classes == ("ant", "cat")
    assert labels == [0, 1, 1]
    assert torch.equal(images, torch.stack([channels_first(pixels(i)) for i in (2, 1, 0)]))
    images, labels, classes = read(tree, "test")
    assert (labels, classes) == ([1], ("ant", "cat"))
    assert torch.equal(images[0], channels_first(pixels(3)))


def test_a_folder_can_be_trained_on(tree: Path) -> None:
    """Through the same door as every other data set: limited, and with a validation part."""
    parts = load(Data.model_validate({"name": "folder", "root": str(tree), "limit": 2, "validation": 1}), 0)
    assert (len(parts.train), len(parts.validation), parts.classes) == (1, 1, ("ant", "cat"))


def test_what_is_no_image_is_passed_over(tree: Path) -> None:
    before = read(tree)
    for name in ("train/cat/notes.txt", "train/cat/.hidden.png", "train/readme.md", "train/.git/x.png", "train/cat/deeper/x.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"no image")
    after = read(tree)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    path = write(tmp_path / "train" / "a" / "x.jpg", pixels(0, (16, 16, 3)), quality=90)
    assert torch.equal(read(tmp_path)[0][0], channels_first(np.asarray(Image.open(path))))


def test_all_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey, binary = pixels(0, (4, 4)), pixels(1, (4, 4)) > 127
    write(tmp_path / "train" / "a" / "1.png", grey)
    Image.fromarray(binary).save(tmp_path / "train" / "a" / "2.png")
    assert torch.equal(read(tmp_path)[0], torch.stack([channels_first(grey), channels_first(binary.astype(np.uint8) * 255)]))


def test_one_grey_image_among_colour_becomes_colour(tmp_path: Path) -> None:
    grey, colour = pixels(0, (4, 4)), pixels(1, (4, 4, 3))
    write(tmp_path / "train" / "a" / "1.png", grey)
    write(tmp_path / "train" / "a" / "2.png", colour)
    images = read(tmp_path)[0]
    assert torch.equal(images[0], channels_first(grey).expand(3, 4, 4))
    assert torch.equal(images[1], channels_first(colour))


def test_transparency_and_palettes_become_colour(tmp_path: Path) -> None:
    rgba = np.dstack([pixels(0, (4, 4, 3)), np.full((4, 4), 255, np.uint8)])
    write(tmp_path / "train" / "a" / "1.png", rgba)
    Image.fromarray(rgba[..., :3]).quantize(16).save(tmp_path / "train" / "a" / "2.png")
    images = read(tmp_path)[0]
    assert torch.equal(images[0], channels_first(rgba[..., :3]))
    assert torch.equal(images[1], channels_first(np.asarray(Image.open(tmp_path / "train" / "a" / "2.png").convert("RGB"))))


def test_images_of_different_sizes_are_refused_with_the_way_out(tree: Path) -> None:
    write(tree / "train" / "cat" / "z.png", pixels(9, (7, 5, 3)))
    with pytest.raises(DataError, match=r"c\.PNG is \(5, 6\), z\.png is \(5, 7\)") as caught:
        read(tree)
    assert caught.value.where == str(tree / "train" / "cat")
    assert "data.size=" in caught.value.next


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    """A wide image at half its height: Pillow's bilinear resize of the whole, then the middle columns. A fitting image stays."""
    wide, fitting = pixels(0, (16, 24, 3)), pixels(1, (8, 8, 3))
    write(tmp_path / "train" / "a" / "1.png", wide)
    write(tmp_path / "train" / "a" / "2.png", fitting)
    images = read(tmp_path, size=8)[0]
    halved = np.asarray(Image.fromarray(wide).resize((12, 8), Image.Resampling.BILINEAR)).astype(int)
    assert images.shape == (2, 3, 8, 8)
    assert int(np.abs(images[0].numpy().transpose(1, 2, 0).astype(int) - halved[:, 2:10]).max()) <= 1
    assert torch.equal(images[1], channels_first(fitting))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_a_corrupt_image_is_named(damage: str, tree: Path) -> None:
    victim = tree / "train" / "cat" / "b.png"
    whole = write(victim, pixels(0, (64, 64, 3))).read_bytes()
    for name in ("train/cat/a.png", "train/ant/c.PNG"):
        write(tree / name, pixels(1, (64, 64, 3)))
    victim.write_bytes({"text": b"not an image", "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(DataError, match="cannot read an image") as caught:
        read(tree)
    assert caught.value.where == str(victim)
    assert caches(tree) == [], "nothing half decoded is kept"


def test_a_link_to_nothing_is_named(tree: Path) -> None:
    (tree / "train" / "cat" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError) as caught:
        read(tree)
    assert "gone.png" in str(caught.value)


def test_a_class_without_images_keeps_its_label(tree: Path) -> None:
    (tree / "train" / "bee").mkdir()
    assert read(tree)[1:] == ([0, 2, 2], ("ant", "bee", "cat"))
    assert read(tree, "test")[1:] == ([2], ("ant", "bee", "cat"))


def test_a_test_class_that_training_lacks_is_refused(tree: Path) -> None:
    write(tree / "test" / "dog" / "x.png", pixels(0))
    with pytest.raises(DataError, match="classes of test/ that train/ lacks: dog") as caught:
        read(tree, "test")
    assert caught.value.where == str(tree / "test")
    assert read(tree)[2] == ("ant", "cat"), "training is not concerned"


@pytest.mark.parametrize(
    ("make", "where", "message"),
    [([], "train", "no class folders"), (["train"], "train", "no class folders"), (["train/cat"], "", "no image files")],
)
def test_a_folder_that_holds_nothing_is_refused(make: list[str], where: str, message: str, tmp_path: Path) -> None:
    for name in make:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert caught.value.where == str(tmp_path / where)
    assert caught.value.next


def test_an_absent_test_split_is_refused(tree: Path) -> None:
    (tree / "test" / "cat" / "d.png").unlink()
    with pytest.raises(DataError, match="no image files"):
        read(tree, "test")
