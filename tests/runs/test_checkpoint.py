"""Checkpoints: a network comes back bit for bit, the header is its receipt, and a hostile one costs nothing."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import advcli
from advcli.errors import CheckpointError
from advcli.models import Architecture, Network, build
from advcli.runs import checkpoint, container, log
from advcli.training import session

ARCHITECTURES = [
    Architecture("small-cnn", 0.25, 10, 1, 8),
    Architecture("small-cnn", 0.1, 2, 3, 9, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)),
    Architecture("resnet18", 0.05, 5, 3, 16),
    Architecture("preact-resnet18", 0.05, 5, 3, 16, (0.5, 0.5, 0.5), (1.0, 0.5, 0.25)),
    Architecture("wrn-28-10", 0.0125, 4, 1, 4),
    Architecture("wrn-34-10", 0.0125, 4, 3, 4),
    Architecture("vgg16-bn", 0.05, 3, 3, 32),
]


def moved(architecture: Architecture) -> tuple[Network, torch.Tensor]:
    """A network whose batch-norm statistics are not the initial ones, and images for it."""
    network = build(architecture, seed=7)
    images = torch.rand(3, architecture.channels, architecture.size, architecture.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.train()(images)
    return network.eval(), images


def receipts(architecture: Architecture) -> dict[str, Any]:
    """The least that a header says beside its architecture."""
    classes = [str(label) for label in range(architecture.num_classes)]
    return {"classes": classes, "threat": {"norm": "linf", "eps": "8/255"}, "data": {"name": "digits"}}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"{a.arch}-{a.num_classes}")
def test_a_network_comes_back_bit_for_bit(tmp_path: Path, architecture: Architecture) -> None:
    network, images = moved(architecture)
    checkpoint.write_network(tmp_path / "net", network.train(), architecture, receipts(architecture))
    loaded = checkpoint.load_network(tmp_path / "net")
    assert loaded.architecture == architecture
    assert not any(module.training for module in loaded.network.modules())
    with torch.no_grad():
        assert torch.equal(loaded.network(images), network.eval()(images))
    ours, theirs = network.state_dict(), loaded.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_header_holds_the_receipts(tmp_path: Path, tiny: Callable[..., Any], silent: Any) -> None:
    recipe = tiny("threat.eps=8/255", "seed=3", "objective.name=trades", "craft.loss=kl", "model.mean=[0.5]", "model.std=[0.25]")
    outcome = session.run(recipe, silent, out=tmp_path / "run", resume=False, device="cpu")
    header = container.read_header(outcome.checkpoint, "model")
    events = {event["epoch"]: event for event in log.read(tmp_path / "run" / "metrics.jsonl")}
    best = events[outcome.best_epoch]
    assert header["format"] == container.FORMAT
    expected = {"arch": "small-cnn", "width": 0.125, "num_classes": 10, "channels": 1, "size": 8, "mean": [0.5], "std": [0.25]}
    expected |= {"cells": 1, "gates": []}
    assert header["architecture"] == expected
    assert header["classes"] == [str(digit) for digit in range(10)]
    assert header["data"]["name"] == "digits"
    assert header["threat"] == {"norm": "linf", "eps": "8/255"}
    assert header["objective"]["name"] == "trades"
    assert header["selection"] == {"metric": "pgd-3", "split": "validation", "measured": best["validation"]}
    assert (header["seed"], header["epoch"], header["step"]) == (3, outcome.best_epoch, best["step"])
    assert header["precision"] == "fp32"  # resolved from auto
    assert header["versions"]["advcli"] == advcli.__version__
    assert header["versions"]["torch"] == torch.__version__
    state = checkpoint.load_network(outcome.checkpoint).network.state_dict()
    assert header["tensors_sha256"] == container.tensors_digest(checkpoint.save_tensors(state))
    assert header["recipe_sha256"] == container.read_header(tmp_path / "run" / "state.safetensors", "state")["recipe_sha256"]
    assert len(header["recipe_sha256"]) == 64


BASE = Architecture("small-cnn", 0.1, 3, 1, 8, (0.5,), (0.25,))

HOSTILE: dict[str, Any] = {
    "absent": None,
    "a list": [1, 2],
    "text": "small-cnn",
    "unknown network": {"arch": "small-cnn; rm -rf"},
    "network of a number": {"arch": 5},
    "no class": {"num_classes": 0},
    "negative classes": {"num_classes": -3},
    "infinitely many classes": {"num_classes": math.inf},
    "classes of text": {"num_classes": "many"},
    "no channels": {"channels": None},
    "infinite width": {"width": math.inf},
    "width not a number": {"width": math.nan},
    "negative width": {"width": -1.0},
    "too small for it": {"arch": "vgg16-bn", "size": 8},
    "a mean too many": {"mean": [0.5, 0.5]},
    "a deviation too many": {"std": [0.5, 0.5]},
    "no deviation": {"std": None},
    "mean of text": {"mean": ["x"]},
    "mean of a number": {"mean": 0.5},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_describes_no_network_is_refused(tmp_path: Path, name: str) -> None:
    change = HOSTILE[name]
    described = {**BASE.to_json(), **change} if isinstance(change, dict) else change
    header = {} if described is None else {"architecture": described}
    checkpoint.write(tmp_path / "net", build(BASE).state_dict(), header, "model")
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_network(tmp_path / "net")
    assert raised.value.where == str(tmp_path / "net")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 60.0, "num_classes": 1_000_000},  # a linear layer of 30 GB
        {"arch": "wrn-34-10", "width": 16.0, "num_classes": 1000},  # 46 GB of convolutions
        {"arch": "vgg16-bn", "size": 32, "width": 30.0},  # 53 GB
    ],
)
def test_a_giant_network_is_refused_without_its_memory(tmp_path: Path, change: dict[str, Any]) -> None:
    checkpoint.write(tmp_path / "net", build(BASE).state_dict(), {"architecture": {**BASE.to_json(), **change}}, "model")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="do not fit the network"):
        checkpoint.load_network(tmp_path / "net")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def test_weights_that_do_not_fit_are_listed_both_ways(tmp_path: Path) -> None:
    state = build(BASE).state_dict()
    state["stranger"] = torch.zeros(1)
    state["linear.bias"] = torch.zeros(7)
    del state["linear.weight"]
    checkpoint.write(tmp_path / "net", state, {"architecture": BASE.to_json()}, "model")
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_network(tmp_path / "net")
    rows = raised.value.what.splitlines()
    assert rows[1:] == ["missing: linear.weight", "unknown: stranger", "shapes: linear.bias is (7,), not (3,)"]


def test_a_long_list_of_misfits_is_cut() -> None:
    with pytest.raises(CheckpointError) as raised:
        checkpoint.check_fit({f"w{i:02d}": (1,) for i in range(30)}, {}, "here")
    assert "w07 ..." in raised.value.what
    assert "w08" not in raised.value.what
    checkpoint.check_fit({"w": (1,)}, {"w": (1,)}, "here")


def test_a_header_of_our_own_is_valid_json_again(tmp_path: Path) -> None:
    checkpoint.write_network(tmp_path / "net", build(BASE), BASE, {"threat": {"eps": "8/255"}})
    header = container.read_header(tmp_path / "net", "model")
    assert Architecture.from_json(json.loads(json.dumps(header["architecture"]))) == BASE


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    network, _ = moved(BASE)
    checkpoint.write_network(tmp_path / "net", network, BASE, receipts(BASE))
    fresh = build(BASE, seed=1)
    assert not torch.equal(fresh.linear.weight, network.linear.weight)
    checkpoint.initialise_from(fresh, tmp_path / "net", BASE, receipts(BASE)["classes"])
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), network.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "row"), [({"num_classes": 4}, "linear.weight is (3, 13), not (4, 13)"), ({"arch": "resnet18"}, "missing: bn1")]
)
def test_other_networks_do_not_start_from_them(tmp_path: Path, change: dict[str, Any], row: str) -> None:
    checkpoint.write_network(tmp_path / "net", build(BASE), BASE, receipts(BASE))
    wanted = Architecture(**{**BASE.to_json(), **change})
    other = build(wanted)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        checkpoint.initialise_from(other, tmp_path / "net", wanted, receipts(wanted)["classes"])
    assert row in raised.value.what
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("normalisation", "classes", "row"),
    [
        ({}, ["0", "2", "1"], "other classes: 0, 1, 2 instead of 0, 2, 1"),
        ({"mean": None, "std": None}, ["0", "1", "2"], "another normalisation (mean, std): ((0.5,), (0.25,)) instead of (None, None)"),
    ],
)
def test_weights_that_fit_by_shape_alone_are_refused(tmp_path: Path, normalisation: dict[str, Any], classes: list[str], row: str) -> None:
    checkpoint.write_network(tmp_path / "net", build(BASE), BASE, receipts(BASE))
    wanted = Architecture(**{**BASE.to_json(), **normalisation})
    other = build(wanted, seed=1)
    before = other.linear.weight.clone()
    with pytest.raises(CheckpointError) as raised:
        checkpoint.initialise_from(other, tmp_path / "net", wanted, classes)
    assert row in raised.value.what
    assert torch.equal(other.linear.weight, before)


@pytest.mark.parametrize("key", ["classes", "threat", "data"])
@pytest.mark.parametrize("value", [None, 5, [1], [[1]] * 10, "digits", ["a"], ["a"] * 99])
def test_a_sealed_header_of_the_wrong_shape_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """Such a file carries right digests, so only what its header says can give it away."""
    checkpoint.write_network(tmp_path / "net", build(BASE), BASE, {**receipts(BASE), key: value})
    with pytest.raises(CheckpointError, match="the header"):
        checkpoint.load_network(tmp_path / "net")
