"""The data sets: digits as they are, the others from files in their published formats, and what is said when they are absent."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from sklearn.datasets import load_digits

from advcli.data import DataSet, Split, load, load_test
from advcli.errors import DataError
from advcli.recipe.schema import Data

PER_FILE = 10
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No test reaches the network: torchvision's downloads fail like an unplugged cable, and are counted."""
    asked: list[str] = []

    def unplugged(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", unplugged)
    monkeypatch.setattr(torchvision.datasets.svhn, "download_url", unplugged)
    return asked


class PublishedPickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Protocol 2 with text as Python 2's byte strings, as the CIFAR files were written in 2009."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, text: str) -> None:
        raw = text.encode("latin-1")
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(text)

    dispatch[str] = save_byte_string


def write_pickle(path: Path, value: object) -> str:
    """The file's MD5."""
    buffer = io.BytesIO()
    PublishedPickler(buffer, protocol=2).dump(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return hashlib.md5(buffer.getvalue()).hexdigest()


def random_images(n: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


Written = dict[str, tuple[Pixels, list[int]]]  # of the splits train and test: images (N, 3, 32, 32), labels


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """cifar-10-batches-py: rows of 3,072 bytes, the red plane first; five training files."""
    cls, home, parts, sums = torchvision.datasets.CIFAR10, root / "cifar-10-batches-py", {}, {}
    for b, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = random_images(PER_FILE, b), [(3 * i + b) % 10 for i in range(PER_FILE)]
        names = [f"image_{i}.png" for i in range(PER_FILE)]
        value = {"batch_label": name, "labels": labels, "data": images.reshape(PER_FILE, 3072), "filenames": names}
        parts[name], sums[name] = (images, labels), write_pickle(home / name, value)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = write_pickle(home / "batches.meta", {"num_cases_per_batch": PER_FILE, "label_names": classes, "num_vis": 3072})
    monkeypatch.setattr(cls, "train_list", [[name, md5] for name, md5 in sums.items() if name != "test_batch"])
    monkeypatch.setattr(cls, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta})
    train = [parts[f"data_batch_{i}"] for i in range(1, 6)]
    return {"train": (np.concatenate([x for x, _ in train]), [y for _, ys in train for y in ys]), "test": parts["test_batch"]}


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    cls, home, written, sums = torchvision.datasets.CIFAR100, root / "cifar-100-python", {}, {}
    for b, name in enumerate(("train", "test")):
        images, labels = random_images(200, 10 + b), [(7 * i + b) % 100 for i in range(200)]
        value = {"filenames": ["x.png"] * 200, "batch_label": name, "fine_labels": labels, "coarse_labels": [y // 5 for y in labels]}
        written[name], sums[name] = (images, labels), write_pickle(home / name, {**value, "data": images.reshape(200, 3072)})
    fine, coarse = [f"fine {i}" for i in range(100)], [f"coarse {i}" for i in range(20)]
    meta = write_pickle(home / "meta", {"fine_label_names": fine, "coarse_label_names": coarse})
    monkeypatch.setattr(cls, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cls, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta})
    return written


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """MATLAB files with X (32, 32, 3, N) and y (N, 1), where the digit 0 has label 10."""
    root.mkdir(parents=True, exist_ok=True)
    lists, written = dict(torchvision.datasets.SVHN.split_list), {}
    for b, name in enumerate(("train", "test")):
        images, labels = random_images(60, 20 + b), [(3 * i + b) % 10 for i in range(60)]
        path = root / f"{name}_32x32.mat"
        mat = {"X": images.transpose(2, 3, 1, 0), "y": np.array([[y or 10] for y in labels], np.uint8)}
        scipy.io.savemat(path, mat, do_compression=True)
        lists[name] = [lists[name][0], path.name, hashlib.md5(path.read_bytes()).hexdigest()]
        written[name] = images, labels
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    return written


WRITERS: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], Written], str]] = {
    "cifar10": (write_cifar10, "cifar-10-batches-py/data_batch_3"),
    "cifar100": (write_cifar100, "cifar-100-python/train"),
    "svhn": (write_svhn, "train_32x32.mat"),
}


