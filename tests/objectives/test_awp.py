"""Adversarial weight perturbation against its paper's formula and a plain re-implementation of the authors' procedure."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.data import Batch, Moment
from advcli.models import Architecture, Network, build
from advcli.objectives import Crafted, Objective, build_objective
from advcli.objectives.awp import Awp
from advcli.recipe import load
from advcli.training.device import computing
from advcli.training.step import Step

MOMENT = Moment(seed=0, epoch=5, step=50, progress=0.5)
SETTINGS = ["threat.eps=0.1", "craft.steps=2", "craft.step_size=0.05"]
INNER = {
    "pgd-at": lambda: build_objective(load("quickstart", SETTINGS)),
    "trades": lambda: build_objective(load("quickstart", [*SETTINGS, "objective.name=trades", "craft.loss=kl", "craft.start=normal"])),
    "mart": lambda: build_objective(load("quickstart", [*SETTINGS, "objective.name=mart"])),
}
each_inner = pytest.mark.parametrize("name", INNER)


def network(dtype: torch.dtype = torch.float64) -> Network:
    return build(Architecture("small-cnn", 0.25, 5, 1, 8), seed=0).to(dtype).train()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def example(dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(16, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return Batch(images, torch.randint(5, (16,), generator=generator), torch.arange(16))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def steps(objective: Objective, model: Network, dtype: torch.dtype, count: int = 3, moment: Moment = MOMENT) -> dict[str, Tensor]:
    """The state after some optimiser steps, momentum and weight decay included."""
    optimizer = sgd(model)
    for i in range(count):
        Step(model, objective, optimizer)(example(dtype, seed=i), moment._replace(step=i))
    return snapshot(model)


def assert_bitwise(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@each_inner
def test_gamma_zero_is_the_inner_objective_to_the_bit(name: str) -> None:
    """Weights, and batch norm's statistics and counters: the probing pass leaves no trace."""
    wrapped = steps(Awp(INNER[name](), gamma=0.0, warmup=0), network(torch.float32), torch.float32)
    assert_bitwise(wrapped, steps(INNER[name](), network(torch.float32), torch.float32))


@each_inner
def test_nothing_happens_before_the_warm_up_is_over(name: str) -> None:
    objective = Awp(INNER[name](), gamma=0.5, warmup=6)
    before = steps(objective, network(torch.float32), torch.float32)
    assert_bitwise(before, steps(INNER[name](), network(torch.float32), torch.float32))
    after = steps(objective, network(torch.float32), torch.float32, moment=MOMENT._replace(epoch=6))
    assert not torch.equal(after["linear.weight"], before["linear.weight"])


