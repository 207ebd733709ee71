"""Substituted keeps every forward value and gives the gradient of a smooth neighbour where an operation's own is zero or cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.attacks.substitute import Substituted, blocking_operations

Fn = Callable[[Tensor], Tensor]
W = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self, fn: Fn) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


def inputs() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def gradient(fn: Fn, weight: Tensor) -> Tensor:
    """Of (fn(x) * weight).sum() under substitution."""
    x = inputs().requires_grad_(True)
    with Substituted():
        out = fn(x)
    assert torch.equal(out.detach(), fn(inputs())), "forward values are untouched"
    (result,) = torch.autograd.grad((out * weight).sum(), x)
    return result


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 3


def winners(x: Tensor) -> Tensor:
    """k-winners-take-all, k = 2 (Xiao et al. 2020)."""
    return x * (x >= x.topk(2, 1).values[:, -1:])


def scattered(x: Tensor) -> Tensor:
    """The same by their places."""
    values, places = x.topk(2, 1)
    return torch.zeros_like(x).scatter(1, places, values)


def masked(x: Tensor) -> Tensor:
    """The same by a mask of ones at their places."""
    return x * torch.zeros_like(x).scatter_(1, x.topk(2, 1).indices, 1.0)


def sparse(x: Tensor) -> Tensor:
    """Values near the mean become the mean (Amini et al. 2024)."""
    return torch.where((x - 0.1).abs() < 0.5, torch.full_like(x, 0.1), x)


# What the operation is, what its gradient should be a multiple of for an output of x's shape, and the name that is noticed.
IDENTITIES: list[tuple[Fn, float, str]] = [
    (lambda x: (x * 255).round() / 255, 1.0, "round"),
    (lambda x: (x * 255).clone().round_() / 255, 1.0, "round"),
    (lambda x: x.floor(), 1.0, "floor"),
    (lambda x: x.sign(), 1.0, "sign"),
    (lambda x: torch.sign(x) * 2, 2.0, "sign"),
    (lambda x: x.detach() * 2, 2.0, "detach"),
    (lambda x: x.data * 2, 2.0, "detach"),
    (no_grad, 3.0, "no_grad"),
    (winners, 1.0, "mul"),
    (scattered, 1.0, "scatter"),
    (masked, 1.0, "mul"),
    (lambda x: (x * 255).to(torch.int16).float() / 255, 1.0, "cast to int16"),
    (lambda x: (x * 255).int() / 255, 1.0, "cast to int32"),
    (lambda x: torch.div(x * 255, 51, rounding_mode="floor") / 5, 1.0, "div"),
    (lambda x: (x > 0).float() * x, 1.0, "mul"),
    (sparse, 1.0, "where"),
    (lambda x: x.masked_fill(x < 0, 0.0), 1.0, "masked_fill"),
]


@pytest.mark.parametrize(("fn", "slope", "name"), IDENTITIES)
def test_what_blocks_a_gradient_passes_it(fn: Fn, slope: float, name: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(gradient(fn, weight), slope * weight)
    assert (blocking_operations(Model(fn), inputs()) or ("",))[0].replace("data", "detach") == name


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: W[(x @ W.T).argmax(1)], "getitem"),
        (lambda x: W[(x @ W.T).max(1).indices], "getitem"),
        (lambda x: F.embedding((x @ W.T).argmax(1), W), "embedding"),
        (lambda x: W.index_select(0, (x @ W.T).argmax(1)), "index_select"),
        (lambda x: F.one_hot((x @ W.T).argmax(1), 5).float() @ W, "float"),
        (lambda x: F.one_hot((x @ W.T).argmax(1), 5).to(torch.float32) @ W, "to"),
    ],
)
def test_a_row_chosen_by_argmax_passes_the_gradient_of_the_softmax(fn: Fn, name: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    x = inputs().requires_grad_(True)
    (expected,) = torch.autograd.grad((((x @ W.T).softmax(1) @ W) * weight).sum(), x)
    torch.testing.assert_close(gradient(fn, weight), expected)
    assert blocking_operations(Model(fn), inputs()) == (name,)


@pytest.mark.parametrize("fn", [lambda x: torch.tanh(1000 * x), lambda x: (1000 * x).softmax(1), lambda x: x.clamp(0, 0.01)])
def test_saturation_passes_but_is_no_blocking_operation(fn: Fn) -> None:
    own = inputs().requires_grad_(True)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    (blocked,) = torch.autograd.grad((fn(own) * weight).sum(), own)
    assert (blocked == 0).double().mean() > 0.5, "else the test shows nothing"
    assert bool((gradient(fn, weight) != 0).all())
    assert blocking_operations(Model(fn), inputs()) == ()


def test_an_ordinary_network_is_left_alone() -> None:
    """Same gradients, nothing noticed: convolutions, pooling, batch norm and ReLU have their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.rand(2, 1, 8, 8)
    model(x)
    results = []
    for inside in (False, True):
        leaf = x.clone().requires_grad_(True)
        if inside:
            with Substituted():
                out = model(leaf)
        else:
            out = model(leaf)
        results.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert torch.equal(*results)
    assert blocking_operations(model, x) == ()


def test_masks_and_indices_that_the_input_does_not_decide_keep_their_meaning() -> None:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0]) > 0.5
    weight = torch.ones(6, 4)
    assert torch.equal(gradient(lambda x: x * mask, weight), mask.float().expand(6, 4))
    assert torch.equal(gradient(lambda x: x[:, torch.tensor([0, 0])], torch.ones(6, 2))[:, 1:], torch.zeros(6, 3))


def test_a_row_of_a_table_that_is_not_by_class_is_left_alone() -> None:
    """More rows than scores: the index means something else, and no softmax over the scores weighs it."""
    x, table = inputs(), torch.randn(7, 3)
    with Substituted():
        assert torch.equal(table[x.requires_grad_(True).argmax(1)], table[inputs().argmax(1)])


def test_inside_no_grad_nothing_needs_a_gradient_and_outside_nothing_lingers() -> None:
    with Substituted():
        assert not torch.zeros(2).round().requires_grad
    x = inputs().requires_grad_(True)
    assert bool((torch.autograd.grad(x.round().sum(), x)[0] == 0).all())
    with torch.no_grad():
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
