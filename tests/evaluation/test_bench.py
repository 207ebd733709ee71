"""The benchmark: everybody takes turns on the same images, the arithmetic of its rows, and what the command says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from advcli.cli.app import app
from advcli.errors import UsageError
from advcli.evaluation import bench, session
from advcli.evaluation.session import Options

CPU = torch.device("cpu")


@pytest.fixture
def job(trained_run: Path) -> Any:
    return session.job(Options(trained_run / "model.safetensors", "aa", n=16, batch_size=8, device="cpu"), MagicMock())


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """A stand-in for torchattacks that moves nothing; what it was given: (images, whether weights wanted gradients)."""
    seen: list[tuple[int, bool]] = []

    class Idle:
        def __init__(self, network: torch.nn.Module, **settings: Any) -> None:
            self.network = network
            assert settings["steps"] == 20
            assert settings["random_start"]

        def __call__(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append((len(x), any(p.requires_grad for p in self.network.parameters())))
            return x

    package = ModuleType("torchattacks")
    package.PGD = Idle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchattacks", package)
    monkeypatch.setattr(bench.util, "find_spec", lambda name: name == "torchattacks" or None)
    monkeypatch.setattr(bench.metadata, "version", lambda name: "0")
    return seen


def test_who_is_installed_gets_both_rows(job: Any, peer: list[tuple[int, bool]]) -> None:
    said: list[str] = []
    result = bench.run(job, bench.ATTACKS, 2, CPU, said.append)
    assert [(row["attack"], row["peer"], row["numerics"]) for row in result["rows"]] == [
        ("pgd-20", "torchattacks", "shipped"),
        ("pgd-20", "torchattacks", "fp32"),
    ]
    assert result["missing"] == ["pyautoattack", "foolbox"]
    assert peer == [*[(8, True)] * 2, *[(8, False)] * 4, *[(8, True)] * 2]
    assert [line.partition(": ")[2] for line in said[:4]] == [line.partition(": ")[2] for line in said[:3:-1]]  # turns are turned round
    x, y = job.images.images.float() / 255, job.images.labels
    clean = float((job.loaded.network.eval()(x).argmax(1) == y).double().mean())
    for row in result["rows"]:
        assert row["robust"]["theirs"] == clean
        assert row["robust"]["ours"] < clean
        assert row["ours"]["q25"] <= row["ours"]["median"] <= row["ours"]["q75"]
    assert result["versions"].keys() == {"advcli", "torch", "python", "torchattacks"}
    assert result["hardware"]["threads"] == torch.get_num_threads()


def test_both_of_our_pgds_find_what_the_other_finds(job: Any) -> None:
    assert bench._pgd(job, True) == bench._pgd(job, False)


def test_ratios_are_taken_round_by_round() -> None:
    match = bench.Match("aa", "pyautoattack", "shipped", "ours", "theirs")
    row = bench._row(match, {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 4.0]}, {"ours": [0.5] * 3, "theirs": [0.6] * 3})
    assert row["ratio"] == {"median": 2.0, "q25": 1.5, "q75": 2.5}
    assert row["ours"]["median"] == 2.0
    assert row["robust"] == {"ours": 0.5, "theirs": 0.6}


def test_everything_that_a_row_names_can_be_run(job: Any) -> None:
    runs = bench._runs(job, CPU)
    assert {name for match in bench._matches() for name in (match.ours, match.theirs)} == runs.keys()


@pytest.mark.slow
def test_suites_and_pyautoattack_agree(job: Any) -> None:
    """Whole, on a few images: the two engines' robust accuracies differ by one image at most."""
    result = bench.run(job, ("aa",), 1, CPU, lambda text: None)
    for row in result["rows"]:
        assert abs(row["robust"]["ours"] - row["robust"]["theirs"]) <= 1 / 16
    assert np.isfinite([row["ratio"]["median"] for row in result["rows"]]).all()


def test_an_unknown_name_is_refused(job: Any) -> None:
    with pytest.raises(UsageError, match="no benchmark 'aaa'"):
        bench.run(job, ("aaa",), 1, CPU, lambda text: None)


@pytest.mark.usefixtures("peer")
def test_the_command(trained_run: Path) -> None:
    common = ["bench", str(trained_run), "--attacks", "--n", "8", "--rounds", "1", "--device", "cpu", "--quiet"]
    runner = CliRunner()
    done = runner.invoke(app, [*common, "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["rows"]) == 2
    shown = runner.invoke(app, common)
    assert shown.exit_code == 0
    assert "foolbox is not installed" in " ".join(shown.output.split())
    assert max(len(line) for line in shown.output.splitlines() if "pgd-20" in line) <= 80
    assert runner.invoke(app, ["bench", str(trained_run)]).exit_code == 2
