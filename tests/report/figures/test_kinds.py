"""What every kind that looks at networks promises: equal bytes, JSON without NaN, a flat table, words in the figure."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from advcli.evaluation.specimens import Request
from advcli.report.figures import style

KINDS = ("cam", "channels", "distances", "embedding", "perturbations")


@pytest.mark.parametrize("name", KINDS)
def test_a_figure_is_made_of_data_alone_and_always_the_same(name: str, two_runs: list[Path]) -> None:
    kind = import_module(f"advcli.report.figures.{name}")
    first, second = (kind.gather(two_runs, Request(12)) for _ in range(2))
    assert json.dumps(first.to_json(), allow_nan=False) == json.dumps(second.to_json(), allow_nan=False)
    assert first.kind == name
    assert {tuple(row) for row in first.rows} == {tuple(first.rows[0])}
    assert [row["run"] for row in first.rows] == sorted((row["run"] for row in first.rows), key=["run", "other"].index)
    assert all(isinstance(value, str | int | float | None) for row in first.to_json()["rows"] for value in row.values())
    assert "linf eps 0.15, adversarial images: 12 pgd-20" in " ".join(first.notes)
    svg = style.svg(kind.draw(first))
    assert svg == style.svg(kind.draw(second))
    assert first.to_csv().count("\n") == len(first.rows) + 1


@pytest.mark.parametrize("name", KINDS)
def test_one_class_alone_is_drawn(name: str, two_runs: list[Path]) -> None:
    kind = import_module(f"advcli.report.figures.{name}")
    data = kind.gather(two_runs[:1], Request(6, only="4"))
    json.dumps(data.to_json(), allow_nan=False)
    assert style.png(kind.draw(data)).startswith(b"\x89PNG")
