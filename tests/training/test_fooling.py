"""Whom crafted images fool: judged in float32 and eval mode by a network that was taught a little, side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from advcli.data import Batch, batches
from advcli.models import Network
from advcli.recipe import Recipe
from advcli.training.fooling import fooled, shares, taught
from advcli.training.setup import assemble

CPU = torch.device("cpu")


def test_shares_are_counted_and_tested_pair_by_pair() -> None:
    """Ours alone fools 6 of 8 images, theirs alone none: p = 2 / 2^6."""
    wrong = {"clean": np.arange(8) < 1, "ours": np.arange(8) < 7, "theirs": np.arange(8) < 1}
    assert shares(wrong, "ours", "theirs") == {"clean": 0.125, "ours": 0.875, "theirs": 0.125, "p": 2 / 2**6}


def test_the_network_that_is_asked_has_learned_and_can_be_fooled(tiny: Callable[..., Recipe]) -> None:
    """It beats chance on what it was shown, twice alike, and moves no other network; noise fools it less than its gradient does."""
    recipe = tiny("threat.eps=0.3", "train.precision=fp32", "craft.precision=fp32", "train.compile=false")
    parts = assemble(recipe, CPU)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    shown = list(batches(parts.data.train, batch_size=30, seed=0, epoch=0))
    network, again = taught(recipe, parts, shown), taught(recipe, parts, shown)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in parts.model.state_dict().items())

    def step(weights: Network, batch: Batch) -> Tensor:
        x = batch.images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(weights.eval()(x), batch.labels), x)
        return (x + 0.3 * gradient.sign()).clamp(0, 1).detach()

    def noise(weights: Network, batch: Batch) -> Tensor:
        sign = torch.where(torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -0.3, 0.3)
        return (batch.images + sign).clamp(0, 1)

    said: list[str] = []
    wrong = fooled(network, shown[0], {"step": step, "noise": noise, "nothing": lambda weights, batch: batch.images}, said.append)
    assert wrong["clean"].mean() < 0.5
    assert np.array_equal(wrong["clean"], wrong["nothing"])
    assert wrong["step"].mean() > wrong["noise"].mean() + 0.2
    assert said == [f"what crafting fools: {name}" for name in ("step", "noise", "nothing")]
