"""A test set on disk: attacked, verified, looked at and drawn in parts, with the bytes that it has in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advcli.attacks import Threat
from advcli.data import Split, load_test
from advcli.data.images import HostImages, mapped
from advcli.evaluation import first_look, verify
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, images_digest, pick
from advcli.evaluation.session import Options, run
from advcli.evaluation.specimens import Request, collect
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network
from advcli.training.monitor import measure

CPU = torch.device("cpu")
RECEIPTS = ("report.json", "ledger/ledger.safetensors", "identity.json")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were taken from the host at once, each time."""
    sizes: list[int] = []
    read = HostImages.__getitem__

    def counted(self: HostImages, where: Any) -> torch.Tensor:
        found = read(self, where)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(HostImages, "__getitem__", counted)
    return sizes


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[[Split], Split]:
    def save(split: Split) -> Split:
        np.save(tmp_path / "images.npy", split.images[:].numpy())
        return Split(mapped(np.lib.format.open_memmap(tmp_path / "images.npy", mode="r")), split.labels, split.index)

    return save


def digits(n: int) -> Split:
    return pick(load_test(Data(name="digits"))[0], n, seed=0)


@pytest.mark.parametrize("piece", [1, 64 * 7, 10**9])
def test_the_digest_is_that_of_the_whole(
    piece: int, on_disk: Callable[[Split], Split], monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    split = digits(50)
    expected = hashlib.sha256(b"".join(t.numpy().tobytes() for t in (split.images, split.labels, split.index))).hexdigest()
    monkeypatch.setattr("advcli.data.images._PIECE", piece)
    assert images_digest(split) == expected
    assert images_digest(on_disk(split)) == expected
    assert max(asked) == min(50, max(1, piece // 64))


def test_an_evaluation_has_the_same_bytes_and_takes_the_images_in_parts(
    checkpoint: Path, tmp_path: Path, silent: Any, on_disk: Callable[[Split], Split], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, eps = 150, "0.1"
    monkeypatch.setattr("advcli.data.images._PIECE", 64 * 64)
    work = Job(load_network(checkpoint), digits(n), Threat("linf", float(eps)), eps, "quick", "native", 0, 16)
    for name, images in (("memory", work.images), ("disk", on_disk(work.images))):
        evaluate(dataclasses.replace(work, images=images), tmp_path / name, silent, device=CPU, resume=False)
    for name in RECEIPTS:
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
    assert 0 < max(asked) < n


def test_the_measurement_of_an_epoch_is_the_same(checkpoint: Path, on_disk: Callable[[Split], Split], asked: list[int]) -> None:
    network, split = load_network(checkpoint).network, digits(300)
    results = [measure(network, s, Threat("linf", 0.1), steps=2, seed=0, stop=lambda: False) for s in (split, on_disk(split))]
    assert results[0] == results[1]
    assert sum(asked) == 300
    assert max(asked) < 300


def test_the_first_look_is_the_same(checkpoint: Path, on_disk: Callable[[Split], Split], asked: list[int]) -> None:
    loaded = load_network(checkpoint)
    loaded = dataclasses.replace(loaded, header={**loaded.header, "foreign": {"normalized_by": "the options"}})
    assert first_look.look(loaded, on_disk(digits(300)), CPU) == first_look.look(loaded, digits(300), CPU)
    assert max(asked) <= 64


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The digits as a folder of PNG files, whose class names are those of the checkpoint."""
    for part, n in (("train", 20), ("test", 60)):
        split = load_test(Data(name="digits"), part)[0].take(torch.arange(n))
        for row, label in enumerate(split.labels.tolist()):
            place = tmp_path / "tree" / part / str(label) / f"{row:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[row, 0].numpy()).save(place)
    return tmp_path / "tree"


def test_a_folder_is_attacked_verified_explained_exported_and_drawn(
    checkpoint: Path, tree: Path, silent: Any, asked: list[int], tmp_path: Path
) -> None:
    options = Options(checkpoint, "quick", batch_size=16, device="cpu", data="folder", data_root=str(tree))
    folder, report = run(options, silent)
    assert report["n"] == 60
    assert 0 < report["robust"] < report["clean"]
    assert asked, "it was mapped"
    evidence = verify.gather(folder, checkpoint=None, data_root=None)
    assert isinstance(evidence.images.images, HostImages)
    held = verify.check(evidence, device=CPU, quantize=False)
    assert held["failures"] == []
    assert verify.explain(evidence, 7)["label"] == evidence.header["classes"][int(evidence.images.labels[7])]
    verify.export_robustbench(evidence, tmp_path / "export")
    assert torch.load(tmp_path / "export" / "adversarial.pt").shape == (60, 1, 8, 8)
    (found,) = collect([checkpoint], Request(20, data="folder", data_root=str(tree)))
    assert found.images.shape == (20, 1, 8, 8)
    assert any("quick" in name for name in found.attacks)
