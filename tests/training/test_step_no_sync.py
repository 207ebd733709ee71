"""A step never makes the host wait for the device: on the meta device, where no tensor has values, asking for one is an error."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from advcli.data import Batch, DataSet, Moment, Split
from advcli.models import Architecture, build
from advcli.objectives import build_objective
from advcli.recipe import load
from advcli.training import ema
from advcli.training.step import Step

META = torch.device("meta")
SMALL = ("model.arch=small-cnn", "data={name: digits}", "threat.eps=0.15")
METHODS: dict[str, tuple[str, ...]] = {
    "standard": (),
    "pgd-at": ("objective.clean_pass=true",),
    "trades": ("objective.wrapper.name=awp",),
    "mart": ("threat.norm=l2",),
    "ancra": ("model.gates.0.at=[features]",),
    "again": (),
    "stayfocused": ("objective.terms.0.patch=2",),
    "cas": ("model.gates.0.at=[layer2,features]",),
    "arrest": (),
}


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


def batch(n: int = 8) -> Batch:
    labels = torch.zeros(n, dtype=torch.int64, device=META)
    return Batch(torch.rand(n, 1, 8, 8, device=META), labels, torch.arange(n, device=META))


def step(method: str, *overrides: str, craft: str = "fp32") -> tuple[Step, Any]:
    recipe = load(method, [*SMALL, *METHODS[method], *overrides])
    model = build(Architecture("small-cnn", 0.25, 10, 1, 8, None, None, 1, recipe.model.gates), 0).to(META).train()
    made = build_objective(recipe).to(META)
    nothing = Split(torch.empty(0, 1, 8, 8, device=META), torch.empty(0), torch.empty(0))
    made.setup(model, DataSet(nothing, nothing, ()))
    groups = [{"params": list(model.parameters())}, *made.parameter_groups()]
    return Step(model, made, torch.optim.SGD(groups, lr=0.1, momentum=0.9), craft=craft), model


@pytest.mark.parametrize("negatives", ["random", "soft", "hard", "targeted"])
def test_no_choice_of_negatives_waits(negatives: str) -> None:
    made, _ = step("ancra", f"objective.terms.0.negatives={negatives}")
    made(batch(), Moment(0, 99, 99, 0.5))


@pytest.mark.parametrize("craft", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits(method: str, craft: str) -> None:
    """Epoch 99: after every ramp, warm-up and replay. While ARREST replays, it does wait, to spare whom it does not attack."""
    made, model = step(method, craft=craft)
    scalars = made(batch(), Moment(0, 99, 99, 0.5))
    assert all(value.device == META for value in scalars.values())
    ema.update(ema.averaged_copy(model), model, 0.9)


def test_a_step_that_did_wait_would_be_caught() -> None:
    made, _ = step("pgd-at")
    inner = made.objective.loss
    made.objective.loss = lambda *args: inner(*args) if bool(args[1].labels.sum() >= 0) else None  # type: ignore[method-assign]
    with pytest.raises((RuntimeError, NotImplementedError)):
        made(batch(), Moment(0, 99, 99, 0.5))
