"""How far features of adversarial images, and of other classes' images, are from those of natural ones (ANCRA, figures 1 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request, Specimens

Floats = NDArray[np.floating]
_BINS = 40
_MEASURED = ("l2_adversarial", "cosine_adversarial", "l2_other", "cosine_other")
_SERIES = (("adversarial", "natural to its adversarial image"), ("other", "natural to another class's image"))


def l2(a: Floats, b: Floats) -> Floats:
    """(N,) Euclidean distances of rows a, b (N, C)."""
    return np.asarray(np.linalg.norm(a.astype(np.float64) - b, axis=1))


def cosine(a: Floats, b: Floats) -> Floats:
    """(N,) cosine similarities of rows a, b (N, C); NaN where one is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.divide((a * b).sum(1), lengths, out=np.full(len(a), np.nan), where=lengths > 0))


def gather(runs: Sequence[Path], request: Request) -> FigureData:
    """Rows: {run, index, label, l2_adversarial, cosine_adversarial, other_index, l2_other, cosine_other}, an image of a run each.

    Features are what the classifier reads. The other image is a natural one of another class, drawn for each image; absent
    where there is one class. more: means {run: {l2_adversarial, cosine_adversarial, l2_other, cosine_other}}.
    """
    from advcli.evaluation.specimens import collect

    names = run_names(runs)
    found = collect(runs, request)
    rows = [row for name, specimens in zip(names, found, strict=True) for row in _rows(name, specimens, request.seed)]
    means = {name: {key: _mean(rows, name, key) for key in _MEASURED} for name in names}
    words = [f"{name} {_number(mean['cosine_adversarial'])}" for name, mean in means.items()]
    notes = [f"{name}: {specimens.about}" for name, specimens in zip(names, found, strict=True)]
    return FigureData("distances", rows, f"mean cosine of features, clean to adversarial: {', '.join(words)}", notes, {"means": means})


def _mean(rows: Sequence[dict[str, Any]], run: str, key: str) -> float | None:
    values = _values(rows, run, key)
    return float(values.mean()) if len(values) else None


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _values(rows: Sequence[dict[str, Any]], run: str, key: str) -> Floats:
    """The finite values of a run, in order."""
    values = np.array([row[key] for row in rows if row["run"] == run and row[key] is not None], np.float64)
    return values[np.isfinite(values)]


def _rows(name: str, specimens: Specimens, seed: int) -> list[dict[str, Any]]:
    natural, adversarial = (specimens.see(x).pooled for x in (specimens.images, specimens.adversarial))
    other = specimens.others(seed)
    exists = other >= 0
    measured = {
        f"{measure.__name__}_{what}": np.where(valid, measure(natural, to), np.nan)
        for what, to, valid in (("adversarial", adversarial, True), ("other", natural[other], exists))
        for measure in (l2, cosine)
    }
    return [
        {
            "run": name,
            "index": int(specimens.index[i]),
            "label": specimens.classes[specimens.labels[i]],
            "l2_adversarial": measured["l2_adversarial"][i],
            "cosine_adversarial": measured["cosine_adversarial"][i],
            "other_index": int(specimens.index[other[i]]) if exists[i] else None,
            "l2_other": measured["l2_other"][i],
            "cosine_other": measured["cosine_other"][i],
        }
        for i in range(len(natural))
    ]


@style.styled
def draw(data: FigureData) -> Figure:
    """A row a run: histograms of L2 distance and cosine, to the adversarial image and to another class's."""
    names = list(dict.fromkeys(row["run"] for row in data.rows))
    figure, panels = style.panels(2 * len(names), height=2.1, wide=2)
    for run, name in enumerate(names):
        for axes, measure, label in zip(panels[2 * run : 2 * run + 2], ("l2", "cosine"), ("L2 distance", "cosine similarity"), strict=True):
            _histogram(axes, data.rows, name, measure)
            axes.set_xlabel(f"{label} of features")
        panels[2 * run].set_title(name, loc="left")
        panels[2 * run].set_ylabel("images, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    style.note(figure, data.notes)
    return figure


def _histogram(axes: Axes, rows: Sequence[dict[str, Any]], run: str, measure: str) -> None:
    series = [(_values(rows, run, f"{measure}_{what}"), label) for what, label in _SERIES]
    whole = np.concatenate([values for values, _ in series])
    low, high = (min(0.0, float(whole.min(initial=0.0))), max(1e-6, float(whole.max(initial=1.0 if measure == "cosine" else 0.0))))
    bins = np.linspace(low, high, _BINS + 1).tolist()
    for (values, label), colour in zip(series, (style.ADVERSARIAL, style.CLEAN), strict=True):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=label)
            axes.hist(values, bins, weights=weights, color=colour, histtype="step", linewidth=1.0)
