"""The moving average of weights against its recursion."""

from __future__ import annotations

import pytest
import torch

from advcli.models import Architecture, Network, build
from advcli.training import ema


def network(seed: int = 0) -> Network:
    return build(Architecture("small-cnn", 0.25, 3, 1, 8, (0.3,), (0.7,)), seed=seed).double().train()


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9995])
def test_weights_follow_the_recursion_and_batch_norm_is_copied(decay: float) -> None:
    """After n updates: decay^n w_0 + (1 - decay) sum decay^(n - i) w_i. Running statistics and counters are the newest."""
    model = network()
    average = ema.averaged_copy(model)
    history = [{name: p.detach().clone() for name, p in model.named_parameters()}]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for p in model.parameters():
            p.data.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        model(torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64))
        ema.update(average, model, decay)
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, p in average.named_parameters():
        expected = decay**4 * history[0][name] + sum((1 - decay) * decay ** (4 - i) * history[i][name] for i in range(1, 5))
        torch.testing.assert_close(p.data, expected, rtol=0, atol=1e-10)
    newest = dict(model.named_buffers())
    assert int(newest["layer1.1.num_batches_tracked"]) == 4
    for name, buffer in average.named_buffers():
        assert torch.equal(buffer, newest[name]), name


def test_the_copy_is_frozen_and_shares_nothing() -> None:
    model = network()
    average = ema.averaged_copy(model)
    assert not any(p.requires_grad for p in average.parameters())
    assert not any(module.training for module in average.modules())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    before = average(x)
    for p in model.parameters():
        p.data.zero_()
    model(x)
    assert torch.equal(average(x), before)


def test_an_average_of_a_constant_is_the_constant() -> None:
    model = network()
    average = ema.averaged_copy(model)
    for _ in range(3):
        ema.update(average, model, 0.9)
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mean, value.detach(), rtol=0, atol=1e-14)