@each_inner
def test_weights_move_by_gamma_times_their_norm_along_the_gradient(name: str) -> None:
    """Eq. 8 and 9, tensor by tensor; batch norm's own parameters, biases and frozen weights stay."""
    model, batch, gamma = network(), example(), 0.01
    model.get_submodule("layer2.0").weight.requires_grad_(False)
    objective = Awp(INNER[name](), gamma, warmup=0)
    crafted, before = objective.craft(model, batch, MOMENT), snapshot(model)
    twin = copy.deepcopy(model)
    INNER[name]().loss(twin, batch, crafted, MOMENT).total.backward()
    with objective.perturbed(model, batch, crafted, MOMENT):
        moved = {key: value - before[key] for key, value in snapshot(model).items()}
    gradients = {key: p.grad for key, p in twin.named_parameters()}
    touched = {"layer1.0.weight", "layer3.0.weight", "linear.weight"}
    assert {key for key, value in moved.items() if value.any()} == touched
    for key in touched:
        expected = gamma * before[key].square().sum().sqrt() * gradients[key] / gradients[key].square().sum().sqrt()
        torch.testing.assert_close(moved[key], expected, rtol=0, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


@each_inner
def test_perturbation_raises_the_loss(name: str) -> None:
    model, batch = network(), example()
    objective = Awp(INNER[name](), 0.01, warmup=0)
    crafted = objective.craft(model, batch, MOMENT)
    calm = objective.loss(model, batch, crafted, MOMENT).total
    with objective.perturbed(model, batch, crafted, MOMENT):
        assert objective.loss(model, batch, crafted, MOMENT).total > calm


def test_the_optimisers_step_is_kept_and_the_shift_taken_off() -> None:
    model, batch = network(), example()
    objective = Awp(INNER["pgd-at"](), 0.3, warmup=0)
    crafted, before = objective.craft(model, batch, MOMENT), snapshot(model)
    with objective.perturbed(model, batch, crafted, MOMENT):
        for p in model.parameters():
            p.data.add_(0.25)
    for key, value in snapshot(model).items():
        step = 0.25 if key in dict(model.named_parameters()) else 0
        torch.testing.assert_close(value, before[key] + step, rtol=0, atol=1e-14 if value.is_floating_point() else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_come_back_when_the_step_fails(dtype: torch.dtype) -> None:
    model, batch = network(dtype), example(dtype)
    objective, before = Awp(INNER["trades"](), 0.3, warmup=0), snapshot(network(dtype))

    def fail() -> None:
        with objective.perturbed(model, batch, Crafted(batch.images), MOMENT):
            assert not torch.equal(model.linear.weight, before["linear.weight"])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    for key, value in snapshot(model).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)


@each_inner
def test_batch_norm_moves_in_the_scoring_pass_alone(name: str) -> None:
    model, batch = network(), example()
    objective = Awp(INNER[name](), 0.1, warmup=0)
    crafted, before = objective.craft(model, batch, MOMENT), snapshot(model)
    with objective.perturbed(model, batch, crafted, MOMENT):
        inside = snapshot(model)
    norms = [key for key in before if "running" in key or "tracked" in key]
    assert norms
    assert all(torch.equal(before[key], inside[key]) for key in norms)


def published_step(inner: Objective, model: Network, optimizer: torch.optim.SGD, batch: Batch, moment: Moment, gamma: float) -> None:
    """utils_awp.py and train_adversarial.py of the authors: a proxy network makes one descent step on the negative loss."""
    crafted = inner.craft(model, batch, moment)
    proxy = copy.deepcopy(model).train()
    proxy_optimizer = torch.optim.SGD(proxy.parameters(), lr=0.1)
    loss = -inner.loss(proxy, batch, crafted, moment).total
    proxy_optimizer.zero_grad()
    loss.backward()
    proxy_optimizer.step()
    old, new = model.state_dict(), proxy.state_dict()
    diff = {}
    for key in old:
        if old[key].dim() > 1 and "weight" in key:
            difference = new[key] - old[key]
            diff[key] = old[key].norm() / (difference.norm() + 1e-20) * difference
    named = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in diff.items():
            named[key].add_(gamma * value)
    optimizer.zero_grad()
    inner.loss(model, batch, crafted, moment).total.backward()
    optimizer.step()
    with torch.no_grad():
        for key, value in diff.items():
            named[key].add_(-gamma * value)


@each_inner
def test_whole_steps_are_the_authors_procedure(name: str) -> None:
    """Three steps with momentum and weight decay, in float64; batch norm included."""
    ours = steps(Awp(INNER[name](), gamma=0.01, warmup=0), network(), torch.float64)
    model = network()
    optimizer = sgd(model)
    for i in range(3):
        published_step(INNER[name](), model, optimizer, example(seed=i), MOMENT._replace(step=i), 0.01)
    theirs = snapshot(model)
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-10)


def test_scoring_sees_the_perturbed_weights_under_autocast() -> None:
    """bf16: autocast keeps its low-precision copies of weights, and a copy from before the perturbation would undo it unseen."""
    model, batch = network(torch.float32), example(torch.float32)
    objective = Awp(INNER["pgd-at"](), 2.0, warmup=0)
    crafted = Crafted(batch.images)
    values: dict[str, Any] = {"calm": objective.loss(model, batch, crafted, MOMENT).total}
    with objective.perturbed(model, batch, crafted, MOMENT):
        values["perturbed"] = objective.loss(model, batch, crafted, MOMENT).total
    with computing("bf16", batch.images.device), objective.perturbed(model, batch, crafted, MOMENT):
        values["autocast"] = objective.loss(model, batch, crafted, MOMENT).total
    calm, perturbed, low = (float(value.detach()) for value in values.values())
    assert perturbed > 1.5 * calm
    assert low == pytest.approx(perturbed, rel=0.1)
