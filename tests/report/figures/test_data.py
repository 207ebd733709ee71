"""The data behind figures as JSON and CSV, and names for runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from advcli.report.figures.data import FigureData, evenly, run_names

DATA = FigureData(
    "channels",
    [{"run": "a, b", "x": np.float32(0.1), "n": np.int64(3)}, {"run": 'say "c"', "x": float("nan"), "n": None}],
    "headline",
    more={"map": np.array([[0.5, np.inf]]), "deep": {"pair": (1, True)}},
)


def test_json_holds_numbers_or_null() -> None:
    whole = json.loads(json.dumps(DATA.to_json(), allow_nan=False))
    assert whole["rows"] == [{"run": "a, b", "x": 0.1, "n": 3}, {"run": 'say "c"', "x": None, "n": None}]
    assert (whole["map"], whole["deep"]) == ([[0.5, None]], {"pair": [1, True]})
    assert (whole["kind"], whole["headline"], whole["notes"]) == ("channels", "headline", [])


def test_csv_is_read_back() -> None:
    assert list(csv.DictReader(io.StringIO(DATA.to_csv()))) == [
        {"run": "a, b", "x": "0.1", "n": "3"},
        {"run": 'say "c"', "x": "", "n": ""},
    ]


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    for name in ("x/a", "y/a", "x/b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x/b/model.safetensors").touch()
    assert run_names([tmp_path / "x/a", tmp_path / "x/b/model.safetensors"]) == ["a", "b"]
    assert run_names([tmp_path / "x/a", tmp_path / "y/a"]) == ["x/a", "y/a"]
    (tmp_path / "x/b/last.safetensors").touch()
    assert run_names([tmp_path / "x/b", tmp_path / "x/b/last.safetensors"]) == ["b", "last"]
    assert run_names([tmp_path / "absent"]) == ["absent"]


def test_evenly() -> None:
    assert [evenly(10, 3), evenly(2, 6), evenly(1, 6)] == [[0, 4, 9], [0, 1], [0]]
