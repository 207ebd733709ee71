"""Hybrid feature fusion against AGAIN's equations 5 and 6, written out example by example and channel by channel."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from advcli.draws import Draws
from advcli.gates.fusion import hybrid_statistics, mix, statistics
from advcli.gates.pairing import permutation

N, C, H, W = 5, 3, 4, 3
EPS = 1e-5


def draws(n: int = N, step: int = 0, purpose: str = "site", seed: int = 0) -> Draws:
    return Draws(seed, 3 + 2 * torch.arange(n), purpose, step)


def features(n: int = N, seed: int = 0) -> Tensor:
    """Maps whose channels have standard deviations about 0.5 to 2 and means about -2 to 2."""
    generator = torch.Generator().manual_seed(seed)
    size, shift = (torch.rand(n, C, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return (0.5 + 1.5 * size) * torch.randn(n, C, H, W, generator=generator, dtype=torch.float64) + 4 * shift - 2


def plain_mean(channel: Tensor) -> Tensor:
    return sum(channel.flatten()) / channel.numel()


def plain_deviation(channel: Tensor, eps: float = EPS) -> Tensor:
    mean = plain_mean(channel)
    return (sum((value - mean) ** 2 for value in channel.flatten()) / (channel.numel() - 1) + eps).sqrt()


def plain_adain(content: Tensor, style: Tensor, eps: float = EPS) -> Tensor:
    """One channel of AdaIN (Huang, Belongie 2017): the content's shape with the style's statistics."""
    return plain_deviation(style, eps) * (content - plain_mean(content)) / plain_deviation(content, eps) + plain_mean(style)


def plain_fusion(a: Tensor, partner: Tensor, gammas: tuple[float, float, float, float], eps: float = EPS) -> Tensor:
    """Eq. 5 and 6 as printed, with all four statistics: of A, A' and of AdaIN both ways."""
    out = torch.empty_like(a)
    for n in range(a.shape[0]):
        for c in range(a.shape[1]):
            own, other = a[n, c], a[int(partner[n]), c]
            four = (own, other, plain_adain(own, other, eps), plain_adain(other, own, eps))
            mean = sum(g * plain_mean(x) for g, x in zip(gammas, four, strict=True))
            deviation = sum(g * plain_deviation(x, eps) for g, x in zip(gammas, four, strict=True))
            out[n, c] = deviation * (own - plain_mean(own)) / plain_deviation(own, eps) + mean
    return out


def plain_two_way(a: Tensor, partner: Tensor, share: Tensor, eps: float = EPS) -> Tensor:
    """Eq. 6 with the statistics of A and A' alone."""
    rows = []
    for n in range(a.shape[0]):
        for c in range(a.shape[1]):
            own, other = a[n, c], a[int(partner[n]), c]
            mean = share * plain_mean(own) + (1 - share) * plain_mean(other)
            deviation = share * plain_deviation(own, eps) + (1 - share) * plain_deviation(other, eps)
            rows.append(deviation * (own - plain_mean(own)) / plain_deviation(own, eps) + mean)
    return torch.stack(rows).view_as(a)


def partner_of(key: Draws) -> Tensor:
    return permutation(key.sub("partner"))


def shares(steps: range, purpose: str = "site") -> Tensor:
    """The share of each step, read off what the fusion makes of maps with known means; of all examples alike."""
    a, found = features(8), []
    for step in steps:
        key = draws(8, step, purpose)
        other = partner_of(key)
        own_mean, mean = a.mean((2, 3)), hybrid_statistics(key)(a).mean((2, 3))
        moved = other != torch.arange(8)
        each = ((mean - own_mean[other]) / (own_mean - own_mean[other]))[moved]
        assert float(each.max() - each.min()) < 1e-3, "one share for the batch"
        found.append(each.median())
    return torch.stack(found)


def test_statistics_are_means_and_unbiased_deviations_of_each_channel() -> None:
    a = features()
    mean, deviation = statistics(a)
    assert mean.shape == deviation.shape == (N, C, 1, 1)
    for n in range(N):
        for c in range(C):
            assert float(mean[n, c]) == pytest.approx(float(plain_mean(a[n, c])), abs=1e-10)
            assert float(deviation[n, c]) == pytest.approx(float(plain_deviation(a[n, c])), abs=1e-10)


