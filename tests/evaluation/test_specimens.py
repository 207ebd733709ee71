"""Images for figures: the evaluation's own where it has them, PGD-20 elsewhere, the same images for every run."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from advcli.errors import CheckpointError, DataError, UsageError
from advcli.evaluation import session
from advcli.evaluation.specimens import Request, collect
from advcli.models import Architecture, build
from advcli.runs.checkpoint import load_network, write_network
from advcli.runs.ledger import Ledger

N = 40


@pytest.fixture(scope="module")
def attacked(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a quick evaluation of 40 images; read only."""
    folder = tmp_path_factory.mktemp("attacked") / "run"
    folder.mkdir()
    shutil.copy(trained_run / "model.safetensors", folder)
    evaluate(folder)
    return folder


class Silent:
    def __getattr__(self, name: str) -> object:
        return lambda *args, **kwargs: None


def evaluate(folder: Path, **options: object) -> Path:
    given = session.Options(folder / "model.safetensors", "quick", n=N, device="cpu", **options)  # type: ignore[arg-type]
    return session.run(given, Silent())[0]  # type: ignore[arg-type]


def test_stored_images_are_the_ledgers_and_the_rest_is_crafted(attacked: Path) -> None:
    (found,) = collect([attacked], Request(N))
    arrays, _ = Ledger(next((attacked / "evals").iterdir()) / "ledger").read()
    np.testing.assert_array_equal(found.index, arrays["index"])  # the same part of the split as `attack --n 40` takes
    stored = dict(zip(arrays["adversarial_index"].tolist(), arrays["adversarial"], strict=True))
    assert 0 < len(stored) < N
    (crafted,) = collect([attacked], Request(N, attack="pgd-20"))
    assert set(crafted.attacks) == {"pgd-20"}
    for row, index in enumerate(found.index.tolist()):
        if index in stored:
            np.testing.assert_array_equal(found.adversarial[row], stored[index])
            assert found.attacks[row].split(" of ")[1].startswith("quick-")
        else:
            np.testing.assert_allclose(found.adversarial[row], crafted.adversarial[row], atol=1e-6)
            assert found.attacks[row] == "pgd-20"
    assert found.about.startswith(f"linf eps 0.15, adversarial images: {len(stored)} of quick-")
    assert found.about.endswith(f", {N - len(stored)} pgd-20")
    fooled = found.see(found.adversarial).logits.argmax(1) != found.labels
    assert fooled.sum() >= len(stored)


def test_crafted_images_are_pgds_last_point_in_the_ball(attacked: Path) -> None:
    (found,) = collect([attacked], Request(N, attack="pgd-20"))
    delta = found.adversarial - found.images
    assert np.abs(delta).max() <= 0.15 + 1e-6
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    right = [(found.see(x).logits.argmax(1) == found.labels).mean() for x in (found.images, found.adversarial)]
    assert right[1] < right[0] - 0.1
    (again,) = collect([attacked], Request(N, attack="pgd-20"))
    np.testing.assert_array_equal(again.adversarial, found.adversarial)
    (other,) = collect([attacked], Request(N, seed=1, attack="pgd-20"))
    assert not np.array_equal(other.index, found.index)


def test_the_newest_fitting_evaluation_counts(attacked: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(attacked, folder)
    first = next((attacked / "evals").iterdir())
    newest = [evaluate(folder, eps="0.05"), evaluate(folder, seed=1), first]  # the newest is at another eps, so it is passed over
    for age, path in enumerate(newest):
        os.utime(folder / "evals" / path.name / "ledger/ledger.safetensors", (1e9 - age, 1e9 - age))
    for attack in ("stored", "quick"):
        (found,) = collect([folder], Request(N, seed=1, attack=attack))
        assert {name.split(" of ")[-1] for name in found.attacks} == {"pgd-20", newest[1].name}
    with pytest.raises(CheckpointError, match="no finished aa evaluation"):
        collect([folder], Request(N, attack="aa"))


def test_one_class_alone(attacked: Path) -> None:
    (found,) = collect([attacked], Request(10, only="3"))
    assert set(found.labels.tolist()) == {3}
    assert len(found.index) == 10
    with pytest.raises(UsageError, match="no class 'x'"):
        collect([attacked], Request(10, only="x"))


def test_noise_is_uniform_in_the_ball_and_keyed_by_image(attacked: Path) -> None:
    (few,), (many,) = (collect([attacked], Request(n, attack="pgd-20")) for n in (10, 20))
    noise = many.noisy(0) - many.images
    assert 0.1 < np.abs(noise).max() <= 0.15 + 1e-6
    rows = np.searchsorted(many.index, few.index)
    np.testing.assert_array_equal(few.noisy(0), many.noisy(0)[rows])


def test_the_other_image_has_another_label_and_is_drawn_evenly(attacked: Path) -> None:
    (found,) = collect([attacked], Request(5, attack="pgd-20"))
    labels = np.repeat(np.arange(4), 500)
    many = dataclasses.replace(found, labels=labels, index=np.arange(2000))
    assert (labels[many.others(0)] != labels).all()
    counts = np.bincount(labels[many.others(0)], minlength=4)
    assert np.abs(counts - 500).max() < 100  # binomial, deviation 19
    assert (many.others(1) != many.others(0)).any()
    assert dataclasses.replace(found, labels=labels[:3], index=np.arange(3)).others(0).tolist() == [-1, -1, -1]


def foreign(folder: Path, like: Path, spoil: float = 1.0, **changes: object) -> Path:
    """A network of other weights or images, with the header of another."""
    loaded = load_network(like / "model.safetensors")
    a = Architecture(**{**vars(loaded.architecture), **changes})
    network = build(a)
    with torch.no_grad():
        network.linear.weight.mul_(spoil)
    folder.mkdir()
    header = {key: loaded.header[key] for key in ("classes", "threat", "data")}
    write_network(folder / "model.safetensors", network, a, header)
    return folder


def test_other_weights_do_not_get_the_stored_images(attacked: Path, tmp_path: Path) -> None:
    folder = foreign(tmp_path / "run", attacked)
    shutil.copytree(attacked / "evals", folder / "evals")
    (found,) = collect([folder], Request(5))
    assert set(found.attacks) == {"pgd-20"}


def test_features_that_are_no_numbers_are_refused(attacked: Path, tmp_path: Path) -> None:
    (found,) = collect([foreign(tmp_path / "run", attacked, spoil=float("nan"))], Request(5))
    with pytest.raises(CheckpointError, match="not finite"):
        found.see(found.images)


def test_runs_on_other_images_are_refused(attacked: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes"):
        collect([foreign(tmp_path / "run", attacked, size=16)], Request(5))
