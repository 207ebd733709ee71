"""Mean channel magnitudes on clean and adversarial images (StayFocused, figure 2; CAS, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request

Floats = NDArray[np.floating]


def magnitudes(features: Floats) -> Floats:
    """(C,) mean absolute value of each channel of features (N, C, H, W) over images and positions."""
    return np.asarray(np.abs(features).mean((0, 2, 3), dtype=np.float64))


def gather(runs: Sequence[Path], request: Request) -> FigureData:
    """Rows: {run, rank, channel, clean, adversarial}, the channels of a run by falling clean magnitude.

    more: shift {run: mean |adversarial - clean| over channels / mean clean magnitude}, None for features that are all zero.
    """
    from advcli.evaluation.specimens import collect

    names = run_names(runs)
    found = collect(runs, request)
    rows, shift = [], {}
    for name, specimens in zip(names, found, strict=True):
        clean, adversarial = (magnitudes(specimens.see(x).features) for x in (specimens.images, specimens.adversarial))
        for rank, channel in enumerate(np.argsort(-clean, kind="stable"), 1):
            row = {"run": name, "rank": rank, "channel": int(channel)}
            rows.append(row | {"clean": float(clean[channel]), "adversarial": float(adversarial[channel])})
        shift[name] = float(np.abs(adversarial - clean).mean() / clean.mean()) if clean.any() else None
    words = ", ".join(f"{name} {100 * value:.1f} %" if value is not None else f"{name} undefined" for name, value in shift.items())
    headline = f"shift of channel magnitudes under attack, of the clean mean: {words}"
    notes = [f"{name}: {specimens.about}" for name, specimens in zip(names, found, strict=True)]
    return FigureData("channels", rows, headline, notes, {"shift": shift})


@style.styled
def draw(data: FigureData) -> Figure:
    """A panel a run: clean magnitudes falling, adversarial ones of the same channels."""
    names = list(dict.fromkeys(row["run"] for row in data.rows))
    figure, panels = style.panels(len(names), height=2.6)
    for axes, name in zip(panels, names, strict=True):
        rows = [row for row in data.rows if row["run"] == name]
        rank = [row["rank"] for row in rows]
        axes.plot(rank, [row["clean"] for row in rows], color=style.CLEAN, label="clean")
        axes.plot(rank, [row["adversarial"] for row in rows], ".", color=style.ADVERSARIAL, markersize=3.5, label="adversarial")
        axes.set_title(name)
        axes.set_xlabel("channel, by clean magnitude")
        axes.set_xlim(1, max(2, len(rank)))
        axes.set_ylim(bottom=0)
    figure.supylabel("mean |activation|", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, markerscale=2)
    style.note(figure, data.notes)
    return figure
