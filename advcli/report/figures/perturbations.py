"""Images, what was added to them, the adversarial images, and what the network says to either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from advcli.report.figures import style
from advcli.report.figures.data import FigureData, evenly, run_names

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request, Specimens

SHOWN = 8  # images, spread evenly over those that were asked for


def gather(runs: Sequence[Path], request: Request) -> FigureData:
    """Rows: {run, index, label, clean_prediction, adversarial_prediction, distance, attack}, an image of a run each.

    more: threats {run: norm and eps}; pictures of some images: the row, image (C, H, W) in [0, 1], and of each run adversarial
    (C, H, W) and perturbation, its difference from the image.
    """
    from advcli.evaluation.specimens import collect

    names = run_names(runs)
    found = dict(zip(names, collect(runs, request), strict=True))
    rows = [row for name, specimens in found.items() for row in _rows(name, specimens)]
    right = [row for row in rows if row["clean_prediction"] == row["label"]]
    fooled = sum(row["adversarial_prediction"] != row["label"] for row in right)
    images = found[names[0]].images
    pictures = [
        {
            "row": i,
            "image": images[i],
            "runs": {name: {"perturbation": s.adversarial[i] - images[i], "adversarial": s.adversarial[i]} for name, s in found.items()},
        }
        for i in evenly(len(images), SHOWN)
    ]
    notes = [f"{name}: {specimens.about}" for name, specimens in found.items()]
    more = {"threats": {name: f"{s.threat.norm} {s.eps}" for name, s in found.items()}, "pictures": pictures}
    return FigureData("perturbations", rows, f"{fooled} of {len(right)} images that were classified right are fooled", notes, more)


def _rows(name: str, specimens: Specimens) -> list[dict[str, Any]]:
    clean, adversarial = (specimens.see(x).logits.argmax(1) for x in (specimens.images, specimens.adversarial))
    delta = specimens.adversarial - specimens.images
    lengths = np.abs(delta).max((1, 2, 3)) if specimens.threat.norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
    return [
        {
            "run": name,
            "index": int(index),
            "label": specimens.classes[specimens.labels[i]],
            "clean_prediction": specimens.classes[clean[i]],
            "adversarial_prediction": specimens.classes[adversarial[i]],
            "distance": float(lengths[i]),
            "attack": specimens.attacks[i],
        }
        for i, index in enumerate(specimens.index)
    ]


@style.styled
def draw(data: FigureData) -> Figure:
    """A column an image; under it a perturbation and an adversarial image for each run."""
    pictures, threats = data.more["pictures"], data.more["threats"]
    by_run = {name: [row for row in data.rows if row["run"] == name] for name in threats}
    figure = style.new_figure(height=0.3 + 1.15 * (1 + 2 * len(by_run)))
    grid = figure.subplots(1 + 2 * len(by_run), len(pictures), squeeze=False)
    for axes in grid.flat:
        style.bare(axes)
    for line, picture in zip(grid.T, pictures, strict=True):
        style.show_image(line[0], picture["image"])
        for number, (name, rows) in enumerate(by_run.items()):
            row, of = rows[picture["row"]], picture["runs"][name]
            line[0].set_title(row["label"], fontsize=7)
            scale = float(np.abs(of["perturbation"]).max()) or 1.0
            style.show_image(line[1 + 2 * number], 0.5 + of["perturbation"] / (2 * scale))
            style.show_image(line[2 + 2 * number], of["adversarial"])
            words = f"{row['clean_prediction']}\n\N{RIGHTWARDS ARROW} {row['adversarial_prediction']}"
            wrong = row["adversarial_prediction"] != row["label"]
            line[2 + 2 * number].set_xlabel(words, fontsize=7, color=style.ADVERSARIAL if wrong else "black")
    grid[0, 0].set_ylabel("image", fontsize=7)
    for number, (name, threat) in enumerate(threats.items()):
        grid[1 + 2 * number, 0].set_ylabel(f"{name}\nperturbation" if len(by_run) > 1 else "perturbation", fontsize=7)
        grid[2 + 2 * number, 0].set_ylabel(f"adversarial,\n{threat}", fontsize=7)
    about = (
        "Perturbations are stretched to the full range, grey is none. Below: prediction before and after, orange where it is wrong after."
    )
    style.note(figure, [*data.notes, about])
    return figure
