"""A run that was attacked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import first, write_evaluation, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two evaluations and a log."""
    folder = tmp_path / "runs" / "net"
    weights = write_run(folder)
    write_evaluation(folder / "evals" / "quick-1", clean=first(18), attacks={"fgsm": first(15), "pgd-20": first(12)}, weights=weights)
    aa = {"apgd-ce": first(12), "square": first(11)}
    write_evaluation(folder / "evals" / "aa-1", clean=first(18), attacks=aa, suite="aa", on="survivors", weights=weights)
    return folder
