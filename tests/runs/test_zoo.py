"""Weights that libraries fetch, with the libraries' doors played by stand-ins: nothing here opens a connection."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from public_layouts import ResNet, worn
from torchvision import models

from advcli.errors import AdvcliError, CheckpointError, ResourceError, UsageError
from advcli.models.wrapped import import_extra
from advcli.runs import foreign
from advcli.runs.checkpoint import Loaded
from advcli.runs.given import NOTHING_GIVEN


def load(source: str, classes: int = 1000) -> Loaded:
    return foreign.load(Path(source), NOTHING_GIVEN, [str(k) for k in range(classes)], (3, 32, 32), {"name": "folder"}, {})


def test_weights_of_torchvision_come_with_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = worn(models.resnet18())
    asked: dict[str, Any] = {}

    def fetched(url: str, **options: Any) -> Any:
        asked.update(options, url=url)
        return theirs.state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetched)
    ours = load("torchvision:resnet18@IMAGENET1K_V1")
    assert (asked["weights_only"], asked["check_hash"]) == (True, True)
    assert asked["url"].endswith(".pth")
    weights = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    x = torch.rand(2, 3, 32, 32)
    normal = (x - torch.tensor(weights.mean)[:, None, None]) / torch.tensor(weights.std)[:, None, None]
    torch.testing.assert_close(ours.network(x), theirs(normal))
    assert ours.evals == Path("runs/torchvision-resnet18-IMAGENET1K_V1/evals")
    assert "images of 224 pixels" in " ".join(ours.header["notes"])


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("torchvision:resnet18", UsageError, "without any is none to judge"),
        ("torchvision:resnet18@NONE", UsageError, "no weights 'NONE' for resnet18"),
        ("torchvision:resnet19@DEFAULT", UsageError, "no network 'resnet19'"),
        ("torchvision:", UsageError, "of what"),
        ("torchvision:resnet18@DEFAULT", CheckpointError, "could not be fetched: <urlopen error no way out>"),
        ("timm:resnet18", ResourceError, "pip install 'advcli[timm]'"),
        ("hf:owner/name", ResourceError, "pip install 'advcli[hf]'"),
    ],
)
def test_what_cannot_be_fetched_says_why(source: str, error: type[AdvcliError], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise URLError("no way out")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    for name in ("timm", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(error) as refused:
        load(source)
    assert says in str(refused.value)


def test_networks_of_timm_come_with_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = worn(models.resnet18(num_classes=5))
    theirs.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 32, 32)}  # type: ignore[assignment]

    def create_model(name: str, *, pretrained: bool, in_chans: int, num_classes: int = 5) -> Any:
        assert name == "resnet_t"
        return theirs if pretrained else models.resnet18(num_classes=num_classes)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, is_model=lambda name: name == "resnet_t"))
    ours = load("timm:resnet_t", 5)
    assert (ours.architecture.arch, ours.architecture.mean) == ("timm:resnet_t", (0.5, 0.5, 0.5))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.network(x), theirs((x - 0.5) / 0.25))


@pytest.mark.parametrize(("source", "file"), [("hf:me/net/deep/a.pt", "deep/a.pt"), ("hf:me/net", "pytorch_model.bin")])
def test_a_file_of_the_hub_is_read_like_any_other(source: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs, local = worn(ResNet(8, 10)), tmp_path / Path(file).name
    torch.save(theirs.state_dict(), local)

    def hf_hub_download(repo_id: str, filename: str) -> str:
        if (repo_id, filename) != ("me/net", file):
            raise FileNotFoundError(filename)
        return str(local)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download))
    ours = load(source, 10)
    assert ours.evals.parts[0] == "runs"
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours.network(x), theirs(x))
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load("hf:me/other", 10)
    with pytest.raises(UsageError, match="OWNER/NAME"):
        load("hf:me", 10)


def test_an_extra_that_is_there_is_imported() -> None:
    assert import_extra("json", "none").dumps(1) == "1"