def data(name: str, root: Path | None = None, **rest: Any) -> Data:
    return Data.model_validate({"name": name, "root": None if root is None else str(root), "validation": 0, **rest})


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_published_files_are_read(name: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]) -> None:
    images, labels = WRITERS[name][0](tmp_path, monkeypatch)[split]
    found, classes = load_test(data(name, tmp_path), split)
    assert (found.images.dtype, found.labels.dtype, found.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert torch.equal(found.images, torch.from_numpy(images))
    assert found.labels.tolist() == labels
    assert found.index.tolist() == list(range(len(labels)))
    assert classes[:2] == {"cifar10": ("airplane", "automobile"), "cifar100": ("fine 0", "fine 1"), "svhn": ("0", "1")}[name]
    assert len(classes) == {"cifar100": 100}.get(name, 10)
    assert downloads == []


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("download", [True, False])
def test_a_damaged_file_is_refused(
    name: str, download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    """One byte is enough: nothing is unpickled, and the files are asked for anew only where that is allowed."""
    write, victim = WRITERS[name]
    write(tmp_path, monkeypatch)
    content = bytearray((tmp_path / victim).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / victim).write_bytes(content)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a damaged file was unpickled"))
    with pytest.raises(DataError) as caught:
        load(data(name, tmp_path, download=download), 0)
    assert caught.value.where == str(tmp_path)
    assert len(downloads) == download


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("download", [True, False])
def test_absent_data_is_an_error_with_the_path_and_the_way_out(
    name: str, download: bool, tmp_path: Path, downloads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "deep" / "down"
    with pytest.raises(DataError) as caught:
        load(data(name, root, download=download), 0)
    assert caught.value.exit_code == 3
    assert caught.value.where == str(root)
    assert ("no route to host" if download else "data.download is false") in caught.value.what
    assert all(word in caught.value.next for word in ("data.root", "ADVCLI_DATA", str(root)))
    assert len(downloads) == download
    assert root.exists() == download, "without a download nothing is written"
    assert capsys.readouterr().out == "", "stdout may be somebody's JSON"


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("File not found or corrupted."),
        TimeoutError("timed out"),
        OSError(28, "No space left"),
        http.client.BadStatusLine("<html>"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_any_failed_download_is_a_data_error(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        print("torchvision talks")
        raise failure

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match="could not be downloaded"):
        load(data("cifar10", tmp_path), 0)


def test_what_a_download_prints_goes_to_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        print("torchvision talks")
        write_cifar10(tmp_path, monkeypatch)

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetch)
    assert len(load(data("cifar10", tmp_path), 0).train) == 5 * PER_FILE
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "torchvision talks\n")


@pytest.mark.parametrize("explicit", [True, False])
def test_the_root_is_the_recipes_else_the_environments_else_the_cache(
    explicit: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADVCLI_DATA", str(tmp_path / "environment"))
    for root, expected in (
        ("~/mine" if explicit else None, tmp_path / ("home/mine" if explicit else "environment")),
        ("", tmp_path / "environment"),
    ):
        with pytest.raises(DataError) as caught:
            load(Data.model_validate({"name": "cifar10", "root": root, "download": False}), 0)
        assert caught.value.where == str(expected)
    monkeypatch.setenv("ADVCLI_DATA", "")
    with pytest.raises(DataError) as caught:
        load(data("cifar10", download=False), 0)
    assert caught.value.where == str(tmp_path / "home" / ".cache" / "advcli" / "data")


def names(split: Split) -> set[int]:
    return set(split.index.tolist())


def test_digits_are_scikit_learns() -> None:
    """1,797 images of 17 grey levels, 360 of them for testing; together they are the data set, and the two do not meet."""
    raw = load_digits()
    (train, classes), (test, _) = load_test(data("digits"), "train"), load_test(data("digits"))
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert classes == tuple("0123456789")
    both = torch.cat([train.images, test.images])[:, 0], torch.cat([train.labels, test.labels])
    found = sorted((int(y), x.flatten().tolist()) for x, y in zip(*both, strict=True))
    levels = np.rint(raw.images / 16 * 255).astype(int)
    assert found == sorted((int(y), x.flatten().tolist()) for x, y in zip(levels, raw.target, strict=True))
    shares = torch.bincount(test.labels).double() - 360 * torch.tensor(np.bincount(raw.target)).double() / 1797
    assert float(shares.abs().max()) <= 1, "stratified"


def test_digits_split_alike_whatever_the_seed_and_the_root(tmp_path: Path) -> None:
    a, b = load(data("digits"), 0), load(data("digits", tmp_path), 5)
    assert torch.equal(a.train.images, b.train.images)
    assert (len(a.train), len(a.validation)) == (1437, 0)


def shares_off(part: Split, whole: Split) -> float:
    """The largest difference of a class's count in part from its proportional share."""
    size = len(part) / len(whole)
    return float((torch.bincount(part.labels, minlength=10) - size * torch.bincount(whole.labels, minlength=10).double()).abs().max())


@pytest.mark.parametrize(("limit", "validation"), [(None, 0), (None, 150), (300, 0), (300, 100), (1437, 7), (5000, 7)])
def test_limit_and_validation_share_out_the_training_images(limit: int | None, validation: int) -> None:
    whole = load(data("digits"), 0).train
    parts = load(data("digits", limit=limit, validation=validation), 3)
    used = min(limit or 1437, 1437)
    assert (len(parts.train), len(parts.validation)) == (used - validation, validation)
    assert not names(parts.train) & names(parts.validation)
    for part in (parts.train, parts.validation):
        assert torch.equal(part.images, whole.images[part.index])
        assert torch.equal(part.labels, whole.labels[part.index])
        assert shares_off(part, whole) <= 2, "within one image of each of the two cuts"


def test_parts_are_fixed_by_the_seed() -> None:
    def cut(seed: int, **rest: Any) -> DataSet:
        return load(data("digits", **rest), seed)

    a, b, c = (cut(seed, limit=300, validation=50) for seed in (1, 1, 2))
    assert torch.equal(a.validation.index, b.validation.index)
    assert names(a.validation) != names(c.validation)
    assert names(a.train) != names(c.train)
    grown = cut(1, limit=301, validation=50)
    assert names(a.train) | names(a.validation) < names(grown.train) | names(grown.validation)


@pytest.mark.parametrize("validation", [1437, 10_000])
def test_a_validation_part_that_leaves_nothing_is_refused(validation: int) -> None:
    with pytest.raises(DataError, match=f"validation would take {validation} of 1437") as caught:
        load(data("digits", validation=validation), 0)
    assert "at most 718" in caught.value.next


def test_a_split_takes_and_moves_all_its_columns() -> None:
    split = load(data("digits", limit=50), 0).train
    pick = torch.tensor([3, 1, 1])
    taken = split.take(pick).to(torch.device("cpu"))
    assert torch.equal(taken.index, split.index[pick])
    assert torch.equal(taken.labels, split.labels[pick])
    assert torch.equal(taken.images, split.images[pick])
