"""AutoAttack's sub-attacks behind advcli's interface: the right ones, inside the ball, counted, and leaving no trace."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advcli.attacks import Cost, Found, Judge, Surrogate, Threat
from advcli.attacks.reference import Part, ReferenceAttack, standard_parts
from advcli.data import batches, load_test, to_float
from advcli.draws import Draws
from advcli.models import Architecture, Network, build
from advcli.recipe import schema
from advcli.training.cost import passes

DIGITS = schema.Data(name="digits", validation=0)
LINF, L2 = Threat("linf", 0.08), Threat("l2", 0.5)


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        (2, ("apgd-ce", "fab-t", "square")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        (4, ("apgd-ce", "apgd-t", "fab-t", "square")),
        (10, ("apgd-ce", "apgd-t", "fab-t", "square")),
    ],
)
def test_standard_parts(classes: int, parts: tuple[str, ...]) -> None:
    assert standard_parts(classes) == parts


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_settings_are_those_of_the_standard_version(classes: int, norm: str) -> None:
    """Compared with the package's own `standard`, targets limited to the classes that there are."""
    from pyautoattack import AutoAttack

    standard = AutoAttack(None, norm=norm, eps=0.1, version="standard", seed=0)
    threat = Threat({"Linf": "linf", "L2": "l2"}[norm], 0.1)
    for part in standard_parts(classes):
        ours = ReferenceAttack(threat, part, classes)._adversary(None, 0, torch.device("cpu"))
        assert ours.attacks_to_run == [part]
        name = {"apgd-ce": "apgd", "apgd-dlr": "apgd", "apgd-t": "apgd_targeted", "fab-t": "fab", "square": "square"}[part]
        settings, expected = vars(getattr(ours, name)), vars(getattr(standard, name))
        plain = {key for key, value in expected.items() if isinstance(value, (int, float, str))} - {"n_target_classes", "device"}
        assert {key: settings[key] for key in plain} == {key: expected[key] for key in plain}
        if part in ("apgd-t", "fab-t"):
            assert settings["n_target_classes"] == min(9, classes - 1)


def trained(classes: int) -> Network:
    """Two epochs on the digits below `classes`: right on most, and fragile. Frozen, as whoever runs a suite has it."""
    split, _ = load_test(DIGITS, "train")
    split = split.take(torch.nonzero(split.labels < classes)[:, 0])
    network = build(Architecture("small-cnn", 0.25, classes, 1, 8), seed=0).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for batch in batches(split, batch_size=32, seed=0, epoch=epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def networks() -> dict[int, Network]:
    return {classes: trained(classes) for classes in (2, 3, 10)}


def examples(network: Network, n: int) -> tuple[Tensor, Tensor]:
    split, _ = load_test(DIGITS)
    split = split.take(torch.nonzero(split.labels < network.num_classes)[:, 0])
    return to_float(split.images[:n]), split.labels[:n]


def attack(network: Network, part: Part, threat: Threat, n: int, cost: Cost | None = None, seed: int = 0) -> Found:
    (x, y), cost = examples(network, n), cost or Cost()
    judge, draws = Judge(network, chunk=n, cost=cost), Draws(seed, torch.arange(n), part)
    return ReferenceAttack(threat, part, network.num_classes)(Surrogate(network.trace, cost), judge, x, y, draws, {})


RUNS = [
    (10, "apgd-ce", LINF, 8),
    (10, "apgd-ce", L2, 8),
    (10, "apgd-t", LINF, 8),
    (10, "fab-t", LINF, 4),
    (10, "fab-t", L2, 3),
    pytest.param(10, "square", LINF, 4, marks=pytest.mark.slow),
    (3, "apgd-ce", LINF, 4),
    (3, "apgd-dlr", LINF, 8),
    (3, "fab-t", LINF, 4),
    (2, "apgd-ce", L2, 4),
    (2, "fab-t", LINF, 4),
]


@pytest.mark.parametrize(("classes", "part", "threat", "n"), RUNS)
def test_parts_run_inside_the_ball_and_are_judged_and_counted(
    classes: int, part: Part, threat: Threat, n: int, networks: dict[int, Network]
) -> None:
    network, cost = networks[classes], Cost()
    with passes(network) as seen:
        found = attack(network, part, threat, n, cost)
    (x, y), judge = examples(network, n), Judge(network, chunk=n)
    assert bool((found.x_adv >= 0).all())
    assert bool((found.x_adv <= 1).all())
    assert bool((threat.distance(found.x_adv.double(), x.double()) <= threat.eps + 2.0**-22).all())  # float32 rounds x + delta
    assert torch.equal(found.broken, judge.decide(found.x_adv, y))
    assert torch.equal(found.margins, judge.margins(found.x_adv, y))
    assert torch.equal(found.steps, torch.where(found.broken, 0, -1))
    assert bool(found.broken[judge.decide(x, y)].all())  # what was wrong from the start stays broken
    assert cost == seen
    assert cost.forwards > 100 * int((~judge.decide(x, y)).sum())
    assert (cost.backwards == 0) == (part == "square")
    assert not found.x_adv.requires_grad


def test_stronger_than_the_clean_image_and_dependent_on_the_ball(networks: dict[int, Network]) -> None:
    """Almost nothing falls in a tiny ball, everything in a huge one: the search itself is run, and with this eps."""
    fallen = [int(attack(networks[10], "apgd-ce", Threat("linf", eps), 8).broken.sum()) for eps in (1e-4, 0.5)]
    x, y = examples(networks[10], 8)
    assert fallen[0] == int((networks[10](x).argmax(1) != y).sum())
    assert fallen[1] == 8


def generators() -> list[Any]:
    return [torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


@pytest.mark.parametrize("part", ["apgd-ce", "fab-t"])
def test_global_generators_and_logging_are_left_alone(part: Part, networks: dict[int, Network]) -> None:
    logger = logging.getLogger("auto-attack")
    before = generators(), logger.disabled, logger.level, list(logger.handlers), logging.root.level, list(logging.root.handlers)
    attack(networks[3], part, LINF, 2)
    assert (generators(), logger.disabled, logger.level, list(logger.handlers), logging.root.level, list(logging.root.handlers)) == before
    logger.disabled = True
    try:
        attack(networks[3], "apgd-ce", LINF, 2)
        assert logger.disabled
    finally:
        logger.disabled = False


def test_a_debuggers_trace_function_survives(networks: dict[int, Network]) -> None:
    """The package's check for dynamic defences sets one of its own; coverage and debuggers live on theirs."""

    def trace(frame: Any, event: str, argument: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        attack(networks[3], "apgd-ce", LINF, 2)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace


def test_nothing_is_printed(networks: dict[int, Network], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    attack(networks[3], "apgd-dlr", LINF, 2)
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0


def test_the_seed_decides_and_nothing_else(networks: dict[int, Network]) -> None:
    first = attack(networks[10], "apgd-ce", LINF, 8)
    torch.manual_seed(1)
    assert torch.equal(attack(networks[10], "apgd-ce", LINF, 8).x_adv, first.x_adv)
    other = attack(networks[10], "apgd-ce", LINF, 8, seed=1)
    assert first.broken.any()
    assert not torch.equal(other.x_adv, first.x_adv)
