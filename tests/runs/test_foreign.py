"""Weights of others: every public layout gives the logits of its own network, and what does not fit is said both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from public_layouts import VGG, Normalize, PreActResNet, ResNet, WideResNet, worn
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from advcli.errors import AdvcliError, CheckpointError, UsageError
from advcli.models import Architecture, build
from advcli.runs import checkpoint, foreign
from advcli.runs.given import Given

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
DATA = {"name": "cifar10"}


def load(path: Path, given: Given | None = None, *, classes: int = 10, image: tuple[int, int, int] = (3, 32, 32)) -> checkpoint.Loaded:
    return foreign.load(path, given or Given(), [f"class {k}" for k in range(classes)], image, DATA, {"norm": "linf", "eps": "8/255"})


def saved(content: Any, tmp_path: Path, name: str = "theirs.pt") -> Path:
    path = tmp_path / name
    torch.save(content, path)
    return path


@torch.no_grad()
def same(theirs: nn.Module, ours: checkpoint.Loaded, tolerance: float = 1e-9) -> None:
    """Logits of both in float64: equal but for the order of sums, and not trivially so."""
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    expected, found = theirs.double()(x), ours.network.double()(x)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


LAYOUTS: dict[str, tuple[Any, str, float]] = {
    "kuangliu resnet18": (lambda: ResNet(16, 10), "resnet18", 0.25),
    "torchvision names": (lambda: ResNet(8, 10, projection="downsample", head="fc"), "resnet18", 0.125),
    "another head": (lambda: ResNet(8, 10, head="classifier"), "resnet18", 0.125),
    "an unheard-of head": (lambda: ResNet(8, 10, head="decide"), "resnet18", 0.125),
    "preact": (lambda: PreActResNet(16, 10, raw=False, norm=True), "preact-resnet18", 0.25),
    "kuangliu preact": (lambda: PreActResNet(8, 10, raw=False, norm=False), "preact-resnet18-no-norm", 0.125),
    "2 x 2 cells": (lambda: PreActResNet(8, 10, raw=False, norm=True, cells=2), "preact-resnet18", 0.125),
    "trades wrn": (lambda: WideResNet(2, 2, 10), "wrn-16-2", 1.0),
    "deeper": (lambda: WideResNet(4, 1, 10), "wrn-28-1", 1.0),
    "dead stage, no bias": (lambda: WideResNet(1, 2, 10, dead=True, bias=False), "wrn-10-2", 1.0),
    "vgg": (lambda: VGG(8, 10), "vgg16-bn", 0.125),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_gives_the_logits_of_its_own_network(name: str, tmp_path: Path) -> None:
    make, arch, width = LAYOUTS[name]
    theirs = worn(make())
    ours = load(saved(theirs.state_dict(), tmp_path))
    assert (ours.architecture.arch, ours.architecture.width, ours.architecture.mean) == (arch, width, None)
    same(theirs, ours, 1e-6 if name == "vgg" else 1e-9)  # a bias folded into a norm's mean is rounded to float32


@pytest.mark.parametrize("norm", [True, False])
def test_shortcuts_that_read_the_raw_input_are_named_by_hand(norm: bool, tmp_path: Path) -> None:
    """Their tensors are those of the other kind, so only the name tells; read as the other kind the logits differ."""
    theirs = worn(PreActResNet(8, 10, raw=True, norm=norm))
    path = saved(theirs.state_dict(), tmp_path)
    same(theirs, load(path, Given(arch=f"preact-resnet18-raw{'' if norm else '-no-norm'}")))
    with pytest.raises(AssertionError):
        same(theirs, load(path))


WRAPS: dict[str, Any] = {
    "bare": lambda s: s,
    "DataParallel": lambda s: {f"module.{k}": t for k, t in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": t for k, t in s.items()},
    "both, and model": lambda s: {f"module._orig_mod.model.{k}": t for k, t in s.items()},
    "second of a Sequential": lambda s: {f"1.{k}": t for k, t in s.items()},
    "first of a Sequential": lambda s: {f"0.{k}": t for k, t in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
    "model": lambda s: {"model": s, "acc": 0.9},
    "net": lambda s: {"net": s},
    "ema": lambda s: {"ema": {"module": s}},
    "robustness": lambda s: {"model": {f"module.{p}model.{k}": t for p in ("", "attacker.") for k, t in s.items()}},
    "no counters": lambda s: {k: t for k, t in s.items() if "num_batches" not in k},
    "half": lambda s: {k: t.half().float() for k, t in s.items()},
    "among numbers": lambda s: {**s, "epoch": 3},
}


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("make", [lambda: ResNet(8, 10), lambda: WideResNet(1, 1, 10)], ids=["resnet", "wrn"])
def test_wrappers_and_nests_are_taken_off(name: str, make: Any, tmp_path: Path) -> None:
    theirs = worn(make())
    if name == "half":
        theirs.load_state_dict(WRAPS[name](theirs.state_dict()))
    same(theirs, load(saved(WRAPS[name](theirs.state_dict()), tmp_path)))


def test_of_several_state_dicts_the_choice_is_said(tmp_path: Path) -> None:
    first, second = worn(ResNet(8, 10), 0), worn(ResNet(8, 10), 1)
    ours = load(saved({"ema": second.state_dict(), "state_dict": first.state_dict()}, tmp_path))
    same(first, ours)
    assert "several state dicts (state_dict, ema); state_dict was taken" in " ".join(ours.header["notes"])


def test_safetensors_without_our_header_are_others(tmp_path: Path) -> None:
    theirs, path = worn(ResNet(8, 10)), tmp_path / "theirs.safetensors"
    save_file(theirs.state_dict(), path)
    assert foreign.is_foreign(path)
    same(theirs, load(path))
    own = tmp_path / "own.safetensors"
    checkpoint.write_network(own, build(Architecture("small-cnn", 0.25, 10, 1, 8)), Architecture("small-cnn", 0.25, 10, 1, 8), {})
    assert not foreign.is_foreign(own)


# Normalisation.


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("unit", [1, 255])
def test_a_normalising_layer_in_the_file_is_used(prefix: str, unit: float, tmp_path: Path) -> None:
    """RobustBench's Sequential, with 0.mean and 1.conv1; values in units of [0, 255] are told by their size."""
    plain = worn(ResNet(8, 10))
    theirs = nn.Sequential(Normalize([unit * m for m in MEAN], [unit * s for s in STD]), plain)
    ours = load(saved({f"{prefix}{k}": t for k, t in theirs.state_dict().items()}, tmp_path))
    assert ours.header["foreign"]["normalized_by"] == "the file"
    same(nn.Sequential(Normalize(MEAN, STD), plain), ours) if unit == 1 else torch.testing.assert_close(
        torch.tensor([ours.architecture.mean, ours.architecture.std]), torch.tensor([MEAN, STD])
    )


