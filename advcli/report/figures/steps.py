"""How strong an attack is after so many iterations: the accuracy that each step left, read off ledgers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from advcli.errors import ResourceError
from advcli.evaluation.methods import own
from advcli.evaluation.stored import Evaluation, is_evaluation, open_evaluation, open_place
from advcli.measures import wilson
from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

_LENGTH = re.compile(r"([\d,]+) (?:steps|queries)")
_COLUMNS = 3


def gather(runs: Sequence[Path], suite: str = "quick") -> FigureData:
    """Rows: {run, attack, on, step, accuracy, low, high, n}: at step 0, at each step that broke an image, and at the attack's last.

    run: a run folder, or an evaluation folder, whose suite it then is. A row's accuracy is what would be left had the attack stopped
    after so many steps of each of its restarts and targets; of attacks on `survivors`, after all attacks before it. ResourceError
    where no run has the suite.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, run in zip(run_names(runs), runs, strict=True):
        evaluation = _evaluation(run, suite)
        if evaluation is None:
            notes.append(f"{name} has no evaluation of suite {suite}")
        else:
            rows += [row for entry in evaluation.header["entries"] for row in _rows(name, evaluation, entry)]
    if not rows:
        hint = f"advcli attack RUN --suite {suite}, or another --suite"
        raise ResourceError(f"no run has an evaluation of suite {suite}", where=", ".join(map(str, runs)), next=hint)
    return FigureData("steps", rows, _headline(rows), notes)


def _evaluation(place: Path, suite: str) -> Evaluation | None:
    """Itself; else the run's own evaluation of the suite on the most test images, of several the one with the lowest number."""
    if is_evaluation(place):
        return open_evaluation(place)
    found = [e for e in own(open_place(place)) if e.suite == suite]
    return min(found, key=lambda e: (-e.n, e.report["robust"], e.folder), default=None)


def _rows(name: str, evaluation: Evaluation, entry: dict[str, Any]) -> list[dict[str, Any]]:
    before = _standing(evaluation, entry)
    steps = evaluation.arrays[f"steps.{entry['name']}"]
    broken = np.sort(steps[before & (steps >= 0)])
    places = sorted({0, *broken.tolist(), max([_length(entry), *broken.tolist()])})
    rows = []
    for step in places:
        left = int(before.sum()) - int(np.searchsorted(broken, step, side="right"))
        low, high = wilson(left, evaluation.n)
        facts = {"run": name, "attack": entry["name"], "on": entry["on"], "step": int(step)}
        rows.append({**facts, "accuracy": left / evaluation.n, "low": low, "high": high, "n": evaluation.n})
    return rows


def _standing(evaluation: Evaluation, entry: dict[str, Any]) -> Any:
    """(n,) bool: who is right before the attack begins."""
    standing = evaluation.outcomes.correct.copy()
    for other in evaluation.header["entries"]:
        if other["name"] == entry["name"]:
            break
        if entry["on"] == "survivors":
            standing &= ~evaluation.arrays[f"broken.{other['name']}"]
    return standing


def _length(entry: dict[str, Any]) -> int:
    """How many steps or queries the attack may take, as its description tells; 1 where it tells none."""
    found = _LENGTH.search(entry["about"])
    return int(found[1].replace(",", "")) if found else 1


def _headline(rows: Sequence[dict[str, Any]]) -> str:
    """The attack that needed the most steps for nine tenths of what it broke."""
    late = []
    for run, attack in dict.fromkeys((row["run"], row["attack"]) for row in rows):
        own = [row for row in rows if (row["run"], row["attack"]) == (run, attack)]
        first, last = own[0]["accuracy"], own[-1]["accuracy"]
        if first > last:
            late.append((next(row["step"] for row in own if first - row["accuracy"] >= 0.9 * (first - last)), run, attack, own[-1]["step"]))
    if not late:
        return "no attack broke an image"
    step, run, attack, of = max(late)
    return f"{run}: {attack} had nine tenths of what it broke after {step} of {of} steps"


@style.styled
def draw(data: FigureData) -> Figure:
    """A panel a run, a line an attack."""
    names = list(dict.fromkeys(row["run"] for row in data.rows))
    attacks = list(dict.fromkeys(row["attack"] for row in data.rows))
    figure, grid = style.panels(len(names), height=2.6 + 0.15 * len(attacks) / 4, wide=_COLUMNS, sharex=True, sharey=True)
    for axes, name in zip(grid, names, strict=True):
        _panel(axes, [row for row in data.rows if row["run"] == name], attacks)
        axes.set_title(name)
    if max(row["step"] for row in data.rows) > 200:
        grid[0].set_xscale("symlog", linthresh=1)
    low = 100 * min(row["accuracy"] for row in data.rows)
    grid[0].set_ylim(max(-1, low - 10), 101)
    for axes in grid[::_COLUMNS]:
        axes.set_ylabel("accuracy left, %")
    for axes in grid[-_COLUMNS:]:
        axes.set_xlabel("steps or queries")
        axes.tick_params(labelbottom=True)
    looks: list[dict[str, Any]] = [
        {"color": style.colour(k), "linestyle": _dash(k), "marker": style.marker(k)} for k in range(len(attacks))
    ]
    handles = [Line2D([], [], markersize=4, label=attack, **look) for attack, look in zip(attacks, looks, strict=True)]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    words = (
        "Steps within each restart or target; a mark where the attack ended. An attack on survivors starts from what those before it left."
    )
    style.note(figure, [*data.notes, words])
    return figure


def _dash(number: int) -> str:
    """Another dash where the seven colours come again."""
    return ("-", "--", ":")[number // len(style.COLOURS) % 3]


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], attacks: Sequence[str]) -> None:
    for number, attack in enumerate(attacks):
        own = [row for row in rows if row["attack"] == attack]
        x, y = [row["step"] for row in own], [100 * row["accuracy"] for row in own]
        axes.plot(x, y, color=style.colour(number), linestyle=_dash(number), drawstyle="steps-post")
        axes.plot(x[-1:], y[-1:], color=style.colour(number), marker=style.marker(number), markersize=4)
