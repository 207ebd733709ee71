"""What a training step costs, counted: the floors of each method, in FLOPs and in passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advcli.data import Batch, DataSet, Moment, Split
from advcli.models import Architecture, Network, build
from advcli.objectives import Objective, build_objective
from advcli.recipe import Recipe
from advcli.training.cost import FlopMeter, forward_flops, passes
from advcli.training.step import Step

N = 16
MOMENT = Moment(0, 0, 0, 0.0)
NO_IMAGES = Split(torch.empty(0), torch.empty(0), torch.empty(0))


def objective(name: str, *, awp: bool) -> Objective:
    part: dict[str, Any] = {"name": name} | ({"wrapper": {"name": "awp"}} if awp else {})
    part |= {"distillation": {"name": "angular"}, "replay": {"until": 1}} if name == "arrest" else {}
    recipe = {"name": "test", "data": {"name": "cifar10"}, "model": {"arch": "resnet18"}, "objective": part}
    return build_objective(Recipe.model_validate({**recipe, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}}))


# A forward is 1, a backward to the input 1, one to input and weights 2; ten steps of crafting cost 20.
# forwards and backwards: per image. TRADES' crafting looks at the clean images once.
FLOORS = [
    ("standard", False, 3, 1, 1),
    ("pgd-at", False, 20 + 3, 10 + 1, 10 + 1),
    ("trades", False, 21 + 6, 11 + 2, 10 + 2),
    ("mart", False, 20 + 6, 10 + 2, 10 + 2),
    ("pgd-at", True, 20 + 3 + 3, 10 + 2, 10 + 2),
    ("trades", True, 21 + 6 + 6, 11 + 4, 10 + 4),
    ("mart", True, 20 + 6 + 6, 10 + 4, 10 + 4),
    ("arrest", False, 20 + 3 + 1 + 1, 10 + 1 + 1 + 1, 10 + 1),  # the teacher's and the student's look at the clean images
    ("arrest", True, 20 + 3 + 1 + 1 + 3, 10 + 2 + 1 + 1, 10 + 2),
]


@pytest.mark.parametrize(("name", "awp", "floor", "forwards", "backwards"), FLOORS, ids=[f"{n}{'+awp' * a}" for n, a, *_ in FLOORS])
def test_a_step_costs_its_floor(name: str, awp: bool, floor: int, forwards: int, backwards: int) -> None:
    """Within 1 %: the first layer needs no gradient of the images in scoring."""
    model = build(Architecture("resnet18", 0.125, 10, 3, 32)).train()
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(N, 3, 32, 32, generator=generator), torch.randint(10, (N,), generator=generator), torch.arange(N))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one = forward_flops(model.eval(), batch.images)  # in eval mode, since batch statistics that move would part it from its teacher
    model.train()
    made = objective(name, awp=awp)
    made.setup(model, DataSet(NO_IMAGES, NO_IMAGES, ()))
    with FlopMeter() as meter, passes(model, *(module for module in made.modules() if isinstance(module, Network))) as seen:
        Step(model, made, optimizer)(batch, MOMENT)
    assert meter.total / one == pytest.approx(floor, rel=0.01)
    assert (seen.forwards, seen.backwards) == (N * forwards, N * backwards)


def test_meter_counts_what_the_arithmetic_says() -> None:
    """Two FLOPs a multiply-add: a 3x3 convolution, 2 to 5 channels on 7x7 images padded, and a linear layer."""
    convolution = torch.nn.Conv2d(2, 5, 3, padding=1, bias=False)
    linear = torch.nn.Linear(5 * 49, 3)
    x = torch.rand(4, 2, 7, 7)
    with FlopMeter() as meter:
        linear(convolution(x).flatten(1))
    first, second = 2 * 4 * 49 * 5 * 2 * 9, 2 * 4 * 5 * 49 * 3
    assert meter.total == first + second
    with FlopMeter() as meter:
        linear(convolution(x).flatten(1)).sum().backward()
    assert meter.total == 2 * first + 3 * second  # x needs no gradient


def test_passes_stop_counting_at_the_end_of_the_block() -> None:
    model, x = build(Architecture("small-cnn", 0.25, 10, 1, 8)), torch.rand(3, 1, 8, 8)
    with passes(model) as seen:
        with torch.no_grad():
            model(x)
        model(x[:2]).sum().backward()
    model(x).sum().backward()
    assert (seen.forwards, seen.backwards) == (5, 2)