@pytest.mark.parametrize(
    ("mean", "std"), [("mean", "std"), ("normalize.mean", "normalize.std"), ("normalizer.new_mean", "normalizer.new_std"), ("mu", "sigma")]
)
def test_names_of_normalisation(mean: str, std: str, tmp_path: Path) -> None:
    state = worn(WideResNet(1, 1, 10)).state_dict() | {mean: torch.tensor([0.5]), std: torch.tensor([[0.25]])}
    assert load(saved(state, tmp_path)).architecture.mean == (0.5, 0.5, 0.5)


def test_a_typed_normalisation_is_used_and_may_not_contradict_the_file(tmp_path: Path) -> None:
    plain = worn(ResNet(8, 10))
    typed = Given(mean=tuple(MEAN), std=tuple(STD))
    ours = load(saved(plain.state_dict(), tmp_path), typed)
    assert ours.header["foreign"]["normalized_by"] == "the options"
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.network(x), plain((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]))
    both = saved(nn.Sequential(Normalize(MEAN, STD), plain).state_dict(), tmp_path, "both.pt")
    assert load(both, typed).header["foreign"]["normalized_by"] == "the file"
    with pytest.raises(UsageError, match="brings a normalisation of its own"):
        load(both, Given(mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize("given_", [Given(mean=(0.5,)), Given(std=(0.5,))])
def test_half_a_normalisation_is_refused(given_: Given, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go together"):
        load(saved(worn(ResNet(8, 10)).state_dict(), tmp_path), given_)


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0), (float("nan"),)])
def test_an_impossible_normalisation_is_refused(std: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is none for 3 channels"):
        load(saved(worn(ResNet(8, 10)).state_dict(), tmp_path), Given(mean=(0.5,), std=std))


# What is given, and what does not fit.


@pytest.mark.parametrize(
    ("given_", "classes", "image", "error", "says"),
    [
        (Given(num_classes=100), 10, (3, 32, 32), UsageError, "tell 10 classes apart, not 100"),
        (Given(), 100, (3, 32, 32), CheckpointError, "the data set has 100"),
        (Given(), 10, (1, 32, 32), CheckpointError, "takes images of 3 channels, and these have 1"),
        (Given(arch="resnet19"), 10, (3, 32, 32), UsageError, "there is no network 'resnet19'"),
        (Given(arch="wrn-29-10"), 10, (3, 32, 32), UsageError, "there is no network 'wrn-29-10'"),
        (Given(arch="torchvision:resnet19"), 10, (3, 32, 32), UsageError, "is none of its classifiers"),
        (Given(arch="torchvision:squeezenet1_0"), 10, (3, 32, 32), UsageError, "no linear layer makes the logits"),
        (Given(arch="vgg16-bn"), 10, (3, 32, 32), CheckpointError, "unknown: bn1.bias"),
        (Given(), 10, (3, 4, 4), UsageError, "shrinks images 8-fold"),
    ],
)
def test_what_contradicts_the_weights_is_refused(
    given_: Given, classes: int, image: tuple[int, int, int], error: type[AdvcliError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(says)):
        load(saved(worn(ResNet(8, 10)).state_dict(), tmp_path), given_, classes=classes, image=image)


def test_keys_that_do_not_fit_are_listed_both_ways(tmp_path: Path) -> None:
    state = worn(ResNet(8, 10)).state_dict()
    state["layer2.1.conv9.weight"] = state.pop("layer2.1.conv2.weight")
    state["layer3.0.conv1.weight"] = state["layer3.0.conv1.weight"][:5]
    with pytest.raises(CheckpointError) as refused:
        load(saved(state, tmp_path))
    for line in (
        "read as resnet18 at width 0.125, the nearest",
        "missing: layer2.1.conv2.weight",
        "unknown: layer2.1.conv9.weight",
        "shapes: layer3.0.conv1.weight is (5, 16, 3, 3), not (32, 16, 3, 3)",
    ):
        assert line in str(refused.value)


@pytest.mark.parametrize(
    ("key", "like"),
    [("layer2.0.downsample.0.weight", "layer2.0.shortcut.0.weight"), ("block1.layer.0.conv1.weight", "layer1.0.conv1.weight")],
)
def test_two_tensors_under_one_name_are_not_taken_for_one(key: str, like: str, tmp_path: Path) -> None:
    state = worn(ResNet(8, 10)).state_dict()
    with pytest.raises(CheckpointError, match=f"unknown: {re.escape(key)}"):
        load(saved({key: torch.zeros_like(state[like]), **state}, tmp_path))


def test_a_seven_by_seven_stem_points_to_torchvision(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--arch torchvision:resnet18"):
        load(saved(models.resnet18(num_classes=10).state_dict(), tmp_path))


@pytest.fixture(scope="module")
def plain_state() -> dict[str, Tensor]:
    return dict(worn(ResNet(2, 10)).state_dict())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mangled_state_dict_is_refused_with_its_keys(data: st.DataObject, plain_state: dict[str, Tensor], tmp_path: Path) -> None:
    """Keys dropped, renamed, reshaped or added at random: exit 3 with what does not fit, never a traceback."""
    state, touched = dict(plain_state), []
    names = [name for name in state if "num_batches" not in name and name != "linear.bias"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)):
        tensor = state.pop(name)
        change = data.draw(st.sampled_from(["drop", "rename", "shape", "scalar"]))
        if change == "rename":
            state[data.draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)) + ".odd"] = tensor
        elif change == "shape":
            state[name] = tensor.new_zeros(data.draw(st.lists(st.integers(0, 3), max_size=5)))
        elif change == "scalar":
            state[name] = torch.tensor(1.0)
        touched.append(name)
    if all(name in state and state[name].shape == plain_state[name].shape for name in touched):
        return
    with pytest.raises(CheckpointError) as refused:
        load(saved(state, tmp_path))
    assert refused.value.exit_code == 3
    assert any(f"{kind}: " in str(refused.value) for kind in ("missing", "unknown", "shapes"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=st.dictionaries(st.text(st.characters(codec="ascii"), max_size=12), st.lists(st.integers(0, 3), max_size=5), max_size=5))
def test_any_state_dict_is_refused(shapes: dict[str, list[int]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load(saved({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path))


@pytest.mark.parametrize("shape", [(1, 3, 3, 3), (10**6, 1, 1, 1), (0, 3, 3, 3), (3,), ()])
def test_sizes_that_no_network_has_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(shape), "layer1.0.conv1.weight": torch.zeros(512, 1, 1, 1), "fc.weight": torch.zeros(2, 9)}
    with pytest.raises(CheckpointError, match="missing: "):
        load(saved(state, tmp_path))


# Networks of torchvision.


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_a_network_of_torchvision_is_wrapped(name: str, tmp_path: Path) -> None:
    """Its logits, and as features the vector that enters its last linear layer."""
    theirs = worn(models.get_model(name, num_classes=7))
    ours = load(saved({f"module.{k}": t for k, t in theirs.state_dict().items()}, tmp_path), Given(arch=f"torchvision:{name}"), classes=7)
    same(theirs, ours)
    output = ours.network.trace(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    assert output.features.shape == (2, ours.network.linear.in_features, 1, 1)
    torch.testing.assert_close(ours.network.linear(output.features.flatten(1)), output.logits)


def test_a_wrapped_network_says_which_images_it_does_not_take() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="does not take images of 32 x 32"):
        build(Architecture("torchvision:vit_b_16", 1.0, 7, 3, 32))


def test_a_wrapped_network_survives_its_file(tmp_path: Path) -> None:
    """Written as ours it comes back with the same bytes, so that a converted checkpoint has the digest of its source."""
    theirs = worn(models.mobilenet_v3_small(num_classes=7))
    ours = load(saved(theirs.state_dict(), tmp_path), Given(arch="torchvision:mobilenet_v3_small", mean=(0.5,), std=(0.5,)), classes=7)
    checkpoint.write_network(tmp_path / "ours.safetensors", ours.network, ours.architecture, ours.header)
    again = checkpoint.load_network(tmp_path / "ours.safetensors")
    assert again.header["tensors_sha256"] == ours.header["tensors_sha256"]
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.network(x), ours.network(x))
