"""Each probe fires on a network made to show what it looks for, and on no honest one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from advcli.attacks import Cost, Threat
from advcli.data import load_test, to_float
from advcli.draws import Draws
from advcli.evaluation import signs
from advcli.evaluation.active import IMAGES, POINTS, active_test
from advcli.evaluation.job import pick
from advcli.evaluation.masking import CHECKS, flags, raised
from advcli.evaluation.signs import STEPS, Sample, measure
from advcli.models import ModelOutput, frozen
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network

THREAT = Threat("linf", 0.15)
Trace = Callable[[Tensor], ModelOutput]


@pytest.fixture(scope="module")
def honest(trained_run) -> Trace:  # type: ignore[no-untyped-def]
    network = load_network(trained_run / "model.safetensors").network
    with frozen(network):
        yield network.trace


@pytest.fixture(scope="module")
def sample() -> Sample:
    split = pick(load_test(Data(name="digits"), "test")[0], 64, 0)
    return Sample(to_float(split.images), split.labels, Draws(0, split.index, "signs"))


def changed(trace: Trace, change: Callable[[Tensor], Tensor]) -> Trace:
    return lambda x: (output := trace(x))._replace(logits=change(output.logits))


def names(trace: Trace, sample: Sample, threat: Threat = THREAT) -> set[str]:
    cost = Cost()
    pairs = measure(trace, threat, sample, 0, cost)
    assert cost.forwards > cost.backwards > 0
    columns = {name: (weak.to(torch.int8) + 2 * strong.to(torch.int8)).numpy().astype(np.int8) for name, (weak, strong) in pairs.items()}
    assert columns.keys() <= CHECKS.keys()
    return {flag["name"] for flag in raised(flags({}, {}, columns, {}))}


def test_an_honest_network_raises_nothing(honest: Trace, sample: Sample) -> None:
    assert names(honest, sample) == set()


def test_probes_repeat_themselves(honest: Trace, sample: Sample) -> None:
    first, second = (measure(honest, THREAT, sample, 0, Cost()) for _ in range(2))
    for name, pair in first.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, second[name], strict=True)), name


def test_a_huge_scale_saturates_the_cross_entropy_alone(honest: Trace, sample: Sample) -> None:
    """The margin's gradient is as good as before, so zero-gradients stays quiet."""
    assert "saturated-loss" in names(changed(honest, lambda z: 1000 * z), sample)
    assert "zero-gradients" not in names(changed(honest, lambda z: 1000 * z), sample)


def test_probabilities_of_a_sure_network_have_no_gradient_at_all(honest: Trace, sample: Sample) -> None:
    found = names(changed(honest, lambda z: (1e4 * z).softmax(1)), sample)
    assert {"zero-gradients", "unbounded-attack-fails"} <= found
    assert "active-test-fails" not in found, "the features before are in order"


def test_rounded_pixels_block_everything(honest: Trace, sample: Sample) -> None:
    found = names(lambda x: honest((x * 16).round() / 16), sample)
    assert found >= {"zero-gradients", "loss-not-rising", "unbounded-attack-fails", "active-test-fails"}


def test_a_gradient_that_points_the_wrong_way(honest: Trace, sample: Sample) -> None:
    """Forward as the network, backward away from the loss: PGD repairs what is wrong, noise finds more, more steps do worse."""

    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            return -gradients[0]

    wide = Threat("linf", 0.5)
    misled = names(lambda x: honest(Reversed.apply(x)), sample, threat=wide)
    assert misled >= {"loss-not-rising", "noise-beats-gradient", "unbounded-attack-fails", "active-test-fails"}
    likely = honest(sample.images).logits.topk(2, 1).indices[:, 1]
    second = sample._replace(labels=torch.where(torch.arange(64) % 2 == 0, likely, sample.labels))
    assert "robust-above-clean" in names(lambda x: honest(Reversed.apply(x)), second, threat=wide)
    assert "robust-above-clean" not in names(honest, second, threat=wide)


