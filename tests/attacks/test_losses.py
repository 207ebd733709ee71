"""The losses against their formulas, written out one number at a time in Python's own floats."""

import math

import pytest
import torch
from torch import Tensor

from advcli.attacks.losses import attack_loss, cross_entropy, kl, margin, over_heads, reference_of, targeted
from advcli.models import ModelOutput

N, K = 6, 5
Y = torch.tensor([0, 1, 2, 3, 4, 0])
TARGET = torch.tensor([1, 0, 4, 2, 3, 3])


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def output(heads: int, seed: int = 0) -> ModelOutput:
    return ModelOutput(logits(seed), tuple(logits(seed + 1 + h) for h in range(heads)), torch.zeros(N, 1, 1, 1), torch.zeros(N, 1, 1, 1))


def softmax(z: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def plain_ce(z: list[float], y: int, target: int, reference: list[float]) -> float:
    return -math.log(softmax(z)[y])


def plain_margin(z: list[float], y: int, target: int, reference: list[float]) -> float:
    return max(v for k, v in enumerate(z) if k != y) - z[y]


def plain_targeted(z: list[float], y: int, target: int, reference: list[float]) -> float:
    return z[target] - z[y]


def plain_kl(z: list[float], y: int, target: int, reference: list[float]) -> float:
    return math.fsum(p * (math.log(p) - math.log(q)) for p, q in zip(softmax(reference), softmax(z), strict=True))


PLAIN = {"ce": plain_ce, "margin": plain_margin, "targeted": plain_targeted, "kl": plain_kl}


def plain(name: str, z: Tensor, reference: Tensor) -> Tensor:
    rows = zip(z.tolist(), Y.tolist(), TARGET.tolist(), reference.tolist(), strict=True)
    return torch.tensor([PLAIN[name](*row) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("name", PLAIN)
def test_heads_losses_are_their_formulas(name: str) -> None:
    z, reference = logits(0), logits(9)
    ours = {"ce": lambda: cross_entropy(z, Y), "margin": lambda: margin(z, Y), "targeted": lambda: targeted(z, Y, TARGET)}
    value = kl(z, reference) if name == "kl" else ours[name]()
    torch.testing.assert_close(value, plain(name, z, reference), rtol=0, atol=1e-10)


@pytest.mark.parametrize("aux_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("heads", [0, 1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_attack_losses_spread_over_heads(name: str, heads: int, aux_weight: float) -> None:
    """The decision's loss + weight * the mean of the auxiliary heads'; head goes with head in the KL."""
    out, clean = output(heads), output(heads, seed=20)
    condition = {"target": TARGET, "reference": reference_of(clean)}
    expected = plain(name, out.logits, clean.logits)
    if heads:
        aux = [plain(name, z, reference) for z, reference in zip(out.aux_logits, clean.aux_logits, strict=True)]
        expected = expected + aux_weight * sum(aux) / heads
    torch.testing.assert_close(attack_loss(name, aux_weight)(out, Y, condition), expected, rtol=0, atol=1e-10)


def test_over_heads_pairs_outputs_head_by_head() -> None:
    first, second = output(2, seed=0), output(2, seed=10)
    value = over_heads(lambda a, b: (a - 2 * b).sum(1), first, second, aux_weight=0.5)
    pairs = [(first.logits, second.logits), *zip(first.aux_logits, second.aux_logits, strict=True)]
    parts = [a.sum(1) - 2 * b.sum(1) for a, b in pairs]
    torch.testing.assert_close(value, parts[0] + 0.25 * (parts[1] + parts[2]), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        over_heads(lambda a, b: (a - b).sum(1), first, output(1), aux_weight=0.5)


@pytest.mark.parametrize("heads", [0, 2])
def test_reference_holds_all_heads_in_order_and_no_graph(heads: int) -> None:
    out = output(heads)
    out.logits.requires_grad_(True)
    reference = reference_of(out)
    assert reference.shape == (N, 1 + heads, K)
    assert not reference.requires_grad
    for h, z in enumerate((out.logits, *out.aux_logits)):
        assert torch.equal(reference[:, h], z.detach())


def test_kl_and_its_gradient_vanish_at_the_reference() -> None:
    """Why TRADES starts off the clean image. Elsewhere the KL is positive (Gibbs)."""
    z = logits(0).requires_grad_(True)
    value = kl(z, z.detach())
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.abs().max() < 1e-15
    assert gradient.abs().max() < 1e-15
    assert bool((kl(logits(1), z.detach()) > 0).all())


def test_margin_of_a_tie_is_zero_and_only_then() -> None:
    z = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [1.0, 1.0 + 1e-9, 0.0], [3.0, 1.0, 1.0]], dtype=torch.float64)
    value = margin(z, torch.tensor([0, 1, 0, 0]))
    torch.testing.assert_close(value, torch.tensor([0.0, 0.0, 1e-9, -2.0], dtype=torch.float64), rtol=0, atol=1e-15)


def test_margin_is_positive_exactly_where_another_class_wins() -> None:
    z = logits(4)
    assert torch.equal(margin(z, Y) > 0, z.argmax(1) != Y)


@pytest.mark.parametrize("name", ["ce", "margin", "targeted"])
def test_losses_grow_as_the_label_loses(name: str) -> None:
    out = output(0)
    lower = out.logits - 0.1 * torch.nn.functional.one_hot(Y, K)
    fn = attack_loss(name)
    assert bool((fn(out._replace(logits=lower), Y, {"target": TARGET}) > fn(out, Y, {"target": TARGET})).all())


def test_extreme_logits_stay_finite_and_keep_their_gradient() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0])
    for value in (cross_entropy(z, y), margin(z, y), kl(z, torch.tensor([[-1e4, 1e4, 0.0]] * 2))):
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(torch.autograd.grad(value.sum(), z, retain_graph=True)[0]).all())
