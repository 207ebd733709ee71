"""What a look at a network finds, before anything is attacked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advcli.errors import CheckpointError
from advcli.evaluation.inspection import Traits, inspect
from advcli.models import Architecture, build
from advcli.recipe.schema import ReverseAttention

BASE = build(Architecture("small-cnn", 0.25, 10, 1, 8)).eval()


class Model(nn.Module):
    def __init__(self, fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def images(n: int = 10) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def look(fn: Callable[[Tensor], Tensor], n: int = 10) -> Traits:
    return inspect(Model(fn), images(n), 10, "somewhere")


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_an_ordinary_network_has_no_traits(n: int) -> None:
    assert look(BASE, n) == Traits()
    assert Traits().notes() == []


def test_a_gated_network_is_not_odd_for_its_argmax() -> None:
    gated = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=(ReverseAttention(name="reverse-attention"),))).eval()
    assert inspect(gated, images(), 10, "somewhere") == Traits()


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: BASE(x + 0.1 * torch.randn_like(x)), Traits(random="row")),
        (lambda x: BASE(x + 0.1 * torch.randn(1, 1, 8, 8)), Traits(random="batch")),
        (lambda x: BASE(x - x.mean(0)), Traits(companions=True)),
        (lambda x: BASE(x).softmax(1), Traits(probabilities=True)),
        (lambda x: BASE((x * 255).round() / 255), Traits(operations=("round",))),
    ],
)
def test_each_trait_is_seen_alone(fn: Callable[[Tensor], Tensor], expected: Traits) -> None:
    assert look(fn) == expected
    assert len(expected.notes()) == 1
    assert {key for key, value in expected.to_json().items() if value} == {key for key in vars(expected) if getattr(expected, key)}


def test_logits_that_are_small_and_positive_are_no_probabilities() -> None:
    assert look(lambda x: BASE(x).sigmoid() / 10).probabilities is False


def test_rounding_between_companions_is_no_trait() -> None:
    assert look(lambda x: BASE(x) * (1 + 1e-7 * x.mean())).companions is False


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: BASE(x)[:, :9], r"returns \(10, 9\) for 10 images of 10 classes"),
        (lambda x: BASE(x)[0], r"returns \(10,\)"),
        (lambda x: BASE(x) * torch.nan, "not finite"),
        (lambda x: BASE(x) / 0, "not finite"),
    ],
)
def test_answers_that_are_no_logits_are_refused(fn: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        look(fn)
