"""A zoo of lies: models whose truth is known, under every attack there is. The table in the README is what this prints with -s.

Every lie: its worst case is within 2 points of its honest twin's, or the verdict is not trustworthy; and where a naive number, PGD
or AutoAttack on the final logits, is inflated, a flag says so. No honest model is called masked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lies
import pytest
import torch

from advcli.attacks import Threat
from advcli.data import load_test
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, pick
from advcli.evaluation.masking import raised
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import Loaded

pytestmark = pytest.mark.slow

N = 100
LOOKUP = "lookup of the training set"
PGD = "pgd-40@0.007"

Report = dict[str, Any]


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory, silent: Any) -> Callable[..., Report]:
    def run(loaded: Loaded, suite: str, split: str = "test") -> Report:
        images = pick(load_test(Data(name="digits"), split)[0], N, 0)
        job = Job(loaded, images, Threat("linf", 0.15), "0.15", suite, "native", 0, N, {"name": "digits"}, split)
        out = tmp_path_factory.mktemp("lies") / "evaluation"
        return evaluate(job, out, silent, device=torch.device("cpu"), resume=False)[1]

    return run


@pytest.fixture(scope="module")
def silent() -> Any:
    return MagicMock()  # a watcher that looks away


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Loaded:
    return lies.train("pgd-at", 0, tmp_path_factory.mktemp("lies") / "pgd-at")


@pytest.fixture(scope="module")
def twin(base: Loaded, attack: Callable[..., Report]) -> float:
    """What AutoAttack leaves of the honest network."""
    report = attack(base, "full")
    show("pgd-at, seed 0: the honest twin", report)
    check_honest(report)
    assert 0.5 < report["worst"]["aa"] < 0.95, "a network in between, on which kindness would show"
    assert report["worst"]["aa"] - report["robust"] <= 0.01, "nothing is left to find"
    return float(report["worst"]["aa"])


def show(name: str, report: Report) -> None:
    pgd, worst = report["attacks"].get(PGD, {}).get("accuracy"), report["worst"]
    cells = [name, *(f"{100 * value:.0f}" if value is not None else "" for value in (report["clean"], pgd, worst.get("aa")))]
    print(
        " | ".join(
            [*cells, f"{100 * report['robust']:.0f}", report["verdict"], ", ".join(flag["name"] for flag in raised(report["flags"]))]
        )
    )


def check_honest(report: Report) -> None:
    assert report["verdict"] == "trustworthy", [flag["name"] for flag in raised(report["flags"])]
    assert report["reasons"] == []


@pytest.mark.parametrize("lie", [*lies.LIES, *lies.GATES, LOOKUP])
def test_a_lie_is_found_out(lie: str, base: Loaded, twin: float, attack: Callable[..., Report]) -> None:
    report = attack(lies.tell(base, lie), "full", "train" if lie == LOOKUP else "test")
    show(lie, report)
    assert report["robust"] <= twin + 0.02 or report["verdict"] != "trustworthy"
    if lie in lies.GATES:  # over unchanged weights, its probe the network's own head, a gate adds nothing that stands
        assert report["robust"] <= twin + 0.02
    naive = max(report["worst"]["aa"], report["attacks"][PGD]["accuracy"])
    if naive - min(twin, report["robust"]) > 0.1:  # eleven images of a hundred are the least that is evidence
        assert raised(report["flags"]), "an inflated number without a flag"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", lies.HONEST)
def test_no_honest_model_is_called_masked(name: str, seed: int, attack: Callable[..., Report], tmp_path: Path) -> None:
    start = lies.train("standard", seed, tmp_path / "start").path if name == "arrest" else None
    report = attack(lies.train(name, seed, tmp_path / name, start), "aa")
    show(f"{name}, seed {seed}", report)
    check_honest(report)
