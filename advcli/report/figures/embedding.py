"""Features of clean and adversarial images in two dimensions (AGAIN 4, ANCRA 4-5, StayFocused 7-8, ARREST 5-6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.errors import DataError, UsageError
from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request, Specimens

Floats = NDArray[np.floating]
Method = Literal["tsne", "umap"]
_INPUTS = {"clean": (style.CLEAN, "o"), "noisy": (style.OTHER, "s"), "adversarial": (style.ADVERSARIAL, "^")}
_NAMED = 20  # classes that a legend has room for
_FEWEST = 5  # points, below which neighbours mean nothing


def silhouette(features: Floats, labels: NDArray[np.int64]) -> float | None:
    """Mean silhouette (Rousseeuw 1987) of features (N, C) under labels (N,), Euclidean, in [-1, 1]; None unless 2 <= classes < N."""
    from sklearn.metrics import silhouette_score

    classes = len(np.unique(labels))
    return float(silhouette_score(features, labels)) if 2 <= classes < len(labels) else None


def embed(points: Floats, method: Method, seed: int) -> Floats:
    """(N, 2): t-SNE from the principal components, perplexity 30 or a third of the points; or UMAP, as its package has it."""
    if len(points) < _FEWEST:
        raise DataError(f"{len(points)} points are too few for a map", where="--n", next=f"take {_FEWEST} images or more")
    if not np.ptp(points, axis=0).any():
        raise DataError("the features are the same for every image, so there is nothing to map", where="the network's features")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UsageError("UMAP is not installed", where="--method umap", next="pip install 'advcli[umap]', or --method tsne") from None
        return np.asarray(UMAP(n_neighbors=min(15, len(points) - 1), random_state=seed % 2**32, n_jobs=1).fit_transform(points))
    from sklearn.manifold import TSNE

    flat = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed % 2**32).fit_transform(points)
    return np.asarray(flat)


def gather(runs: Sequence[Path], request: Request, *, method: Method = "tsne", noisy: bool = False) -> FigureData:
    """Rows: {run, index, label, input, prediction, x, y}; input is clean, noisy (where asked for) or adversarial.

    All inputs of a run are mapped together. Features are what the classifier reads. more: method, classes, and silhouette
    {run: {input: value}} in feature space under the true labels.
    """
    from advcli.evaluation.specimens import collect

    names = run_names(runs)
    found = collect(runs, request)
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, float | None]] = {}
    for name, specimens in zip(names, found, strict=True):
        middle = {"noisy": specimens.noisy(request.seed)} if noisy else {}
        inputs = {"clean": specimens.images, **middle, "adversarial": specimens.adversarial}
        seen = {kind: specimens.see(images) for kind, images in inputs.items()}
        places = embed(np.concatenate([s.pooled for s in seen.values()]), method, request.seed)
        for kind, part in zip(seen, np.split(places, len(seen)), strict=True):
            rows += _rows(name, specimens, kind, seen[kind].logits.argmax(1), part)
        scores[name] = {kind: silhouette(s.pooled, specimens.labels) for kind, s in seen.items()}
    words = ", ".join(f"{name} {_score(of['adversarial'])}" for name, of in scores.items())
    notes = [f"{name}: {specimens.about}" for name, specimens in zip(names, found, strict=True)]
    present = [label for label in found[0].classes if any(row["label"] == label for row in rows)]
    more = {"method": method, "classes": present, "silhouette": scores}
    return FigureData("embedding", rows, f"silhouette of the true classes on adversarial images: {words}", notes, more)


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _rows(name: str, specimens: Specimens, kind: str, prediction: NDArray[np.int64], places: Floats) -> list[dict[str, Any]]:
    classes = specimens.classes
    return [
        {
            "run": name,
            "index": int(specimens.index[i]),
            "label": classes[specimens.labels[i]],
            "input": kind,
            "prediction": classes[prediction[i]],
            "x": float(places[i, 0]),
            "y": float(places[i, 1]),
        }
        for i in range(len(places))
    ]


@style.styled
def draw(data: FigureData) -> Figure:
    """Of several classes a row a run, a panel an input, a colour a class; of one class a panel a run, a colour an input."""
    names, classes = list(data.more["silhouette"]), data.more["classes"]
    kinds = list(data.more["silhouette"][names[0]])
    if len(classes) == 1:
        figure, panels = style.panels(len(names), height=2.8)
        for axes, name in zip(panels, names, strict=True):
            for kind in kinds:
                _scatter(axes, [r for r in data.rows if (r["run"], r["input"]) == (name, kind)], *_INPUTS[kind], kind)
            axes.set_title(f"{name}, class {classes[0]}")
    else:
        figure, panels = style.panels(len(names) * len(kinds), height=0.6 + 6.0 / len(kinds), wide=len(kinds))
        for number, axes in enumerate(panels):
            name, kind = names[number // len(kinds)], kinds[number % len(kinds)]
            _by_class(axes, [r for r in data.rows if r["run"] == name], kind, classes)
            axes.set_title(f"{name}, {kind}\nsilhouette {_score(data.more['silhouette'][name][kind])}")
    for axes in panels:
        style.bare(axes)
    if len(classes) <= _NAMED:
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=5 if max(map(len, classes)) > 4 else 10,
            markerscale=1.5,
        )
    method = {"tsne": "t-SNE", "umap": "UMAP"}[data.more["method"]]
    style.note(figure, [*data.notes, f"{method} of all inputs of a run together; the axes have no unit."])
    return figure


def _scatter(axes: Axes, rows: Sequence[dict[str, Any]], colour: str, marker: str, label: str) -> None:
    places = [row["x"] for row in rows], [row["y"] for row in rows]
    axes.scatter(*places, s=13, color=colour, marker=marker, alpha=0.8, linewidths=0, label=label)


def _by_class(axes: Axes, rows: Sequence[dict[str, Any]], kind: str, classes: Sequence[str]) -> None:
    """One input's points, over the same axes for every input."""
    axes.scatter([r["x"] for r in rows], [r["y"] for r in rows], s=0)  # sets the limits
    for number, label in enumerate(classes):
        own = [r for r in rows if (r["label"], r["input"]) == (label, kind)]
        _scatter(axes, own, style.CLASSES[number % len(style.CLASSES)], style.marker(number), label)
