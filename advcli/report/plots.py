"""Figures of a run as inline SVG for its page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from advcli.errors import ResourceError
from advcli.evaluation.stored import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """id: of its heading. headline: what it shows, in words. rows: the data behind it."""

    id: str
    title: str
    headline: str
    svg: Markup
    rows: list[dict[str, Any]]


def plots(run: Run) -> dict[str, Plot]:
    """`security` and `training` curves, each where the run has what it takes."""
    from advcli.report.figures import curves, security  # matplotlib takes a while

    found = {}
    for name, title, kind in (("security", "Security curve", security), ("training", "Training", curves)):
        try:
            data = kind.gather([run.place])
        except ResourceError:
            continue  # one radius alone, or no log: there is nothing to draw
        found[name] = Plot(name, title, data.headline, inline(kind.draw(data), name), data.rows)
    return found


def inline(figure: Figure, name: str) -> Markup:
    """The figure as an element of a page: no prolog, no metadata, and its ids its own."""
    from advcli.report.figures import style

    text = style.svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return Markup(text)  # made by matplotlib, which draws text as shapes: nothing of a file's is in it as text
