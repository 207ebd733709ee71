"""Maps, coverage, spans compared and spans erased, as they are printed and drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from advcli.evaluation.specimens import Request, Specimens, collect
from advcli.report.figures.cam import draw, gather
from advcli.report.figures.spans import coverage, erase, span, upsample


def maps(specimens: Specimens, images: np.ndarray) -> np.ndarray:
    """Class activation maps of the true class, written out in loops."""
    features = specimens.see(images).features.astype(np.float64)
    weight = specimens.network.linear.weight.detach().numpy()
    return np.stack([sum(weight[y, c] * a[c] for c in range(len(a))) for a, y in zip(features, specimens.labels, strict=True)])


def test_rows_are_coverages_of_the_true_class(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(20))
    for name, specimens in zip(("run", "other"), collect(two_runs, Request(20)), strict=True):
        rows = [row for row in data.rows if row["run"] == name]
        for kind, images in (("clean", specimens.images), ("adversarial", specimens.adversarial)):
            expected = coverage(maps(specimens, images))
            assert [row[f"{kind}_coverage"] for row in rows] == expected.tolist()
            assert data.more["mean_coverage"][name][kind] == pytest.approx(expected.mean())


def test_spans_are_compared_and_their_difference_erased(two_runs: list[Path]) -> None:
    (pair,) = gather(two_runs, Request(40)).more["pairs"]
    first, second = collect(two_runs, Request(40))
    a, b = (maps(s, s.images) for s in (first, second))
    assert pair["larger"] == (coverage(a) > coverage(b)).mean()
    gone = span(upsample(a, (8, 8))) & ~span(upsample(b, (8, 8)))
    assert pair["erased"] == pytest.approx(gone.mean())
    for specimens, row in zip((first, second), pair["accuracy"], strict=True):
        right = specimens.see(specimens.images).logits.argmax(1) == specimens.labels
        assert (row["n"], row["clean"]) == (right.sum(), 1.0)
        for kind, images in (("clean", specimens.images), ("adversarial", specimens.adversarial)):
            left = specimens.see(erase(images, gone)).logits.argmax(1) == specimens.labels
            assert row[f"{kind}_erased"] == pytest.approx(left[right].mean())


def test_a_network_beside_itself_loses_nothing(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    shutil.copy(trained_run / "model.safetensors", tmp_path / "twin")
    (pair,) = gather([trained_run, tmp_path / "twin"], Request(20)).more["pairs"]
    assert (pair["larger"], pair["equal"], pair["erased"]) == (0.0, 1.0, 0.0)
    for row in pair["accuracy"]:
        assert (row["clean_erased"], row["adversarial_erased"]) == (1.0, row["adversarial"])


@pytest.mark.parametrize(("count", "columns"), [(1, 3), (2, 6)])
def test_a_row_an_image_with_every_map(two_runs: list[Path], count: int, columns: int) -> None:
    data = gather(two_runs[:count], Request(10))
    figure = draw(data)
    assert len(figure.axes) == 6 * columns
    rows = [row for row in data.rows if row["run"] == "run"]
    first = rows[data.more["pictures"][0]["row"]]
    assert figure.axes[1].get_xlabel() == f"{100 * first['clean_coverage']:.0f} %\n{first['clean_prediction']}"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), data.more["pictures"][0]["image"][0])
