"""The work left: what a pool will really do, idle rows included, in calibrated seconds; and that a run's estimate ends at nothing."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from advcli.attacks import Apgd, Cost, Fab, Judge, Pgd, Square, Surrogate, Threat
from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import PooledAttack, Task, stream
from advcli.data import load_test
from advcli.draws import Draws
from advcli.evaluation import run, suites
from advcli.evaluation.engine import evaluate
from advcli.evaluation.entries import Entry
from advcli.evaluation.job import Job, pick
from advcli.evaluation.pace import Pace, measure, slots
from advcli.evaluation.suites import suite
from advcli.models import Architecture, build
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network

LINF = Threat("linf", 1e-6)  # breaks nobody
ATTACKS: dict[str, PooledAttack] = {
    "pgd": Pgd(LINF, attack_loss("ce"), steps=7, step_size=1e-7),
    "apgd-t": Apgd(LINF, "dlr-targeted", steps=5, targets=3),
    "fab": Fab(LINF, steps=5, targets=2),
    "square": Square(LINF, queries=120),
}


def entry(attack: PooledAttack) -> Entry:
    return Entry("one", attack, "one", on="survivors")


@pytest.mark.parametrize("images", [1, 3, 8, 9, 20])
@pytest.mark.parametrize("name", ATTACKS)
def test_slots_are_the_passes_of_a_pool_that_breaks_nobody(name: str, images: int) -> None:
    """Within the judge's padding and, for Square, the end of its last unit."""
    network = build(Architecture("small-cnn", 0.25, 5, 1, 8)).eval().requires_grad_(False)
    x = torch.rand(images, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y, cost = network(x).argmax(1), Cost()
    task = Task(lambda rows: x[rows], y, Draws(0, torch.arange(images), "pace"), {"logits": network(x)})
    attempts = list(stream(ATTACKS[name], Surrogate(network.trace, cost), Judge(network, chunk=8, cost=cost), task))
    assert not any(bool(attempt.found.broken.any()) for attempt in attempts)
    spent, expected = cost.units, slots(entry(ATTACKS[name]), images, 8)
    assert expected * 0.85 <= spent <= expected * 1.35


def test_what_is_left_shrinks_with_what_is_spent_and_with_who_falls() -> None:
    entries = [entry(Pgd(LINF, attack_loss("ce"), steps=7, step_size=1e-7)), entry(Square(LINF, queries=100))]
    pace = Pace(entries, [2.0, 1.0], chunk=4)
    assert pace.left(0, 0, 4, 4) == 2 * 4 * 15 + 4 * 106  # two of Square's blocks begin with a gradient
    assert pace.left(0, 30, 4, 4) == 2 * (4 * 15 - 30) + 4 * 106
    assert pace.left(0, 0, 8, 8) == 2 * pace.left(0, 0, 4, 4)
    assert pace.left(0, 0, 2, 2) == 2 * 4 * 15 + 2 * 106 + 2 * (5 + 4)  # idle rows work too, but for Square's, which look ahead
    assert pace.left(0, 999, 1, 0) == 0
    assert pace.left(1, 0, 0, 0) == 0


def test_a_unit_of_every_attack_is_timed_and_moves_no_image() -> None:
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8)).eval().requires_grad_(False)
    x = torch.rand(3, 1, 8, 8)
    before, entries = x.clone(), suite("aa").entries(LINF, 10)
    task = Task(lambda rows: x[rows], network(x).argmax(1), Draws(0, torch.arange(3), "pace"), {"logits": network(x)})
    seconds = measure(entries, lambda row: Surrogate(network.trace), task, 8)
    assert len(seconds) == len(entries)
    assert min(seconds) > 0
    assert torch.equal(x, before)
    reference = suite("aa", "reference").entries(LINF, 10)
    assert measure(reference, lambda row: Surrogate(network.trace), task, 8) == [1.0] * len(reference)


class Heard:
    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def planned(self, attacks: int, passes: int, seconds: float) -> None: ...
    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...

    def advanced(self, done: int, spent: float, left: float) -> None:
        self.rows.append((spent, left))


def test_a_whole_run_tells_what_is_left_in_the_work_that_it_then_does(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a quarter after the first tenth, counted in passes, so that no clock is in it."""
    monkeypatch.setattr(run, "measure", lambda entries, *rest: [1.0] * len(entries))
    for name, less in (("Apgd", {"steps": 10}), ("Fab", {"steps": 10}), ("Square", {"queries": 500})):
        monkeypatch.setattr(suites, name, partial(getattr(suites, name), **less))
    images = pick(load_test(Data(name="digits"))[0], 24, seed=0)
    job = Job(load_network(trained_run / "model.safetensors"), images, Threat("linf", 0.1), "0.1", "aa", "native", 0, 8)
    heard = Heard()
    evaluate(job, tmp_path / "run", heard, device=torch.device("cpu"), resume=False)
    total = heard.rows[-1][0]
    spent, left = next(row for row in heard.rows if row[0] >= 0.1 * total)
    assert 0.75 <= left / (total - spent) <= 1.25
    assert heard.rows[-1][1] <= 0.05 * total
    assert all(before[0] <= after[0] for before, after in pairwise(heard.rows))


def test_a_network_that_may_not_be_asked_ahead_leaves_rows_idle() -> None:
    """Square on 10 images and 128 rows: every query is a whole chunk."""
    square = entry(Square(Threat("linf", 0.1)))
    assert slots(square, 10, 128, repeatable=False) == 128 * square.attack.passes
    assert slots(square, 10, 128) < 15 * square.attack.passes
