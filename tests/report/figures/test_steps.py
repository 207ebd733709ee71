"""Attack strength against iterations: each step's accuracy is what a reading with that limit would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import first, write_evaluation, write_run

from advcli.errors import ResourceError
from advcli.measures import wilson
from advcli.report.figures import steps
from advcli.runs.ledger import Ledger

N = 20


def attacked(folder: Path, found: dict[str, list[int]], *, on: str = "all", suite: str = "quick") -> Path:
    """A run whose evaluation broke images at these steps; 18 of 20 are right, and the first of those are the ones that break."""
    weights = write_run(folder)
    place = write_evaluation(
        folder / "evals" / f"{suite}-1", clean=first(18, N), attacks=dict.fromkeys(found, first(18, N)), suite=suite, on=on, weights=weights
    )
    ledger = Ledger(place / "ledger")
    arrays, header = ledger.read()
    for entry in header["entries"]:
        at = np.full(N, -1)
        at[: len(found[entry["name"]])] = found[entry["name"]]
        arrays |= {f"steps.{entry['name']}": at, f"broken.{entry['name']}": at >= 0}
        entry["about"] = {"fgsm": "one step of eps", "square": "Square, 5,000 queries"}.get(entry["name"], "PGD, 20 steps of eps/4")
    ledger.finish(arrays, header)
    return folder


def series(data: Any, attack: str) -> list[tuple[int, float]]:
    return [(row["step"], row["accuracy"]) for row in data.rows if row["attack"] == attack]


def test_each_step_is_the_accuracy_that_was_left(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", {"fgsm": [1, 1], "pgd-20": [0, 3, 3, 7]})
    data = steps.gather([run])
    assert series(data, "pgd-20") == [(0, 17 / N), (3, 15 / N), (7, 14 / N), (20, 14 / N)]
    assert series(data, "fgsm") == [(0, 18 / N), (1, 16 / N)]
    row = data.rows[-1]
    assert (row["low"], row["high"], row["on"], row["n"]) == (*wilson(14, N), "all", N)
    assert data.headline == "a: pgd-20 had nine tenths of what it broke after 7 of 20 steps"


def test_on_survivors_an_attack_starts_from_what_is_left(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", {"apgd-ce": [2, 2, 5], "square": [-1, -1, -1, 40, 900]}, on="survivors", suite="aa")
    data = steps.gather([run], "aa")
    assert series(data, "apgd-ce")[-1] == (20, 15 / N)
    assert series(data, "square") == [(0, 15 / N), (40, 14 / N), (900, 13 / N), (5000, 13 / N)]


def test_an_evaluation_folder_stands_for_itself_and_a_run_without_the_suite_is_named(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", {"pgd-20": [3]})
    write_run(tmp_path / "b")
    data = steps.gather([run / "evals" / "quick-1", tmp_path / "b"])
    assert {row["run"] for row in data.rows} == {"quick-1"}
    assert data.notes == ["b has no evaluation of suite quick"]


def test_a_runs_own_radius_is_taken(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", {"pgd-20": [3]})
    weights = str(json.loads((run / "evals/quick-1/identity.json").read_text())["tensors_sha256"])
    write_evaluation(run / "evals" / "quick-2", clean=first(18, N), attacks={"pgd-20": first(0, N)}, eps="0.3", weights=weights)
    assert series(steps.gather([run]), "pgd-20")[-1] == (20, 17 / N)


def test_what_is_drawn_is_the_data(tmp_path: Path) -> None:
    runs = [attacked(tmp_path / name, {"fgsm": [1], "pgd-20": [2, 4]}) for name in ("a", "b")]
    data = steps.gather(runs)
    panels = steps.draw(data).axes
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    lines = [line for line in panels[0].get_lines() if line.get_drawstyle() == "steps-post"]
    drawn = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines]
    assert drawn == [[(step, pytest.approx(100 * y)) for step, y in series(steps.gather(runs[:1]), name)] for name in ("fgsm", "pgd-20")]
    ends = [line.get_xydata()[0].tolist() for line in panels[0].get_lines() if len(line.get_xydata()) == 1]
    assert ends == [[1, pytest.approx(85)], [20, pytest.approx(80)]]


def test_nothing_broken_and_many_queries_are_drawn(tmp_path: Path) -> None:
    data = steps.gather([attacked(tmp_path / "a", {"square": []}, suite="aa")], "aa")
    assert data.headline == "no attack broke an image"
    assert steps.draw(data).axes[0].get_xscale() == "symlog"


def test_no_evaluation_of_the_suite_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    with pytest.raises(ResourceError, match="no run has an evaluation of suite aa") as raised:
        steps.gather([tmp_path / "a"], "aa")
    assert "--suite aa" in raised.value.next
