"""Class activation maps and attribution spans (AGAIN, figure 1, equations 1-2 and table 1; StayFocused, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.report.figures import style
from advcli.report.figures.data import FigureData, evenly, run_names
from advcli.report.figures.spans import activation_maps, coverage, erase, span, upsample

if TYPE_CHECKING:
    from advcli.evaluation.specimens import Request, Specimens

Floats = NDArray[np.floating]
SHOWN = 6  # images, spread evenly over those that are measured


class Maps(NamedTuple):
    """Of a run: activation maps of the true class (N, H, W) and predictions (N,), of clean and of adversarial images."""

    clean: Floats
    adversarial: Floats
    clean_prediction: NDArray[np.int64]
    adversarial_prediction: NDArray[np.int64]


def gather(runs: Sequence[Path], request: Request) -> FigureData:
    """Rows: {run, index, label, clean_coverage, adversarial_coverage, clean_prediction, adversarial_prediction}.

    more: mean_coverage {run: {clean, adversarial}}; pairs, of the first run with each other one, as `_pair` says; pictures of
    some images: image and erased (C, H, W), and of each run adversarial (C, H, W) and the two maps.
    """
    from advcli.evaluation.specimens import collect

    names = run_names(runs)
    found = collect(runs, request)
    maps = [_maps(specimens) for specimens in found]
    rows = [row for name, s, m in zip(names, found, maps, strict=True) for row in _rows(name, s, m)]
    covered = [{"clean": float(coverage(m.clean).mean()), "adversarial": float(coverage(m.adversarial).mean())} for m in maps]
    means = dict(zip(names, covered, strict=True))
    pairs = [{"first": names[0], "second": names[k], **_pair(found[0], maps[0], found[k], maps[k])} for k in range(1, len(names))]
    words = ", ".join(f"{name} {100 * of['clean']:.1f} %" for name, of in means.items())
    notes = [f"{name}: {specimens.about}" for name, specimens in zip(names, found, strict=True)]
    notes += [text for pair in pairs for text in _words(pair)]
    more = {"mean_coverage": means, "pairs": pairs, "pictures": _pictures(names, found, maps)}
    return FigureData("cam", rows, f"mean attribution span coverage of clean images: {words}", notes, more)


def _maps(specimens: Specimens) -> Maps:
    clean, adversarial = (specimens.see(images) for images in (specimens.images, specimens.adversarial))
    on_clean, on_adversarial = (
        activation_maps(seen.features, specimens.class_weights, specimens.network.cells) for seen in (clean, adversarial)
    )
    return Maps(on_clean, on_adversarial, clean.logits.argmax(1), adversarial.logits.argmax(1))


def _rows(name: str, specimens: Specimens, maps: Maps) -> list[dict[str, Any]]:
    clean, adversarial = coverage(maps.clean), coverage(maps.adversarial)
    return [
        {
            "run": name,
            "index": int(index),
            "label": specimens.classes[specimens.labels[i]],
            "clean_coverage": float(clean[i]),
            "adversarial_coverage": float(adversarial[i]),
            "clean_prediction": specimens.classes[maps.clean_prediction[i]],
            "adversarial_prediction": specimens.classes[maps.adversarial_prediction[i]],
        }
        for i, index in enumerate(specimens.index)
    ]


def _pair(a: Specimens, of_a: Maps, b: Specimens, of_b: Maps) -> dict[str, Any]:
    """{larger, equal, erased, accuracy} of two runs on the same images.

    Shares of clean images on which the first run's span covers more, or as much; mean share of pixels erased; and a row a run,
    on the n images that it classifies right: accuracy on {clean, clean_erased, adversarial, adversarial_erased} (AGAIN, table 1).
    """
    first, second = coverage(of_a.clean), coverage(of_b.clean)
    gone = _difference(a, of_a, of_b)
    shares = {"larger": first > second, "equal": first == second, "erased": gone}
    return {name: float(share.mean()) for name, share in shares.items()} | {"accuracy": [_erased(a, of_a, gone), _erased(b, of_b, gone)]}


def _erased(specimens: Specimens, maps: Maps, gone: NDArray[np.bool_]) -> dict[str, Any]:
    right = maps.clean_prediction == specimens.labels
    if not right.any():
        return {"n": 0, "clean": None, "clean_erased": None, "adversarial": None, "adversarial_erased": None}
    labels = specimens.labels[right]
    again = [specimens.see(erase(x, gone)[right]).logits.argmax(1) for x in (specimens.images, specimens.adversarial)]
    predicted = {"clean": labels, "clean_erased": again[0]}
    predicted |= {"adversarial": maps.adversarial_prediction[right], "adversarial_erased": again[1]}
    return {"n": len(labels), **{name: float((prediction == labels).mean()) for name, prediction in predicted.items()}}


def _difference(specimens: Specimens, first: Maps, second: Maps) -> NDArray[np.bool_]:
    """(N, H, W) pixels in the first run's span of the clean image and not in the second's."""
    size = specimens.images.shape[2:]
    return span(upsample(first.clean, size)) & ~span(upsample(second.clean, size))


def _words(pair: dict[str, Any]) -> list[str]:
    first, second = pair["first"], pair["second"]
    larger, equal, erased = (f"{100 * pair[key]:.1f} %" for key in ("larger", "equal", "erased"))
    lines = [f"Coverage of clean images is larger for {first} than for {second} on {larger} of them, equal on {equal}."]
    lines.append(f"Erased: what is in {first}'s span and not in {second}'s, {erased} of the pixels. Accuracy before and after:")
    for name, row in zip((first, second), pair["accuracy"], strict=True):
        if row["n"]:
            before, after, attacked, both = (f"{100 * value:.1f}" for key, value in row.items() if key != "n")
            lines.append(f"{name} clean {before}, {after} %; adversarial {attacked}, {both} % (n = {row['n']}, classified right before).")
    return lines


def _pictures(names: Sequence[str], found: Sequence[Specimens], maps: Sequence[Maps]) -> list[dict[str, Any]]:
    first = found[0]
    gone = _difference(first, maps[0], maps[1]) if len(names) == 2 else None
    return [
        {
            "row": i,
            "image": first.images[i],
            "erased": None if gone is None else erase(first.images[i : i + 1], gone[i : i + 1])[0],
            "runs": {
                name: {"adversarial": s.adversarial[i], "clean_map": m.clean[i], "adversarial_map": m.adversarial[i]}
                for name, s, m in zip(names, found, maps, strict=True)
            },
        }
        for i in evenly(len(first.index), SHOWN)
    ]


@style.styled
def draw(data: FigureData) -> Figure:
    """A row an image: the image, then each run's map on it and on the adversarial image; of two runs also what erasing leaves."""
    names, pictures = list(data.more["mean_coverage"]), data.more["pictures"]
    by_run = [[row for row in data.rows if row["run"] == name] for name in names]
    columns = 1 + 2 * len(names) + (len(names) == 2)
    cell = max(0.9, min(1.15, style.WIDTH / columns), 0.085 * max(map(len, names)))  # inches; a run's name stands over a column
    figure = style.new_figure(width=max(4.0, cell * columns), height=(cell + 0.25) * len(pictures) + 0.8)
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    for axes in grid.flat:
        style.bare(axes)
    for line, picture in zip(grid, pictures, strict=True):
        style.show_image(line[0], picture["image"])
        line[0].set_xlabel(by_run[0][picture["row"]]["label"], fontsize=7)
        for number, (name, rows) in enumerate(zip(names, by_run, strict=True)):
            of, row = picture["runs"][name], rows[picture["row"]]
            _show(line[1 + 2 * number], picture["image"], of["clean_map"], row, "clean")
            _show(line[2 + 2 * number], of["adversarial"], of["adversarial_map"], row, "adversarial")
        if picture["erased"] is not None:
            style.show_image(line[-1], picture["erased"])
    titles = ["image", *(f"{name}\n{kind}" for name in names for kind in ("clean", "adversarial")), "span difference\nerased"]
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=7)
    about = "Maps of the true class, each on its own scale; line: span, over half of the maximum. Below: coverage, prediction."
    style.note(figure, [*(data.notes if len(names) <= 2 else data.notes[: len(names)]), about])  # many pairs are for the terminal
    return figure


def _show(axes: Axes, image: Floats, activation: Floats, row: dict[str, Any], kind: str) -> None:
    height, width = image.shape[1:]
    fine = upsample(activation[None], (max(64, height), max(64, width)))[0]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(image.mean(0), cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.imshow(fine, cmap="viridis", alpha=0.6, extent=extent)
    if fine.max() > 0 and fine.min() < fine.max() / 2:
        axes.contour(fine, [fine.max() / 2], colors="white", linewidths=0.9, extent=extent, origin="upper")
    wrong = row[f"{kind}_prediction"] != row["label"]
    words = f"{100 * row[f'{kind}_coverage']:.0f} %\n{row[f'{kind}_prediction']}"
    axes.set_xlabel(words, fontsize=7, color=style.ADVERSARIAL if wrong else "black")
