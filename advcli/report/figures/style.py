"""How every figure looks, and how it becomes bytes: equal data give equal files on one machine."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from advcli.report.figures.data import FigureData
from advcli.runs import atomic

# Okabe and Ito's palette (2008), told apart by colour-blind readers; black and grey are kept for text and reference lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
CLEAN, ADVERSARIAL, OTHER = "#0072B2", "#D55E00", "#777777"
# Petroff's ten (2021), made to be told apart under colour vision deficiencies: for classes, of which there are more than seven.
CLASSES = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 7.0  # inches: a text column of A4 and a laptop's window
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures look alike everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "figure.dpi": 100,
    "svg.fonttype": "path",
    "svg.hashsalt": "advcli",
}


def style() -> AbstractContextManager[None]:
    """These settings inside, and none of the user's own."""
    defaults: dict[Any, Any] = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
    context: AbstractContextManager[None] = mpl.rc_context({**defaults, **_STYLE})
    return context


def styled(draw: Callable[[FigureData], Figure]) -> Callable[[FigureData], Figure]:
    """Around every kind's `draw`, for matplotlib reads its settings when things are drawn."""

    @wraps(draw)
    def inside(data: FigureData) -> Figure:
        with style():
            return draw(data)

    return inside


def new_figure(width: float = WIDTH, height: float = 3.0) -> Figure:
    """An empty figure, in inches; no pyplot, so nothing is shared between figures."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def colour(number: int) -> str:
    """The colour of the number-th series; after seven they come again, with another marker."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    return MARKERS[(number + number // len(MARKERS)) % len(MARKERS)]


def panels(count: int, *, height: float, wide: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most `wide` in a row, in rows as even as can be.

    height: of a row, in inches. options: of Figure.subplots.
    """
    rows = -(-count // wide)
    columns = -(-count // rows)
    figure = new_figure(height=rows * height)
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def bare(axes: Axes) -> None:
    """No ticks and no frame: for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def show_image(axes: Axes, image: NDArray[Any]) -> None:
    """image (C, H, W) in [0, 1], C 1 or 3, its pixels kept square and sharp."""
    axes.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def note(figure: Figure, lines: Sequence[str]) -> None:
    """Small print under everything."""
    width = round(figure.get_figwidth() * 19)  # characters of 7 points, wide ones among them
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    figure.supxlabel(text, fontsize=7, color="#555555", x=0.01, ha="left", multialignment="left")


def png(figure: Figure) -> bytes:
    """At twice the screen's resolution."""
    return _rendered(figure, "png", dpi=200, metadata={"Software": None})


def svg(figure: Figure) -> str:
    """Without date or maker, text as paths: the same on any machine that has the same matplotlib."""
    return _rendered(figure, "svg", metadata={"Date": None, "Creator": None}).decode()


def _rendered(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """NAME.png and NAME.svg, or NAME-2 ... where another figure stands there already: nothing is overwritten."""
    files = {"png": png(figure), "svg": svg(figure).encode()}
    atomic.make_folder(folder)
    for number in count(1):
        paths = {form: folder / f"{name if number == 1 else f'{name}-{number}'}.{form}" for form in files}
        if all(not path.exists() or (path.is_file() and path.read_bytes() == files[form]) for form, path in paths.items()):
            break
    for form, path in paths.items():
        atomic.write_bytes(path, files[form])
    return list(paths.values())