def test_a_map_of_one_pixel_has_no_spread() -> None:
    """And no NaN, nor in the gradient: its fusion is the mixed value."""
    a = features()[:, :, :1, :1].requires_grad_(True)
    mean, deviation = statistics(a)
    assert torch.equal(mean, a)
    torch.testing.assert_close(deviation, torch.full_like(a, math.sqrt(EPS)))
    mixed = mix(a, mean.roll(1, 0), deviation.roll(1, 0), torch.tensor(0.25))
    torch.testing.assert_close(mixed, 0.25 * a + 0.75 * a.roll(1, 0), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(mixed.square().sum(), a)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mix_is_equation_6(share: float) -> None:
    """Value, and gradient through the statistics of both images: nothing is stopped, unlike MixStyle."""
    a, b, partner, s = features().requires_grad_(True), features().requires_grad_(True), torch.tensor([3, 0, 1, 4, 2]), torch.tensor(share)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = mix(a, *(statistic[partner] for statistic in statistics(a)), s)
    theirs = plain_two_way(b, partner, s)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad((x * direction).sum(), leaf)[0] for x, leaf in ((ours, a), (theirs, b))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_the_whole_share_is_the_identity() -> None:
    a = features()
    mean, deviation = statistics(a.flip(0))
    torch.testing.assert_close(mix(a, mean, deviation, torch.tensor(1.0)), a, rtol=0, atol=1e-12)


GAMMAS = [(0.1, 0.2, 0.3, 0.4), (0.7, 0.1, 0.1, 0.1), (0.0, 0.5, 0.5, 0.0), (0.25, 0.25, 0.25, 0.25)]


@pytest.mark.parametrize("gammas", GAMMAS, ids=str)
def test_four_statistics_of_the_paper_are_two(gammas: tuple[float, float, float, float]) -> None:
    """AdaIN(A, A') has the statistics of A', AdaIN(A', A) those of A: gamma 1 and 4 are A's share.

    Exact without the 1e-5 inside the square root. With it the deviation of AdaIN(A, A') is off by
    1e-5 |1 - s'^2 / s^2| / (2 s'): under 2.5e-4 for deviations in [0.3, 3], and the map's values are within 4 deviations.
    """
    a, partner = features(), torch.tensor([1, 2, 3, 4, 0])
    share = torch.tensor(gammas[0] + gammas[3], dtype=torch.float64)
    torch.testing.assert_close(plain_fusion(a, partner, gammas, eps=0.0), plain_two_way(a, partner, share, eps=0.0), rtol=0, atol=1e-12)
    mean, deviation = (statistic[partner] for statistic in statistics(a))
    assert 0.3 < float(statistics(a)[1].min()) < float(statistics(a)[1].max()) < 3
    ours = mix(a, mean, deviation, share)
    torch.testing.assert_close(ours, plain_fusion(a, partner, gammas), rtol=0, atol=1e-3)
    assert float((ours - a).abs().max()) > 0.1 or share == 1


def test_the_fusion_is_the_mix_with_the_drawn_partner() -> None:
    """The share is read off one channel's mean, everything else follows; value and gradient in float64."""
    a, b, key = features().requires_grad_(True), features().requires_grad_(True), draws()
    partner = partner_of(key)
    ours = hybrid_statistics(key)(a)
    n = int((partner != torch.arange(N)).nonzero()[0])
    means = [float(plain_mean(x.detach())) for x in (ours[n, 0], a[n, 0], a[int(partner[n]), 0])]
    share = torch.tensor((means[0] - means[2]) / (means[1] - means[2]), dtype=torch.float64)
    theirs = plain_two_way(b, partner, share)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((x * direction).sum(), leaf)[0] for x, leaf in ((ours, a), (theirs, b))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_shares_follow_beta_2_2() -> None:
    """The sum of two of four spacings of three uniforms; one draw a step, over 800 steps.

    The draws are fixed, so the bound is one that a right distribution misses once in a thousand seeds, and a uniform share always.
    """
    drawn = shares(range(800)).numpy()
    assert stats.kstest(drawn, stats.beta(2, 2).cdf).pvalue > 1e-3
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.var() == pytest.approx(0.05, abs=0.007)
    assert stats.kstest(drawn, "uniform").pvalue < 1e-6, "the test tells Beta(2, 2) from a uniform share"


def test_each_site_and_step_draws_its_own_share() -> None:
    here, there = shares(range(100)), shares(range(100), purpose="elsewhere")
    assert len(set(here.tolist())) == 100
    assert abs(float(torch.corrcoef(torch.stack([here, there]))[0, 1])) < 0.3


def test_equal_keys_give_equal_fusions() -> None:
    a = features()
    assert torch.equal(hybrid_statistics(draws())(a), hybrid_statistics(draws())(a))
    for other in (draws(step=1), draws(seed=1), draws(purpose="elsewhere")):
        assert not torch.equal(hybrid_statistics(draws())(a), hybrid_statistics(other)(a))


def test_an_image_alone_is_its_own_partner() -> None:
    a = features(1)
    torch.testing.assert_close(hybrid_statistics(draws(1))(a), a, rtol=0, atol=1e-5)


def test_the_share_is_the_batchs_not_the_examples() -> None:
    """Other examples, equal step: equal share. So it does not depend on how a batch is spread over processes."""
    a, found = features(2), []
    for offset in range(40):
        key = Draws(0, torch.tensor([offset, offset + 100]), "site", 5)
        if int(partner_of(key)[0]) == 1:
            own, other = (float(a[i, 0].mean()) for i in (0, 1))
            found.append((float(hybrid_statistics(key)(a)[0, 0].mean()) - other) / (own - other))
    assert len(found) > 5
    assert max(found) - min(found) < 1e-4


def test_a_step_of_each_example_is_refused() -> None:
    with pytest.raises(ValueError, match="one number"):
        hybrid_statistics(Draws(0, torch.arange(N), "site", torch.arange(N)))(features())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_dtype_of_features_is_kept(dtype: torch.dtype) -> None:
    fused = hybrid_statistics(draws())(features().to(dtype))
    assert fused.dtype == dtype
    torch.testing.assert_close(fused.double(), hybrid_statistics(draws())(features()), rtol=0.02, atol=0.05)
