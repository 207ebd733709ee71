"""Which classes open a gate: each rule against a loop over examples, and the identities between rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advcli.gates import deployed, forced, labels, mixture, open_gate, soft, straight_through
from advcli.gates.selection import by_site, joined

N, K = 9, 5
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def aux(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def classes(seed: int = 0, shape: tuple[int, ...] = (N,)) -> Tensor:
    return torch.randint(K, shape, generator=torch.Generator().manual_seed(seed))


def plain_hot(k: int) -> list[float]:
    return [1.0 if j == k else 0.0 for j in range(K)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deployed_takes_the_row_of_the_largest_logit(dtype: torch.dtype) -> None:
    s = deployed("any", aux(dtype))
    expected = [plain_hot(max(range(K), key=lambda k: float(row[k]))) for row in aux(dtype)]
    assert s.dtype == dtype
    assert s.tolist() == expected


def test_forcing_the_gates_own_decision_is_deployment() -> None:
    assert torch.equal(forced(aux().argmax(1))("any", aux()), deployed("any", aux()))


def test_open_gate_selects_nothing() -> None:
    assert open_gate("any", aux()) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_give_their_own_row_whatever_the_gate_thinks(dtype: torch.dtype) -> None:
    y = classes()
    s = labels(y)("any", aux(dtype))
    assert s.dtype == dtype
    assert s.tolist() == [plain_hot(int(k)) for k in y]
    assert torch.equal(s, labels(y)("other", aux(dtype, seed=1)))


def test_mixture_is_the_weighted_sum_of_rows() -> None:
    """Weights that float32 cannot hold; several classes for one weight share it equally, and count as often as they are named."""
    y, many = classes(1), classes(2, (N, 3))
    s = mixture([(0.6, y), (0.3, many), (0.1, many[:, 0])])("any", aux())
    for i in range(N):
        for k in range(K):
            named = sum(1 for j in range(3) if int(many[i, j]) == k)
            expected = 0.6 * (int(y[i]) == k) + 0.3 / 3 * named + 0.1 * (int(many[i, 0]) == k)
            assert float(s[i, k]) == pytest.approx(expected, rel=0, abs=1e-10)
    torch.testing.assert_close(s.sum(1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixture_speaks_the_gates_precision(dtype: torch.dtype) -> None:
    s = mixture([(0.5, classes(1)), (0.5, classes(2, (N, 2)))])("any", aux(dtype))
    assert s.dtype == dtype
    assert torch.equal(s.double(), mixture([(0.5, classes(1)), (0.5, classes(2, (N, 2)))])("any", aux()))


def test_soft_is_a_softmax_at_its_temperature() -> None:
    for t in (0.1, 1.0, 7.0):
        expected = (aux() / t).exp() / (aux() / t).exp().sum(1, keepdim=True)
        torch.testing.assert_close(soft(t)("any", aux()), expected, rtol=0, atol=1e-12)


def test_soft_tends_to_deployed_as_the_temperature_falls() -> None:
    distance = [float((soft(t)("any", aux()) - deployed("any", aux())).abs().max()) for t in (10, 1, 0.1, 0.01, 1e-3)]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > 0.5
    assert distance[-1] < 1e-6


def test_a_gradient_passes_soft_and_not_deployed() -> None:
    a, direction = aux().requires_grad_(True), torch.randn(N, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((soft(0.5)("any", a) * direction).sum(), a)
    assert gradient.abs().min() > 1e-6
    assert not deployed("any", a).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0, 3.0])
def test_straight_through_has_the_value_of_deployed_and_the_gradient_of_soft(dtype: torch.dtype, temperature: float) -> None:
    """To the bit: what an attack follows backward, and what it sees, is the deployed gate."""
    a = torch.cat([aux(dtype, seed) for seed in range(50)]).requires_grad_(True)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    value, smooth = straight_through(temperature)("any", a), soft(temperature)("any", a)
    assert torch.equal(*(torch.autograd.grad((s * direction).sum(), a)[0] for s in (value, smooth)))
    assert torch.equal(value.detach(), deployed("any", a))


def test_forced_classes_hold_everywhere_or_site_by_site() -> None:
    """Sites that a mapping does not name open as deployed."""
    here, there = classes(1), classes(2)
    assert torch.equal(forced(here)("a", aux()), labels(here)("a", aux()))
    rule = forced({"a": here, "b": there})
    assert torch.equal(rule("a", aux()), labels(here)("a", aux()))
    assert torch.equal(rule("b", aux()), labels(there)("b", aux()))
    assert torch.equal(rule("c", aux()), deployed("c", aux()))


def test_by_site_gives_each_site_its_rule_and_the_others_deployment() -> None:
    y = classes(1)
    rule = by_site({"a": labels(y), "b": open_gate})
    assert torch.equal(rule("a", aux()), labels(y)("a", aux()))
    assert rule("b", aux()) is None
    assert torch.equal(rule("c", aux()), deployed("c", aux()))


def test_joined_rules_each_see_their_own_rows() -> None:
    y = classes(1)
    s = joined(labels(y[:4]), soft(0.5), 4)("any", aux())
    assert torch.equal(s[:4], labels(y[:4])("any", aux()[:4]))
    assert torch.equal(s[4:], soft(0.5)("any", aux()[4:]))
    assert joined(open_gate, open_gate, 4)("any", aux()) is None
    for pair in ((open_gate, deployed), (deployed, open_gate)):
        with pytest.raises(ValueError, match="opens the gate at any"):
            joined(*pair, 4)("any", aux())
