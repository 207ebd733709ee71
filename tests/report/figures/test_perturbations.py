"""Images, perturbations and predictions as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advcli.evaluation.specimens import Request, collect
from advcli.report.figures.perturbations import SHOWN, draw, gather


def test_pictures_add_up_and_predictions_are_the_networks(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(6))
    for name, specimens in zip(("run", "other"), collect(two_runs, Request(6)), strict=True):
        clean, adversarial = (specimens.see(x).logits.argmax(1) for x in (specimens.images, specimens.adversarial))
        rows = [row for row in data.rows if row["run"] == name]
        for i, (row, picture) in enumerate(zip(rows, data.more["pictures"], strict=True)):
            of = picture["runs"][name]
            np.testing.assert_allclose(picture["image"] + of["perturbation"], of["adversarial"], atol=1e-6)
            assert row["distance"] == np.abs(of["perturbation"]).max() <= 0.15 + 1e-6
            names = [specimens.classes[k[i]] for k in (specimens.labels, clean, adversarial)]
            assert [row["label"], row["clean_prediction"], row["adversarial_prediction"]] == names
    right = [row for row in data.rows if row["clean_prediction"] == row["label"]]
    fooled = [row for row in right if row["adversarial_prediction"] != row["label"]]
    assert data.headline == f"{len(fooled)} of {len(right)} images that were classified right are fooled"


def test_the_figure_tells_before_and_after(two_runs: list[Path]) -> None:
    data = gather(two_runs, Request(3))
    axes = draw(data).axes
    assert len(axes) == 5 * 3
    words = [panel.get_xlabel() for panel in (*axes[6:9], *axes[12:15])]
    arrow = "\N{RIGHTWARDS ARROW}"
    assert words == [f"{row['clean_prediction']}\n{arrow} {row['adversarial_prediction']}" for row in data.rows]
    shown = axes[3].images[0].get_array()
    delta = data.more["pictures"][0]["runs"]["run"]["perturbation"][0]
    np.testing.assert_allclose(shown, 0.5 + delta / (2 * np.abs(delta).max()), atol=1e-6)  # grey is no change


def test_of_many_images_some_are_shown_and_all_are_rows(two_runs: list[Path]) -> None:
    data = gather(two_runs[:1], Request(30))
    assert len(data.rows) == 30
    assert [picture["row"] for picture in data.more["pictures"]] == [0, 4, 8, 12, 17, 21, 25, 29]
    assert len(draw(data).axes) == 3 * SHOWN
