"""Accuracy against the radius that was attacked: security curves with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advcli.errors import ResourceError
from advcli.evaluation.radii import summarise
from advcli.evaluation.stored import Evaluation, evaluations_in
from advcli.measures import wilson
from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names


def gather(runs: Sequence[Path], suite: str | None = None) -> FigureData:
    """Rows: {run, suite, eps, radius, accuracy, low, high, n, closed_by_smaller, verdict}, a radius of a run each, from clean (eps 0).

    run: a run folder, or one that holds the evaluations of a list of eps. suite: left out, that of most radii. Accuracies are
    fractions, with 95 % Wilson intervals. ResourceError where no run was attacked at two radii on the same images.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    norms: set[str] = set()
    for name, run in zip(run_names(runs), runs, strict=True):
        curve = _curve(evaluations_in(run), suite)
        if curve:
            rows += _rows(name, curve)
            norms.add(curve[0].threat[0])
        else:
            notes.append(f"{name} was not attacked at two radii on the same images")
    if not rows:
        hint = "advcli attack RUN --eps 2/255,4/255,8/255 gives a curve"
        raise ResourceError("there is no security curve to draw\n" + "\n".join(notes), where=", ".join(map(str, runs)), next=hint)
    last = max(rows, key=lambda row: row["radius"])
    headline = f"{last['run']}: {100 * last['accuracy']:.1f} % left at eps {last['eps']} ({last['suite']}, n = {last['n']})"
    masked = sorted({row["run"] for row in rows if row["verdict"] == "masked"})
    notes += [f"{', '.join(masked)}: gradients look masked, do not trust the curve"] if masked else []
    return FigureData("security", rows, headline, notes, {"norm": " or ".join(sorted(norms))})


def _curve(evaluations: Sequence[Evaluation], suite: str | None) -> list[Evaluation]:
    """Of the series that share everything but the radius the one with most radii, by ascending radius; empty where none has two."""
    series: dict[tuple[str, ...], dict[float, Evaluation]] = {}
    for e in evaluations:
        if suite in (None, e.suite) and e.report["split"] == "test":
            radii = series.setdefault((e.suite, e.protocol, e.images, e.threat[0], e.report["head"]), {})
            held = radii.get(e.threat[1])
            if held is None or e.report["robust"] < held.report["robust"]:
                radii[e.threat[1]] = e
    best = max(series.values(), key=len, default={})
    return [best[eps] for eps in sorted(best)] if len(best) > 1 else []


def _rows(name: str, curve: Sequence[Evaluation]) -> list[dict[str, Any]]:
    n, correct = curve[0].n, int(curve[0].outcomes.correct.sum())
    low, high = wilson(correct, n)
    clean = {"run": name, "suite": curve[0].suite, "eps": "0", "radius": 0.0, "accuracy": correct / n, "low": low, "high": high, "n": n}
    rows: list[dict[str, Any]] = [{**clean, "closed_by_smaller": 0, "verdict": None}]
    for evaluation, point in zip(curve, summarise(curve)["curve"], strict=True):
        ends = {"low": point["ci"][0], "high": point["ci"][1]}
        part = {"eps": point["eps"], "radius": evaluation.threat[1], "accuracy": point["robust"], **ends}
        rows.append({**clean, **part, "closed_by_smaller": point["closed_by_smaller"], "verdict": point["verdict"]})
    return rows


@style.styled
def draw(data: FigureData) -> Figure:
    figure = style.new_figure(5.5, 3.6)
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row["run"] for row in data.rows)):
        rows = [row for row in data.rows if row["run"] == name]
        x, y = [row["radius"] for row in rows], [100 * row["accuracy"] for row in rows]
        low, high = ([100 * row[end] for row in rows] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=style.colour(number), alpha=0.15, linewidth=0)
        axes.plot(x, y, color=style.colour(number), marker=style.marker(number), markersize=4, label=f"{name} ({rows[0]['suite']})")
    _label_radii(axes, data.rows)
    axes.set_xlabel(f"eps, {data.more['norm']}, pixels in [0, 1]")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 101)
    axes.legend()
    words = "Worst case per image; what a smaller eps broke counts as broken at every larger one. Bands: 95 % Wilson intervals."
    style.note(figure, [*data.notes, words])
    return figure


def _label_radii(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Radii as they were typed, where there are few enough to read."""
    typed = {row["radius"]: row["eps"] for row in sorted(rows, key=lambda row: row["radius"])}
    if len(typed) <= 10:
        axes.set_xticks(list(typed), list(typed.values()))
    else:
        axes.xaxis.set_major_formatter(lambda value, _: str(Fraction(value).limit_denominator(255)))
