"""What several tests share: a recipe that trains in a fraction of a second, and a network that has learned something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import TINY, Silent


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bytes are promised for equal numbers of threads, and networks this small only lose by two.

    The processes that tests start get OMP_NUM_THREADS=1.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """The quickstart recipe cut down to 3 steps an epoch, 2 epochs."""
    return TINY


@pytest.fixture(scope="session")
def tiny(one_thread: None) -> Callable[..., Any]:
    """tiny(*overrides) -> Recipe."""
    from advcli.recipe import load

    return lambda *overrides: load("quickstart", [*TINY, *overrides])


@pytest.fixture(scope="session")
def trained_run(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: the quickstart at half its width, for a few epochs. Read it, do not write into it."""
    from advcli.recipe import load
    from advcli.training import session

    recipe = load("quickstart", ["model.width=0.5", "schedule.epochs=4", "optim.lr=0.2"])
    out = tmp_path_factory.mktemp("trained") / "run"
    return session.run(recipe, Silent(), out=out, resume=False, device="cpu").folder


@pytest.fixture
def checkpoint(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained network that a test owns, so that evaluations land beside it."""
    path = tmp_path / "net" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes((trained_run / "model.safetensors").read_bytes())
    return path
