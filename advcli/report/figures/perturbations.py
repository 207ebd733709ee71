"""Images, what was added to them, the adversarial images, and what the network says to either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request, Specimens


def gather(runs: Sequence[Path], request: Request) -> FigureData:
    """Rows: {run, index, label, clean_prediction, adversarial_prediction, distance, attack}, an image of a run each.

    more: pictures, of every row image and adversarial (C, H, W) in [0, 1] and perturbation, their difference; threat.
    """
    from advcli.evaluation.specimens import collect

    found = collect(runs, request)
    rows, pictures = [], []
    for name, specimens in zip(run_names(runs), found, strict=True):
        some, shown = _of_run(name, specimens)
        rows += some
        pictures += shown
    right = [row for row in rows if row["clean_prediction"] == row["label"]]
    fooled = sum(row["adversarial_prediction"] != row["label"] for row in right)
    threat = {"norm": found[0].threat.norm, "eps": found[0].eps}
    headline = f"{fooled} of {len(right)} images that were classified right are fooled"
    notes = [f"{name}: {specimens.about}" for name, specimens in zip(run_names(runs), found, strict=True)]
    return FigureData("perturbations", rows, headline, notes, {"threat": threat, "pictures": pictures})


def _of_run(name: str, specimens: Specimens) -> tuple[list[dict[str, Any]], list[dict[str, NDArray[Any]]]]:
    clean, adversarial = (specimens.see(x).logits.argmax(1) for x in (specimens.images, specimens.adversarial))
    delta = specimens.adversarial - specimens.images
    lengths = np.abs(delta).max((1, 2, 3)) if specimens.threat.norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
    rows, pictures = [], []
    for i, index in enumerate(specimens.index):
        labels = (specimens.labels[i], clean[i], adversarial[i])
        words = dict(zip(("label", "clean_prediction", "adversarial_prediction"), (specimens.classes[k] for k in labels), strict=True))
        rows.append({"run": name, "index": int(index), **words, "distance": float(lengths[i]), "attack": specimens.attacks[i]})
        pictures.append({"image": specimens.images[i], "perturbation": delta[i], "adversarial": specimens.adversarial[i]})
    return rows, pictures


@style.styled
def draw(data: FigureData) -> Figure:
    """A column an image; under it a perturbation and an adversarial image for each run."""
    names = list(dict.fromkeys(row["run"] for row in data.rows))
    columns = len(data.rows) // len(names)
    figure = style.new_figure(height=0.3 + 1.15 * (1 + 2 * len(names)) * min(1.0, 8 / columns))
    grid = figure.subplots(1 + 2 * len(names), columns, squeeze=False)
    for axes in grid.flat:
        style.bare(axes)
    for i, (row, pictures) in enumerate(zip(data.rows, data.more["pictures"], strict=True)):
        run, column = divmod(i, columns)
        delta, adversarial = grid[1 + 2 * run, column], grid[2 + 2 * run, column]
        if run == 0:
            style.show_image(grid[0, column], pictures["image"])
            grid[0, column].set_title(row["label"], fontsize=7)
        scale = float(np.abs(pictures["perturbation"]).max()) or 1.0
        style.show_image(delta, 0.5 + pictures["perturbation"] / (2 * scale))
        style.show_image(adversarial, pictures["adversarial"])
        wrong = row["adversarial_prediction"] != row["label"]
        words = f"{row['clean_prediction']}\n→ {row['adversarial_prediction']}"
        adversarial.set_xlabel(words, fontsize=7, color=style.ADVERSARIAL if wrong else "black")
    threat = data.more["threat"]
    grid[0, 0].set_ylabel("image", fontsize=7)
    for run, name in enumerate(names):
        title = f"{name}\n" if len(names) > 1 else ""
        grid[1 + 2 * run, 0].set_ylabel(f"{title}perturbation,\nscaled", fontsize=7)
        grid[2 + 2 * run, 0].set_ylabel(f"adversarial,\n{threat['norm']} {threat['eps']}", fontsize=7)
    style.note(figure, [*data.notes, "Under the images: prediction before and after, orange where it is wrong after."])
    return figure
