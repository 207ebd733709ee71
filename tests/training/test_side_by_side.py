"""Ours beside theirs: who gets which rows, from equal weights, and how ratios are made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from advcli.errors import UsageError
from advcli.recipe import Recipe, load
from advcli.training import side_by_side
from advcli.training.matching import PEERS
from advcli.training.peers import Taken
from advcli.training.throughput import Floor, How

CPU = torch.device("cpu")
HOW = How(rounds=2, seconds=0.0, made_up=False, watch=lambda text: None)
TRADES = ("objective={name: trades}", "craft={steps: 2}")


def test_ratios_are_taken_round_by_round() -> None:
    """Two steps a round: ours took 1, 2 and 4 s of 3, 4 and 4 s of theirs."""
    spent = {"ours, shipped": [1.0, 2.0, 4.0], "TRADES, shipped": [3.0, 4.0, 4.0]}
    losses = {"ours, shipped": [2.5, 2.0], "TRADES, shipped": [2.4, 2.1]}
    wrong = {name: np.arange(8) < count for name, count in (("clean", 1), ("ours, shipped", 6), ("TRADES, shipped", 2))}
    row = side_by_side.row("TRADES", "shipped", side_by_side.Seen(spent, 2, losses, wrong), Floor(210.0, 60.0, 10.0), 39.0)
    assert row["ratio"] == {"median": 2.0, "q25": 1.5, "q75": 2.5}
    assert row["ours"] == {"median": 1.0, "q25": 0.75, "q75": 1.5}
    assert row["theirs"]["median"] == 2.0
    assert row["F"] == {"ours": 27.0, "theirs": 39.0}
    assert row["loss"] == {"ours": 2.5, "theirs": 2.4}
    assert row["fooled"] == {"clean": 0.125, "ours": 0.75, "theirs": 0.25, "p": 2 / 2**4}
    assert (row["peer"], row["numerics"]) == ("TRADES", "shipped")


def test_all_rows_of_a_recipe(tiny: Callable[..., Recipe]) -> None:
    said: list[str] = []
    found = side_by_side.run(tiny(*TRADES), CPU, [], How(2, 0.0, False, said.append))
    assert [(row["peer"], row["numerics"]) for row in found["rows"]] == [("TRADES", name) for name in side_by_side.NUMERICS]
    assert found["precision"]["fp32"] == {"craft": "fp32", "train": "fp32"}
    assert found["precision"]["bf16"] == {"craft": "bf16", "train": "bf16"}
    assert found["precision"]["shipped"] == {"craft": "fp32", "train": "fp32"}  # what auto comes to on a network this small
    for row in found["rows"]:
        for side in ("ours", "theirs"):
            assert 0 < row[side]["q25"] <= row[side]["median"] <= row[side]["q75"]
            assert row["loss"][side] == pytest.approx(row["loss"]["ours"], rel=0.1)  # the same step, but for their own random start
        assert row["F"]["theirs"] > row["F"]["ours"]
        assert abs(row["fooled"]["ours"] - row["fooled"]["theirs"]) < 0.2  # of 30 images
    assert json.loads(json.dumps(found)) == found
    assert len([line for line in said if line.startswith("round ")]) == 2 * 6


def test_only_some_rows(tiny: Callable[..., Recipe]) -> None:
    found = side_by_side.run(tiny(*TRADES), CPU, ["fp32"], HOW)
    assert [row["numerics"] for row in found["rows"]] == ["fp32"]
    assert "shipped" not in found["precision"]


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        ([], ["shipped", "fp32", "bf16"]),
        (["shipped"], ["shipped", "fp32"]),
        (["bf16", "shipped"], ["shipped", "fp32", "bf16"]),
        (["bf16"], ["bf16"]),
    ],
)
def test_the_row_in_float32_comes_with_the_one_as_shipped(only: list[str], rows: list[str]) -> None:
    assert side_by_side.rows_of(only) == rows


def test_all_begin_with_the_same_weights(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting moves the weights of a network that nobody races."""
    first: dict[str, torch.Tensor] = {}
    kept = side_by_side.Theirs.run

    def run(self: Any, steps: int) -> float:
        first.setdefault("theirs", self.network.linear.weight.detach().clone())
        return kept(self, steps)

    own = side_by_side.Trainer.run

    def train(self: Any, steps: int) -> float:
        first.setdefault("ours", self.parts.model.linear.weight.detach().clone())
        return own(self, steps)

    monkeypatch.setattr(side_by_side.Theirs, "run", run)
    monkeypatch.setattr(side_by_side.Trainer, "run", train)
    side_by_side.run(tiny(*TRADES), CPU, ["fp32"], HOW)
    assert torch.equal(first["ours"], first["theirs"])


def test_who_is_installed_gets_rows(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchattacks", "foolbox"):
        monkeypatch.setitem(sys.modules, package, None)
    found = side_by_side.run(tiny("craft.steps=1"), CPU, ["fp32"], HOW)
    assert {row["peer"] for row in found["rows"]} == {"robust_overfitting"}
    assert found["missing"] == [peer.package for peer in PEERS if peer.package]


def test_what_nobody_else_trains_is_refused() -> None:
    with pytest.raises(UsageError, match="no peer's loop trains as mart does") as error:
        side_by_side.check(load("mart"), [])
    assert "pgd-at, trades, ancra" in error.value.next
    with pytest.raises(UsageError, match="there are no rows 'tf32'"):
        side_by_side.check(load("pgd-at"), ["tf32"])


def test_low_precision_is_theirs_by_autocast_on_channels_last(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, bool, bool]] = []

    def loop(network: Any, optimizer: Any, batch: Any, plan: Any) -> float:
        output = torch.nn.functional.conv2d(batch.images, network.layer1[0].weight)
        last = network.layer2[0].weight.is_contiguous(memory_format=torch.channels_last)
        seen.append((output.dtype, last, network.layer1[0].weight.dtype == torch.float32))
        return Taken(0.0, batch.images)

    peer = side_by_side.Peer("stub", loop, "trades")
    monkeypatch.setattr(side_by_side, "PEERS", (peer,))
    found = side_by_side.run(tiny(*TRADES, "threat.eps=0.3"), CPU, ["fp32", "bf16"], How(1, 0.0, False, lambda text: None))
    assert all(row["fooled"]["theirs"] == row["fooled"]["clean"] < row["fooled"]["ours"] for row in found["rows"]), "it crafts nothing"
    assert set(seen[1:]) == {(torch.float32, False, True), (torch.bfloat16, True, True)}  # the first call counts
