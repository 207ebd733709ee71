"""Channel magnitudes: by hand, and as drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advcli.evaluation.specimens import Request, collect
from advcli.report.figures.channels import draw, gather, magnitudes


def test_magnitudes_by_hand() -> None:
    features = np.array([[[[1.0, -3.0]], [[0.0, 0.0]]], [[[2.0, 2.0]], [[0.0, -4.0]]]], np.float32)  # (2, 2, 1, 2)
    assert magnitudes(features).tolist() == [2.0, 1.0]


def test_channels_fall_by_clean_magnitude_and_carry_both(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(20))
    for name, specimens in zip(("run", "other"), collect(two_runs, Request(20)), strict=True):
        rows = [row for row in data.rows if row["run"] == name]
        clean, adversarial = (magnitudes(specimens.see(x).features) for x in (specimens.images, specimens.adversarial))
        assert [row["clean"] for row in rows] == sorted(clean.tolist(), reverse=True)
        assert sorted(row["channel"] for row in rows) == list(range(len(clean)))
        for row in rows:
            assert (row["clean"], row["adversarial"]) == (clean[row["channel"]], adversarial[row["channel"]])
        assert data.more["shift"][name] == np.abs(clean - adversarial).mean() / clean.mean()


def test_the_figure_shows_the_rows(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(10))
    figure = draw(data)
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["run", "other"]
    for axes in panels:
        lines = {str(line.get_label()): line.get_ydata() for line in axes.lines}
        for kind in ("clean", "adversarial"):
            np.testing.assert_array_equal(lines[kind], [row[kind] for row in data.rows if row["run"] == axes.get_title()])
    assert figure.get_supylabel() == "mean |activation|"
