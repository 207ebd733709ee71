"""Security curves: closed over smaller radii, with their intervals, from runs and from folders of evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from written import first, write_evaluation, write_run

from advcli.errors import ResourceError
from advcli.measures import wilson
from advcli.report.figures import security


def attacked(folder: Path, **robust: int) -> Path:
    """evals/NAME each, of 100 images the first 90 of which are right; NAME is e5 for eps 0.05 and so on, with so many left."""
    weights = write_run(folder)
    for name, left in robust.items():
        write_evaluation(
            folder / "evals" / name, clean=first(90, 100), attacks={"pgd-20": first(left, 100)}, eps=f"0.{name[1:]}", weights=weights
        )
    return folder


def test_rows_run_from_clean_to_the_largest_radius(tmp_path: Path) -> None:
    data = security.gather([attacked(tmp_path / "a", e30=10, e05=80, e15=50)])
    assert [(row["eps"], row["radius"], row["accuracy"]) for row in data.rows] == [
        ("0", 0.0, 0.9),
        ("0.05", 0.05, 0.8),
        ("0.15", 0.15, 0.5),
        ("0.30", 0.3, 0.1),
    ]
    assert [(row["low"], row["high"]) for row in data.rows] == [wilson(k, 100) for k in (90, 80, 50, 10)]
    assert data.headline == "a: 10.0 % left at eps 0.30 (quick, n = 100)"
    assert data.more == {"norm": "linf"}


def test_what_a_smaller_radius_broke_stays_broken(tmp_path: Path) -> None:
    data = security.gather([attacked(tmp_path / "a", e05=60, e15=70)])
    assert [(row["accuracy"], row["closed_by_smaller"]) for row in data.rows] == [(0.9, 0), (0.6, 0), (0.6, 10)]


def test_what_is_drawn_is_the_data(tmp_path: Path) -> None:
    data = security.gather([attacked(tmp_path / "a", e05=80, e15=50), attacked(tmp_path / "b", e05=70, e15=60)])
    (axes,) = security.draw(data).axes
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [pytest.approx([90, 80, 50]), pytest.approx([90, 70, 60])]
    bands = [np.concatenate([path.vertices for path in band.get_paths()]) for band in axes.collections]
    for band, name in zip(bands, ("a", "b"), strict=True):
        rows = [row for row in data.rows if row["run"] == name]
        assert band[:, 1].min() == pytest.approx(min(100 * row["low"] for row in rows))
        assert band[:, 1].max() == pytest.approx(max(100 * row["high"] for row in rows))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.05", "0.15"]


def test_the_suite_of_most_radii_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", e05=80, e15=50, e30=10)
    for name, eps in (("aa-1", "0.05"), ("aa-2", "0.15")):
        write_evaluation(
            tmp_path / "curve" / name, clean=first(90, 100), attacks={"apgd-ce": first(40, 100)}, eps=eps, suite="aa", on="survivors"
        )
    assert {row["suite"] for row in security.gather([run]).rows} == {"quick"}
    folder = security.gather([tmp_path / "curve"])
    assert [row["accuracy"] for row in folder.rows] == [0.9, 0.4, 0.4], "a folder of evaluations, as attack --out makes one"
    both = security.gather([run, tmp_path / "curve"], "aa")
    assert both.notes == ["a was not attacked at two radii on the same images"]


def test_other_images_make_no_curve(tmp_path: Path) -> None:
    run = attacked(tmp_path / "a", e05=80)
    evaluation = {"clean": first(9, 10), "attacks": {"pgd-20": first(5, 10)}}
    write_evaluation(tmp_path / "x" / "one", eps="0.05", **evaluation)
    write_evaluation(tmp_path / "x" / "two", eps="0.15", images="other", **evaluation)
    (tmp_path / "empty").mkdir()
    for place in (run, tmp_path / "x", tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ResourceError, match="no security curve") as raised:
            security.gather([place])
        assert "--eps" in raised.value.next


def test_masked_gradients_are_said(tmp_path: Path) -> None:
    weights = write_run(tmp_path / "a")
    for name, eps in (("e05", "0.05"), ("e15", "0.15")):
        attacks = {"fgsm": first(0, 100), "pgd-20": first(90, 100)}
        write_evaluation(tmp_path / "a" / "evals" / name, clean=first(90, 100), attacks=attacks, eps=eps, weights=weights)
    assert security.gather([tmp_path / "a"]).notes == ["a: gradients look masked, do not trust the curve"]