def test_images_that_are_wrong_anyway_are_followed_for_a_few_steps_alone(
    honest: Trace, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no say in any other probe, whose answers are what they were; and who is right from the start walks to the end."""
    likely = honest(sample.images).logits.topk(2, 1).indices[:, 1]
    second = sample._replace(labels=torch.where(torch.arange(64) % 2 == 0, likely, sample.labels))
    right = honest(second.images).logits.argmax(1) == second.labels
    costs, found, seen = [Cost(), Cost()], list[dict[str, tuple[Tensor, Tensor]]](), list[tuple[Tensor, Tensor]]()
    path = signs._path
    monkeypatch.setattr(signs, "_path", lambda surrogate, *rest: (seen.append(path(surrogate, *rest)), seen[-1])[1])
    monkeypatch.setattr(signs, "active_test", lambda *rest, **more: (~right, ~right))
    for repeatable, cost in zip((True, False), costs, strict=True):
        found.append(measure(honest, THREAT, second, 0, cost, repeatable=repeatable))
    assert found[0].keys() == found[1].keys()
    for name in found[0].keys() - {"robust-above-clean"}:
        assert all(torch.equal(a, b) for a, b in zip(found[0][name], found[1][name], strict=True)), name
    (margins, losses), (all_margins, all_losses) = seen
    assert torch.equal(margins[right] >= 0, all_margins[right] >= 0)
    torch.testing.assert_close(losses[right], all_losses[right], rtol=1e-3, atol=1e-4)
    assert torch.equal(margins[~right, 10:], margins[~right, 10:11].expand(-1, STEPS - 9))
    saved = int((~right).sum()) * (STEPS - 10)
    assert costs[1].backwards - costs[0].backwards >= saved > 0


def test_a_random_network_that_hides_nothing_raises_nothing(honest: Trace, sample: Sample) -> None:
    """Its noise is an image's own as long as everybody keeps his place; found by luck over many draws it would look like masking."""

    def drawn(x: Tensor) -> ModelOutput:
        output = honest(x)
        noise = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(0))
        return output._replace(logits=output.logits + 2 * noise)

    def sure(repeatable: bool) -> tuple[int, int]:
        weak, strong = measure(drawn, THREAT, sample, 0, Cost(), repeatable=repeatable)["noise-beats-gradient"]
        return int((weak & ~strong).sum()), int((strong & ~weak).sum())

    assert sure(False)[0] == 0
    assert sure(True)[0] > 0, "else the test shows nothing"


# The active test.


def test_planted_points_are_found_on_an_honest_network(honest: Trace, sample: Sample) -> None:
    cost = Cost()
    planted, reached = active_test(honest, THREAT, sample.images, sample.draws, cost)
    assert int(planted.sum()) == IMAGES == int(planted[:IMAGES].sum())
    assert int((planted & reached).sum()) >= IMAGES - 2
    assert not bool((reached & ~planted).any())
    assert cost.forwards >= IMAGES * (POINTS + 1)


def test_points_are_planted_where_they_are_said_to_be(honest: Trace, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image and the inner points on one side, the planted point, at distance eps, on the other, with a logit of one."""
    from advcli.evaluation import active

    seen: list[Tensor] = []
    x, draws = sample.images[:1], sample.draws.select(torch.tensor([0]))

    def watched(points: Tensor) -> ModelOutput:
        seen.append(points)
        return honest(points)

    head = active._head(watched, THREAT, x, draws, Cost())
    assert head is not None
    (points,) = seen
    distance = THREAT.distance(points, x.expand_as(points))
    assert float(distance[0]) == 0
    assert bool((distance[:-1] <= 0.95 * THREAT.eps + 1e-6).all())
    score = (honest(points).features.mean((2, 3)) * head[0]).sum(1) + head[1]
    assert bool((score[:-1] < 0).all())
    assert float(score[-1]) == pytest.approx(1, abs=1e-2)
    assert float(score[:-1].max()) == pytest.approx(-1, abs=1e-2)


def test_a_network_without_features_is_not_tested(sample: Sample) -> None:
    def constant(x: Tensor) -> ModelOutput:
        return ModelOutput(x.new_zeros(len(x), 10), (), x.new_zeros(len(x), 7), x)

    planted, reached = active_test(constant, THREAT, sample.images, sample.draws, Cost())
    assert not planted.any()
    assert not reached.any()
