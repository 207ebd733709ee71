"""Who is paired with whom: permutations and partners of another class, their rules, their distribution and their keys."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import Tensor

from advcli.draws import Draws
from advcli.gates.pairing import others, permutation


def draws(n: int, step: int = 0, seed: int = 0, purpose: str = "test") -> Draws:
    return Draws(seed, 7 + 3 * torch.arange(n), purpose, step)


class Fixed:
    """Draws whose every value is set: the ends of [0, 1) too."""

    def __init__(self, n: int, **values: float) -> None:
        self.n, self.values = n, values

    def sub(self, name: str) -> Fixed:
        return Fixed(self.n, value=self.values[name])

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full((self.n, *shape), self.values["value"], dtype=torch.float32)


@pytest.mark.parametrize("n", [1, 2, 7, 128])
def test_permutation_is_one_and_a_function_of_its_key(n: int) -> None:
    order = permutation(draws(n))
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(draws(n)))
    if n > 2:
        changed = (draws(n, step=1), draws(n, seed=1), draws(n, purpose="else"))
        assert all(not torch.equal(order, permutation(other)) for other in changed)


def test_permutations_are_uniform() -> None:
    """All 24 orders of four examples as often, over 1200 steps."""
    seen = Counter(tuple(permutation(draws(4, step)).tolist()) for step in range(1200))
    assert set(seen) == set(permutations(range(4)))
    assert stats.chisquare(list(seen.values())).pvalue > 0.01


@pytest.mark.parametrize("labels", [[0, 1], [3, 3, 3, 8], [0, 1, 2, 3, 4], [5, 0, 5, 0, 9, 9, 9, 2], [0] * 50 + [1] * 3 + [7]])
def test_a_partner_is_of_another_class(labels: list[int]) -> None:
    y = torch.tensor(labels)
    for step in range(30):
        partner, exists = others(y, draws(len(y), step))
        assert bool(exists.all())
        assert bool((y[partner] != y).all())


@pytest.mark.parametrize("labels", [[4], [4, 4], [0] * 9])
def test_where_there_is_one_class_nobody_has_a_partner(labels: list[int]) -> None:
    partner, exists = others(torch.tensor(labels), draws(len(labels)))
    assert not exists.any()
    assert partner.tolist() == list(range(len(labels))), "an image that exists, so that passes run on it"


def test_classes_come_uniformly_and_examples_uniformly_within_them() -> None:
    """Class sizes 1, 2, 3 and 6: partners of one example, over 900 steps, are 1/3 a class, whatever its size."""
    y = torch.tensor([2, 0, 5, 2, 5, 5, 5, 9, 5, 9, 9, 5])
    chosen = torch.stack([others(y, draws(len(y), step))[0] for step in range(900)])
    for anchor in (0, 1, 2, 7):
        rest = [c for c in (0, 2, 5, 9) if c != int(y[anchor])]
        members = {c: [i for i in range(len(y)) if int(y[i]) == c] for c in rest}
        seen = Counter(chosen[:, anchor].tolist())
        observed = [seen[i] for c in rest for i in members[c]]
        expected = [900 / 3 / len(members[c]) for c in rest for _ in members[c]]
        assert sum(observed) == 900
        assert stats.chisquare(observed, expected).pvalue > 0.005, f"partners of example {anchor}"


def test_partners_are_drawn_example_by_example() -> None:
    """Not one shift for the whole batch: two examples of one class choose independently."""
    y = torch.tensor([0, 0, 1, 2, 3])
    chosen = torch.stack([others(y, draws(5, step))[0] for step in range(600)])
    both = (chosen[:, 0] == chosen[:, 1]).float().mean()
    assert float(both) == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("first", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("second", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_draws_stay_inside_the_other_classes(first: float, second: float) -> None:
    y = torch.tensor([1, 0, 2, 2, 0, 1, 1, 2])
    partner, exists = others(y, Fixed(8, **{"class": first, "example": second}))  # type: ignore[arg-type]
    assert bool(exists.all())
    assert bool((y[partner] != y).all())
    expected_class = (y + (1 if first == 0 else 2)) % 3
    assert torch.equal(y[partner], expected_class)
    members = [[i for i in range(8) if int(y[i]) == int(c)] for c in expected_class]
    assert partner.tolist() == [m[0 if second == 0 else -1] for m in members]
