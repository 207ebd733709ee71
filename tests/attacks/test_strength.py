"""AutoAttack's parts as written here against the authors' package, on the same images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advcli.attacks import Apgd, Fab, Judge, Square, Surrogate, Threat
from advcli.attacks.pool import PooledAttack
from advcli.attacks.reference import Part, ReferenceAttack
from advcli.data import Moment, batches, load_test, to_float
from advcli.draws import Draws
from advcli.models import Architecture, Network, build
from advcli.objectives import build_objective
from advcli.recipe import load, schema
from advcli.training.step import Step

THREATS = {"linf": Threat("linf", 0.15), "l2": Threat("l2", 0.9)}
N = {"apgd-ce": 48, "apgd-t": 32, "fab-t": 16, "square": 12}


@pytest.fixture(scope="module")
def bench() -> tuple[Network, Tensor, Tensor]:
    """Two epochs of adversarial training on the embedded digits, and images that it classifies correctly."""
    digits = schema.Data(name="digits", validation=0)
    train, _ = load_test(digits, "train")
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8), seed=0).train()
    objective = build_objective(load("quickstart", ["craft.steps=3", "craft.step_size=0.07"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for batch in batches(train, batch_size=64, seed=0, epoch=epoch):
            Step(network, objective, optimizer)(batch, Moment(0, epoch, 0, 0.0))
    network.eval().requires_grad_(False)
    test, _ = load_test(digits)
    right = torch.nonzero(~Judge(network, chunk=360).decide(to_float(test.images), test.labels))[:48, 0]
    return network, to_float(test.images[right]), test.labels[right]


def ours(part: Part, threat: Threat) -> PooledAttack:
    parts = {"apgd-ce": Apgd(threat, "ce"), "apgd-t": Apgd(threat, "dlr-targeted"), "fab-t": Fab(threat), "square": Square(threat)}
    return parts[part]


@pytest.mark.slow
@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("part", N)
def test_parts_break_what_the_package_breaks(part: Part, norm: str, bench: tuple[Network, Tensor, Tensor]) -> None:
    """At least as many, less the images on which two seeds of the package disagree."""
    network, (x, y), threat = bench[0], (part_[: N[part]] for part_ in bench[1:]), THREATS[norm]
    judge, surrogate = Judge(network, chunk=N[part]), Surrogate(network.trace)
    draws = [Draws(seed, torch.arange(len(x)), part) for seed in (0, 1)]
    first, second = (ReferenceAttack(threat, part, 10)(surrogate, judge, x, y, d, {}).broken for d in draws)
    theirs = [int(first.sum()), int(second.sum())]
    found = ours(part, threat)(surrogate, judge, x, y, draws[0], {})
    assert int(found.broken.sum()) >= max(theirs) - int((first != second).sum())
    assert 0 < min(theirs) < len(x)
