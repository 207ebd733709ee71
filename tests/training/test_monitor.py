"""The measurement after an epoch equals the direct one, is the same each time and leaves the network alone."""

from __future__ import annotations

import copy

import pytest
import torch

from advcli.attacks import Threat
from advcli.data import Split, load_test, to_float
from advcli.draws import Draws
from advcli.models import Architecture, Network, build
from advcli.recipe import schema
from advcli.training import monitor
from advcli.training.monitor import StoppedError, measure

THREAT = Threat("linf", 0.08)


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_test(schema.Data(name="digits", validation=0))[0].take(torch.arange(70))


@pytest.fixture(scope="module")
def network(digits: Split) -> Network:
    """Fitted to half of the very images: right on most, and not robust."""
    model = build(Architecture("small-cnn", 0.25, 10, 1, 8), seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(to_float(digits.images[:50])), digits.labels[:50]).backward()
        optimizer.step()
    return model


def result(network: Network, split: Split, steps: int = 5, seed: int = 0, threat: Threat = THREAT) -> dict[str, float]:
    return measure(network, split, threat, steps=steps, seed=seed, stop=lambda: False)


def direct(network: Network, split: Split, steps: int, seed: int) -> tuple[int, int]:
    """Right on the image, and right on every iterate of plain PGD with step eps / 4."""
    model, y, eps = copy.deepcopy(network).eval(), split.labels, THREAT.eps
    x = to_float(split.images)
    right = model(x).argmax(1) == y
    clean = int(right.sum())
    x_adv = (x + eps * (2 * Draws(seed, split.index, "monitor").uniform(x.shape[1:]) - 1)).clamp(0, 1)
    for step in range(steps + 1):
        leaf = x_adv.clone().requires_grad_(True)
        logits = model(leaf)
        right &= logits.argmax(1) == y
        if step < steps:
            (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
            x_adv = (x + (x_adv + eps / 4 * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return clean, int(right.sum())


@pytest.mark.parametrize("steps", [1, 5])
def test_equals_a_direct_computation(steps: int, network: Network, digits: Split) -> None:
    clean, robust = direct(network, digits, steps, seed=3)
    assert result(network, digits, steps, seed=3) == {"n": 70, "clean": clean / 70, "robust": robust / 70}
    assert 0 < robust < clean < 70


@pytest.mark.parametrize("chunk", [1, 7, 32, 69])
def test_chunks_do_not_show(chunk: int, network: Network, digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = result(network, digits)
    monkeypatch.setitem(monitor._CHUNKS, "cpu", chunk)
    assert result(network, digits) == whole


def test_the_same_in_every_epoch(network: Network, digits: Split) -> None:
    first = result(network, digits)
    torch.manual_seed(123)
    assert result(network, digits) == first


def test_network_is_left_as_it_was(network: Network, digits: Split) -> None:
    model = copy.deepcopy(network).train()
    model.get_submodule("layer2").eval()
    model.linear.bias.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    result(model, digits)
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_all_images_wrong(network: Network, digits: Split) -> None:
    with torch.no_grad():
        second = copy.deepcopy(network).eval()(to_float(digits.images)).argsort(1)[:, -2]
    assert result(network, Split(digits.images, second, digits.index)) == {"n": 70, "clean": 0.0, "robust": 0.0}


def test_a_tiny_ball_changes_nothing_and_a_huge_one_everything(network: Network, digits: Split) -> None:
    clean = result(network, digits)["clean"]
    assert result(network, digits, threat=Threat("linf", 1e-6))["robust"] == clean
    assert result(network, digits, threat=Threat("linf", 0.9))["robust"] == 0.0


def test_a_stop_leaves_in_the_middle(network: Network, digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(monitor._CHUNKS, "cpu", 20)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    model = copy.deepcopy(network).train()
    with pytest.raises(StoppedError):
        measure(model, digits, THREAT, steps=1, seed=0, stop=stop)
    assert all(module.training for module in model.modules())
