"""Distances of features by hand, whom images are compared with, and what the bars add up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from advcli.evaluation.specimens import Request, collect
from advcli.report.figures.distances import cosine, draw, gather, l2


def test_by_hand() -> None:
    a, b = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], np.float32), np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    assert l2(a, b).tolist() == [5.0, 1.0, 0.0]
    np.testing.assert_allclose(cosine(a, b), [np.nan, 1 / np.sqrt(2), np.nan], rtol=1e-15)
    assert cosine(a[:1], -2 * a[:1]).tolist() == [-1.0]


def test_rows_are_distances_of_what_the_classifier_reads(two_runs: list[Path]) -> None:
    data = gather(two_runs[:1], Request(20))
    (specimens,) = collect(two_runs[:1], Request(20))
    clean, adversarial = (specimens.see(x).pooled for x in (specimens.images, specimens.adversarial))
    at = {index: row for row, index in enumerate(specimens.index.tolist())}
    for row in data.rows:
        i, j = at[row["index"]], at[row["other_index"]]
        assert specimens.labels[i] != specimens.labels[j]
        assert row["l2_adversarial"] == pytest.approx(np.linalg.norm(clean[i] - adversarial[i]), rel=1e-5)
        assert row["l2_other"] == pytest.approx(np.linalg.norm(clean[i] - clean[j]), rel=1e-5)
        assert row["cosine_other"] == pytest.approx(clean[i] @ clean[j] / np.linalg.norm(clean[i]) / np.linalg.norm(clean[j]), rel=1e-5)


def test_one_class_has_no_other(two_runs: list[Path]) -> None:
    data = gather(two_runs[:1], Request(6, only="4"))
    assert {row["other_index"] for row in data.rows} == {None}
    assert {row["l2_other"] for row in data.to_json()["rows"]} == {None}
    assert data.more["means"]["run"]["l2_other"] is None


def test_bars_are_percent_of_the_images(two_runs: list[Path]) -> None:
    left, right = draw(gather(two_runs[:1], Request(20))).axes
    for axes in (left, right):
        bars = [patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)]
        assert sum(bars) == pytest.approx(200)  # two series
    assert (left.get_xlabel(), right.get_xlabel()) == ("L2 distance of features", "cosine similarity of features")
