"""Schedules against plain definitions, their ends, and the drops that papers print."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from advcli.recipe.schema import Schedule
from advcli.training.schedule import factor


def schedule(name: str, epochs: int, **settings: Any) -> Any:
    return TypeAdapter(Schedule).validate_python({"name": name, "epochs": epochs, **settings})


def factors(made: Any, per_epoch: int) -> list[float]:
    return [factor(made, step, per_epoch) for step in range(made.epochs * per_epoch)]


def plain_cosine(epochs: int, warmup: float, per_epoch: int) -> list[float]:
    """(t + 1) / w in the warm-up of w steps, then (1 + cos(pi s)) / 2, s from 0 over the steps that are left."""
    w, total = warmup * per_epoch, epochs * per_epoch
    return [min(1.0, (t + 1) / w) if t < w else (1 + math.cos((t - w) / (total - w) * math.pi)) / 2 for t in range(total)]


def plain_one_cycle(epochs: int, peak: float, per_epoch: int) -> list[float]:
    """Straight from 0 before the first step to 1 at the peak's step, and straight to 0 after the last."""
    total = epochs * per_epoch
    top = peak * total
    return [(t + 1) / top if t + 1 <= top else 1 - (t + 1 - top) / (total + 1 - top) for t in range(total)]


@pytest.mark.parametrize(("epochs", "warmup", "per_epoch"), [(10, 0, 7), (10, 2, 7), (3, 0.5, 10), (5, 0.3, 7), (1, 0, 1)])
def test_cosine(epochs: int, warmup: float, per_epoch: int) -> None:
    ours = factors(schedule("cosine", epochs, warmup=warmup), per_epoch)
    assert ours == pytest.approx(plain_cosine(epochs, warmup, per_epoch), abs=1e-12)


@pytest.mark.parametrize(("epochs", "peak", "per_epoch"), [(10, 0.4, 10), (40, 0.4, 20), (3, 0.37, 7), (2, 0.5, 1), (1, 0.01, 5)])
def test_one_cycle(epochs: int, peak: float, per_epoch: int) -> None:
    ours = factors(schedule("one-cycle", epochs, peak=peak), per_epoch)
    assert ours == pytest.approx(plain_one_cycle(epochs, peak, per_epoch), abs=1e-12)


PUBLISHED = [
    # method; points as the authors' code has them: learning rate from the start of an epoch, counted from 1
    ("MART, ResNet-18", 0.01, 120, {1: 1, 75: 0.1, 90: 0.01, 100: 0.001}, {1: 0.01, 74: 0.01, 75: 0.001, 90: 1e-4, 99: 1e-4, 100: 1e-5}),
    ("TRADES", 0.1, 76, {1: 1, 75: 0.1}, {1: 0.1, 74: 0.1, 75: 0.01, 76: 0.01}),
    ("bag of tricks", 0.1, 110, {1: 1, 100: 0.1, 105: 0.01}, {99: 0.1, 100: 0.01, 104: 0.01, 105: 0.001, 110: 0.001}),
    ("LBGAT, a smaller first epoch", 0.1, 100, {1: 0.2, 2: 1, 76: 0.1, 91: 0.01}, {1: 0.02, 2: 0.1, 75: 0.1, 76: 0.01, 100: 0.001}),
]


@pytest.mark.parametrize(("method", "rate", "epochs", "points", "expected"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_points_drop_where_the_papers_say(
    method: str, rate: float, epochs: int, points: dict[int, float], expected: dict[int, float]
) -> None:
    """From the first to the last step of each epoch."""
    made = schedule("points", epochs, points=points)
    for epoch, value in expected.items():
        for step in ((epoch - 1) * 390, epoch * 390 - 1):
            assert rate * factor(made, step, 390) == pytest.approx(value)


def test_points_are_read_in_any_order_and_default_to_a_constant() -> None:
    assert factors(schedule("points", 4, points={3: 0.1, 1: 1.0, 2: 0.5}), 2) == [1, 1, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1]
    assert factors(schedule("points", 2), 3) == [1.0] * 6


@given(kind=st.sampled_from(["cosine", "one-cycle"]), epochs=st.integers(1, 12), per_epoch=st.integers(1, 40), part=st.floats(0.01, 0.99))
def test_every_step_moves_the_weights_and_none_jumps(kind: str, epochs: int, per_epoch: int, part: float) -> None:
    """In (0, 1]; the first step as every other; up, then down; no change larger than the steepest slope of the definition."""
    settings = {"warmup": part * epochs} if kind == "cosine" else {"peak": part}
    ours, total = factors(schedule(kind, epochs, **settings), per_epoch), epochs * per_epoch
    assert min(ours) > 0
    assert max(ours) <= 1
    top = ours.index(max(ours))
    assert ours[: top + 1] == sorted(ours[: top + 1])
    assert ours[top:] == sorted(ours[top:], reverse=True)
    up = 1 / (part * total)
    down = math.pi / 2 / (total * (1 - part)) if kind == "cosine" else 1 / (total * (1 - part) + 1)
    assert max((abs(b - a) for a, b in pairwise(ours)), default=0) <= max(up, down) + 1e-9


@pytest.mark.parametrize(("kind", "settings"), [("cosine", {"warmup": 2}), ("one-cycle", {"peak": 0.25})])
def test_ends_of_long_runs(kind: str, settings: dict[str, float]) -> None:
    """Nearly nothing in the first step and in the last; the full rate at the top."""
    ours = factors(schedule(kind, 8, **settings), 1000)
    assert 0 < ours[0] < 1e-3
    assert 0 < ours[-1] < 1e-3
    assert max(ours) == ours[1999] == 1.0
