"""Gates that read the clean twin get it from every objective, and their state moves by it."""

from __future__ import annotations

import pytest
import torch

from advcli.data import Moment, batches
from advcli.recipe import load
from advcli.training.cost import passes
from advcli.training.setup import assemble
from advcli.training.step import Step

PROMPT = "model.gates=[{name: channel-prompt}]"
OBJECTIVES = {  # overrides, and forwards of an image beyond those of the same objective without the gate
    "standard": (["objective={name: standard}", "~craft", "select.metric=last"], 1),
    "pgd-at": ([], 1),
    "trades": (["objective.name=trades", "craft.loss=kl"], 1),
    "arrest": (["objective={name: arrest, distillation: {name: angular}, replay: {angle: 30, until: 5}}"], 1),
    "masked-view": (["objective.terms=[{name: masked-view, patch: 2}]"], 0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prototypes_move_in_every_objective(name: str) -> None:
    """One clean forward more, none where a clean branch looks at the images anyway; prototypes leave their neutral start."""
    overrides, more = OBJECTIVES[name]
    forwards = []
    for gate in ([], [PROMPT]):
        parts = assemble(load("quickstart", ["model.width=0.125", "train.precision=fp32", *overrides, *gate]), torch.device("cpu"))
        parts.model.train()
        batch = next(batches(parts.data.train, batch_size=32, seed=0, epoch=0))
        with passes(parts.model) as cost:
            Step(parts.model, parts.objective, parts.optimizer)(batch, Moment(0, 0, 0, 0.0))
        forwards.append(cost.forwards / 32)
    assert forwards[1] - forwards[0] == more
    prototypes = parts.model.gates[0].prototypes
    assert not torch.equal(prototypes, torch.ones_like(prototypes))
    assert all(module.training for module in parts.model.modules())
