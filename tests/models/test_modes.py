"""Modes are put back exactly as they were, flag by flag, whatever happens in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from advcli.models import Architecture, Network, batch_norm_state_kept, build, frozen
from advcli.models.modes import moving_statistics

pytestmark = pytest.mark.usefixtures("one_thread")  # networks this small only lose time to threads that wait for each other


@pytest.fixture
def network() -> Network:
    """In train mode, but one batch norm in eval mode and one parameter frozen, as finetuning does."""
    network = build(Architecture("small-cnn", 0.1, 10, 1, 8)).train()
    network.get_submodule("layer2.1").eval()
    network.linear.bias.requires_grad_(False)
    return network


def flags(network: nn.Module) -> tuple[dict[str, bool], dict[str, bool]]:
    return {n: m.training for n, m in network.named_modules()}, {n: p.requires_grad for n, p in network.named_parameters()}


def images() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("train_mode", [False, True])
def test_frozen_sets_one_mode_and_restores_each_flag(network: Network, train_mode: bool) -> None:
    before = flags(network)
    assert set(before[0].values()) == set(before[1].values()) == {True, False}, "both kinds are there to be confused"
    with frozen(network, train_mode=train_mode) as same:
        assert same is network
        inside = flags(network)
        assert set(inside[0].values()) == {train_mode}
        assert set(inside[1].values()) == {False}
    assert flags(network) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_frozen_restores_after_an_exception(network: Network, error: type[BaseException]) -> None:
    before = flags(network)

    def stopped() -> None:
        with frozen(network):
            network.train()
            raise error

    with pytest.raises(error):
        stopped()
    assert flags(network) == before


def test_frozen_nests(network: Network) -> None:
    before = flags(network)
    with frozen(network):
        with frozen(network, train_mode=True):
            assert network.training
        assert not any(flags(network)[0].values())
    assert flags(network) == before


def test_inside_gradients_reach_the_images_and_no_parameter(network: Network) -> None:
    x = images().requires_grad_()
    with frozen(network):
        state = copy.deepcopy(network.state_dict())
        network(x).square().sum().backward()
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items()), "eval mode moves no statistics"
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0
    assert all(p.grad is None for p in network.parameters())


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if name.split(".")[-1].startswith(("running", "num_batches"))}


@pytest.mark.parametrize("raises", [False, True])
def test_batch_norm_state_is_kept(network: Network, raises: bool) -> None:
    """Means, variances and counters, also after an exception; the buffers stay the same objects, which optimisers of others may hold."""
    network.train()
    network(images())
    before, objects = statistics(network), dict(network.named_buffers())
    assert len(before) == 3 * 3
    try:
        with batch_norm_state_kept(network):
            network(images() * 3)
            assert all(not torch.equal(value, before[name]) for name, value in statistics(network).items()), "inside they move"
            if raises:
                raise ValueError
    except ValueError:
        assert raises
    assert all(torch.equal(value, before[name]) for name, value in statistics(network).items())
    assert all(buffer is objects[name] for name, buffer in network.named_buffers())


def test_batch_norm_state_alone_is_kept(network: Network) -> None:
    """Parameters that move inside stay moved, and modes are not touched."""
    before = flags(network)
    weight = network.linear.weight.detach().clone()
    with batch_norm_state_kept(network), torch.no_grad():
        network.linear.weight.add_(1)
        network.eval()
    assert torch.equal(network.linear.weight.detach(), weight + 1)
    assert flags(network) != before
    assert not network.training


def test_gradients_inside_are_those_without_it(network: Network) -> None:
    twin = copy.deepcopy(network)
    with batch_norm_state_kept(network):
        kept = torch.autograd.grad(network(images()).square().sum(), network.linear.weight)[0]
    assert torch.equal(kept, torch.autograd.grad(twin(images()).square().sum(), twin.linear.weight)[0])


class Scaled(nn.Module):
    """A norm of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_scale", torch.ones(3))
        self.register_buffer("steps", torch.zeros(()))


def test_what_norms_of_any_kind_learn_is_found() -> None:
    network = nn.Sequential(
        nn.InstanceNorm2d(3, track_running_stats=True), Scaled(), nn.BatchNorm2d(3), nn.BatchNorm1d(3, track_running_stats=False)
    )
    network[2].eval()
    found = moving_statistics(network)
    expected = [network[0].running_mean, network[0].running_var, network[1].running_scale]
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))
