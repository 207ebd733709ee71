"""Targets by their estimated distance: exact where the network is linear, counted, and the same in any company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from advcli.attacks import Apgd, Cost, Judge, Surrogate, Threat
from advcli.attacks.pool import Task, stream
from advcli.attacks.targets import CANDIDATES, by_distance
from advcli.draws import Draws
from advcli.models import ModelOutput

SHAPE, K, N = (1, 3, 4), 6, 11
GENERATOR = torch.Generator().manual_seed(3)
# Classes of very different steepness, so that the likeliest is often not the nearest.
WEIGHT = torch.randn(12, K, generator=GENERATOR) * torch.tensor([1.0, 9.0, 0.3, 4.0, 1.0, 2.0])
THREATS = (Threat("linf", 0.1), Threat("l2", 0.3))


def model(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT


def surrogate(cost: Cost | None = None) -> Surrogate:
    return Surrogate(lambda x: ModelOutput(model(x), (), x, x), cost)


def task(n: int = N) -> Task:
    x = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1))[:n]
    logits = model(x)
    return Task(lambda pick: x[pick], logits.argmax(1), Draws(0, torch.arange(n), "t"), {"logits": logits})


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_a_linear_network_s_boundaries_are_met_in_order(threat: Threat) -> None:
    work = task()
    order = by_distance(surrogate(), threat, work, chunk=4)
    x = work.images(torch.arange(N))
    assert order.shape == (N, K - 1)
    differs = 0
    for row, (point, label) in enumerate(zip(x.flatten(1).double(), work.labels.tolist(), strict=True)):
        distances = {}
        for target in set(range(K)) - {label}:
            w = (WEIGHT[:, label] - WEIGHT[:, target]).double()
            # the smallest move that reaches w . z = 0: |w . z| over the dual norm
            distances[target] = float(w @ point) / float(w.abs().sum() if threat.norm == "linf" else w.norm())
        assert order[row].tolist() == sorted(distances, key=lambda target: distances[target])
        likeliest = work.condition["logits"][row].argsort(descending=True).tolist()[1:]
        differs += order[row].tolist() != likeliest
    assert differs > N / 3, "on this network the two orders are not the same"


def test_only_the_likeliest_are_ranked_and_every_look_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advcli.attacks.targets.CANDIDATES", 3)
    assert CANDIDATES == 30
    cost, work = Cost(), task(8)
    order = by_distance(surrogate(cost), THREATS[0], work, chunk=4)
    likeliest = work.condition["logits"].argsort(dim=1, descending=True)[:, 1:4]
    assert torch.equal(order.sort(1).values, likeliest.sort(1).values)
    assert (cost.forwards, cost.backwards) == (24, 24)


def test_companions_and_emptiness_have_no_say() -> None:
    alone = by_distance(surrogate(), THREATS[0], task(3), chunk=4)
    assert torch.equal(alone, by_distance(surrogate(), THREATS[0], task(), chunk=4)[:3])
    assert len(by_distance(surrogate(), THREATS[0], task(0), chunk=4)) == 0


def test_ranked_apgd_goes_by_that_order_and_accounts_for_it() -> None:
    """Every run of a robust example follows its own target; the looks of the ranking are in what the example took."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, K, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(WEIGHT.T)  # type: ignore[union-attr,operator]
    judge = Judge(network.eval(), chunk=4, bound=1e-5)
    weak = replace(THREATS[0], eps=1e-5)
    plain = Apgd(weak, "targeted", steps=3, targets=2)
    work = task(4)
    seen = {attack.ranked: list(stream(attack, surrogate(), judge, work)) for attack in (plain, replace(plain, ranked=True))}
    for ranked, attempts in seen.items():
        final = torch.cat([attempt.forwards[attempt.final] for attempt in attempts])
        assert final.tolist() == [2 * 4 + (K - 1) * ranked] * 4
    order = by_distance(surrogate(), weak, work, chunk=4)
    state = plain.begin(work.images(torch.arange(4)), work.labels, work.draws, {**work.condition, "order": order}, torch.ones(4).long())
    assert torch.equal(state["target"], order[:, 1])
