"""Means over a random network's answers: exact against the sum over its draws, the same for rows together or one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advcli.attacks import Cost, Judge
from advcli.attacks.expectation import DRAWS, ExpectedSurrogate, seeded
from advcli.attacks.losses import attack_loss
from advcli.models import ModelOutput

W = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def noisy(noise: list[Tensor], apart: bool) -> ExpectedSurrogate:
    """A linear network with the given noise on its logits, a row (apart) or a call at a time."""
    calls = iter(noise)

    def trace(x: Tensor) -> ModelOutput:
        shift = torch.stack([next(calls) for _ in range(len(x))]) if apart else next(calls)
        return ModelOutput((x + 0).flatten(1) @ W + shift, (), x, x)

    return ExpectedSurrogate(trace, Cost(), apart=apart)


@pytest.mark.parametrize("apart", [True, False])
def test_gradient_loss_and_logits_are_means_over_the_draws(apart: bool) -> None:
    n, x, y = 5, images(), torch.tensor([0, 1, 2, 0, 1])
    noise = list(torch.randn(n * DRAWS if apart else DRAWS, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    gradient, losses, output = noisy(noise, apart).gradient(attack_loss("ce"), x, y, {})
    leaf = x.clone().requires_grad_(True)
    shifts = torch.stack(noise).view(n, DRAWS, 3) if apart else torch.stack(noise)[None]
    logits = (leaf.flatten(1) @ W)[:, None] + shifts
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(DRAWS), reduction="none").view(n, DRAWS).mean(1)
    torch.testing.assert_close(losses, mean.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(mean.sum(), leaf)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.logits, logits.mean(1).detach(), rtol=1e-12, atol=1e-12)


def test_it_counts_every_draw_and_cuts_large_batches() -> None:
    sizes = []

    def trace(x: Tensor) -> ModelOutput:
        sizes.append(len(x))
        return ModelOutput(x.flatten(1) @ W, (), x, x)

    surrogate = ExpectedSurrogate(trace, Cost(), apart=True)
    gradient, _, output = surrogate.gradient(attack_loss("ce"), images(300), torch.zeros(300, dtype=torch.int64), {})
    assert (surrogate.cost.forwards, surrogate.cost.backwards) == (300 * DRAWS, 300 * DRAWS)
    assert max(sizes) <= 1024
    assert sum(sizes) == 300 * DRAWS
    assert gradient.shape == (300, 3, 2, 2)
    torch.testing.assert_close(output.logits, images(300).flatten(1) @ W)


def test_conditions_follow_their_rows() -> None:
    target = torch.tensor([2, 0, 1, 1, 2])
    surrogate = ExpectedSurrogate(lambda x: ModelOutput(x.flatten(1) @ W, (), x, x), Cost(), apart=True)
    _, losses, _ = surrogate.gradient(attack_loss("targeted"), images(), torch.tensor([0, 1, 2, 0, 1]), {"target": target})
    logits = images().flatten(1) @ W
    torch.testing.assert_close(
        losses, (logits.gather(1, target[:, None]) - logits.gather(1, torch.tensor([[0], [1], [2], [0], [1]])))[:, 0]
    )


def test_seeded_streams_repeat_and_leave_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(9, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(9, torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)


class Coin(torch.nn.Module):
    """Wrong with a probability that the image's first pixel says."""

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.rand(len(x)) < x[:, 0, 0, 0]
        return torch.stack([1 - wrong.float(), wrong.float()], 1)


def test_a_random_network_is_judged_by_the_majority_of_fresh_answers() -> None:
    x = torch.zeros(100, 1, 1, 1)
    x[:, 0, 0, 0] = torch.linspace(0, 1, 100)
    judge = Judge(Coin(), chunk=100, draws=201)
    broken = judge.decide(x, torch.zeros(100, dtype=torch.int64))
    assert not broken[:35].any()
    assert broken[65:].all()
    assert torch.equal(broken, judge.decide(x, torch.zeros(100, dtype=torch.int64))), "the judge repeats itself"
    assert judge.cost.forwards == 2 * 201 * 100
    logits, margins = judge.answer(x, torch.zeros(100, dtype=torch.int64))
    torch.testing.assert_close(logits[:, 1], x[:, 0, 0, 0], atol=0.15, rtol=0)
    assert set(margins.tolist()) == {-1.0, 1.0}
