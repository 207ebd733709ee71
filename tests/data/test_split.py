"""Stratified orders and parts: balanced prefixes, fixed by the seed, growing without reshuffling."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from advcli.data.split import stratified_order, stratified_part


def worst_excess(labels: Tensor, order: Tensor) -> float:
    """The largest difference, over all prefixes and classes, between a class's count and its proportional share of the prefix."""
    one_hot = torch.nn.functional.one_hot(labels, int(labels.max()) + 1).double()
    counts, size = one_hot[order].cumsum(0), torch.arange(1, len(labels) + 1).double()
    return float((counts - size[:, None] * one_hot.mean(0)).abs().max())


LABELS = {
    "balanced": torch.arange(1000) % 10,
    "sorted": torch.arange(300) // 30,
    "digits": torch.tensor(load_digits().target),
    "two to one": torch.tensor([0, 0, 1] * 50),
    "one class": torch.zeros(20, dtype=torch.int64),
    "one image a class": torch.arange(10),
    "many small classes beside a large one": torch.tensor([0] * 100 + list(range(1, 11))),
}


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("name", LABELS)
def test_every_prefix_is_in_proportion_to_within_one_image_a_class(name: str, seed: int) -> None:
    order = stratified_order(LABELS[name], seed, "test")
    assert order.sort().values.tolist() == list(range(len(order))), "a permutation"
    assert worst_excess(LABELS[name], order) <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_balanced_classes_differ_by_one_image_in_any_prefix(classes: int, each: int, random: object) -> None:
    labels = list(range(classes)) * each
    random.shuffle(labels)  # type: ignore[attr-defined]
    order = stratified_order(torch.tensor(labels), 3, "test")
    counts = torch.nn.functional.one_hot(torch.tensor(labels)[order], classes).cumsum(0)
    assert int((counts.amax(1) - counts.amin(1)).max()) <= 1


def test_the_order_is_a_function_of_labels_seed_and_purpose() -> None:
    labels = LABELS["balanced"]
    order = stratified_order(labels, 5, "a")
    torch.manual_seed(1)
    assert torch.equal(stratified_order(labels, 5, "a"), order)
    assert not torch.equal(stratified_order(labels, 6, "a"), order)
    assert not torch.equal(stratified_order(labels, 5, "b"), order)


def test_within_a_class_the_order_is_random() -> None:
    """Not the order of the file: a part would else be all of the first writers. Rank correlation within five standard errors."""
    labels = LABELS["balanced"]
    order = stratified_order(labels, 0, "test")
    for label in range(10):
        members = order[labels[order] == label].double()
        rank = float(torch.corrcoef(torch.stack([members, torch.arange(100).double()]))[0, 1])
        assert abs(rank) < 5 / 100**0.5


@pytest.mark.parametrize("size", [0, 1, 99, 300])
def test_a_part_and_the_rest_share_out_everything(size: int) -> None:
    labels = LABELS["sorted"]
    part, rest = stratified_part(labels, size, 7, "test")
    assert len(part) == size
    assert torch.cat([part, rest]).sort().values.tolist() == list(range(300))
    assert torch.equal(part, part.sort().values)
    assert torch.equal(rest, rest.sort().values)


def test_a_growing_part_keeps_what_was_in_it() -> None:
    parts = [set(stratified_part(LABELS["digits"], size, 7, "test")[0].tolist()) for size in (10, 50, 51, 400)]
    assert all(small < large for small, large in pairwise(parts))
