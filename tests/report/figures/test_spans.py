"""Class activation maps and attribution spans against hand counts, torch, and the networks' own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advcli.models import Architecture, build
from advcli.recipe import schema
from advcli.report.figures.spans import activation_maps, coverage, erase, span, upsample

GATES = {
    "plain": (),
    "reverse-attention": (schema.ReverseAttention(name="reverse-attention"),),
    "attribution-span": (schema.AttributionSpan(name="attribution-span"),),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("arch", ["small-cnn", "resnet18"])
def test_the_mean_of_a_map_and_the_bias_are_the_logit(arch: str, cells: int, gate: str) -> None:
    """sum_c w_c mean(A_c) + b = mean(sum_c w_c A_c) + b, in float64, through gates and with pooling in cells."""
    network = build(Architecture(arch, 0.125, 5, 3, 16, cells=cells, gates=GATES[gate]), seed=3).double().eval()
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.linear.bias.normal_(generator=torch.Generator().manual_seed(1))
        output = network.trace(x)
    for label in range(5):
        weights = np.broadcast_to(network.linear.weight[label].detach().numpy(), (4, network.linear.weight.shape[1]))
        maps = activation_maps(output.features.numpy(), weights, cells)
        logits = maps.mean((1, 2)) + network.linear.bias[label].item()
        np.testing.assert_allclose(logits, output.logits[:, label].numpy(), rtol=1e-10, atol=1e-12)


def test_a_map_by_hand() -> None:
    features = np.array([[[[1.0, 2.0]], [[0.0, 4.0]]]])  # (1, 2, 1, 2)
    np.testing.assert_array_equal(activation_maps(features, np.array([[3.0, -1.0]])), [[[3.0, 2.0]]])
    with pytest.raises(ValueError, match="do not divide"):
        activation_maps(features, np.ones((1, 8)), 2)


TOY = {
    "one of four, half itself is outside": ([[4.0, 2.0], [1.0, -3.0]], 1 / 4),
    "just over half is inside": ([[4.0, 2.0001], [1.0, 2.0]], 2 / 4),
    "even": ([[1.0, 1.0], [1.0, 1.0]], 1.0),
    "nothing speaks for the class": ([[-1.0, -2.0], [-3.0, -4.0]], 0.0),
    "zero": ([[0.0, 0.0], [0.0, 0.0]], 0.0),
}


@pytest.mark.parametrize("name", TOY)
def test_coverage_by_hand(name: str) -> None:
    values, expected = TOY[name]
    assert coverage(np.array([values])).tolist() == [expected]


def test_coverage_does_not_depend_on_scale() -> None:
    maps = np.random.default_rng(0).normal(size=(50, 4, 4))
    np.testing.assert_array_equal(coverage(7 * maps), coverage(maps))


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (3, 4), (2, 2)])
def test_upsampling_is_bilinear_as_torch_has_it(size: tuple[int, int]) -> None:
    maps = np.random.default_rng(1).normal(size=(2, 3, 4))
    if size == (2, 2):  # down is never asked for, and torch then does not average
        maps = maps[:, :2, :2]
    expected: Any = F.interpolate(torch.from_numpy(maps)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(upsample(maps, size), expected.numpy(), atol=1e-12)


def test_erasing_blacks_out_the_mask_in_every_channel() -> None:
    images = np.full((1, 3, 2, 2), 0.5)
    gone = span(np.array([[[4.0, 1.0], [1.0, 3.0]]]))
    np.testing.assert_array_equal(erase(images, gone), np.broadcast_to([[0.0, 0.5], [0.5, 0.0]], (1, 3, 2, 2)))
    assert images.min() == 0.5
