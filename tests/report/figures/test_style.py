"""Figures as bytes: always the same, never over another, whatever the user's own settings."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from advcli.report.figures import style
from advcli.report.figures.data import FigureData


@style.styled
def line(data: FigureData) -> Figure:
    figure = style.new_figure(4, 2)
    axes = figure.subplots()
    axes.plot([0, 1, 4], color=style.colour(0), label="a")
    axes.imshow([[0.0, 1.0]], extent=(0, 1, 0, 1))
    axes.legend()
    style.note(figure, [data.headline])
    return figure


def figure(headline: str = "x") -> Figure:
    return line(FigureData("line", [], headline))


def test_equal_figures_have_equal_bytes_whatever_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (style.png(figure()), style.svg(figure()))
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(mpl.rcParams, "font.size", 20.0)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert (style.png(figure()), style.svg(figure())) == before
    assert style.svg(figure("other")) != before[1]


def test_png_is_at_twice_the_resolution_and_svg_at_once(tmp_path: Path) -> None:
    png, svg = style.save(figure(), tmp_path / "new", "line")
    assert (png.name, svg.name) == ("line.png", "line.svg")
    with Image.open(png) as image:
        assert image.size == (800, 400)
    root = ET.parse(svg).getroot()
    assert (root.get("width"), root.get("height")) == ("288pt", "144pt")
    assert "date" not in svg.read_text().lower()


def test_nothing_is_overwritten_and_the_same_is_not_doubled(tmp_path: Path) -> None:
    first = style.save(figure(), tmp_path, "line")
    assert style.save(figure(), tmp_path, "line") == first
    before = first[0].read_bytes()
    second = style.save(figure("other"), tmp_path, "line")
    assert [path.name for path in second] == ["line-2.png", "line-2.svg"]
    assert first[0].read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_no_pyplot() -> None:
    """Its global list of figures would keep every figure alive."""
    import subprocess
    import sys

    code = "import sys; from advcli.report.figures import style; style.svg(style.new_figure()); print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
