"""Clean against robust accuracy, with ARREST's trade-off curve and the papers' points (ARREST, figures 1 and 3 and table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advcli.errors import ResourceError, UsageError
from advcli.evaluation.columns import AVERAGE, CLASSES, parse
from advcli.evaluation.stored import open_place
from advcli.evaluation.table import tabulate
from advcli.measures import TRADEOFF_CURVES, ardist
from advcli.report.figures import style
from advcli.report.figures.data import FigureData
from advcli.report.papers import numbers

_WEAKNESSES = (
    "ARDist: distance to the curve, which ARREST fitted to WideResNets, its own point among them. An undefended network scores -0.58, "
    "above the paper's adversarial training; smaller networks lie below whatever they do; outside {low} to {high} % clean, where it is "
    "dashed, the curve says nothing; there is no interval; and an upper bound on robustness raises it like a true value."
)
_MEANT = {"cifar10": (84, 93), "cifar100": (56, 74)}  # clean accuracies that the curves were fitted over


def gather(runs: Sequence[Path], column: str = "aa", curve: str | None = None, *, papers: bool = True) -> FigureData:
    """Rows: {source, name, network, clean, robust, sum, ardist, low, high, verdict}, all numbers in per cent or points.

    source: `own`, or `PAPER, table T`. column: what counts as robust, as in compare; ARDist is meant for AutoAttack. curve: cifar10,
    cifar100 or none; left out, that of the runs' data set at linf 8/255. papers: whether their points under AutoAttack on the
    curve's data set are there too. low, high: of robust, 95 % Wilson interval of one network. ResourceError where no run has a number.
    """
    asked = parse(column)
    if asked.clean or asked.logged or asked.reading == CLASSES or asked == AVERAGE:
        raise UsageError(f"{column} is no robust accuracy of a network", where="--column", next="one such as aa or quick/pgd-20")
    table = tabulate([open_place(run) for run in runs], [asked])
    robust = asked.name
    rows = [
        _own(row, row["cells"]["clean"], row["cells"][robust]) for row in table["rows"] if row["cells"][robust] and row["cells"]["clean"]
    ]
    if not rows:
        hint = table["notes"][0] if table["notes"] else f"advcli attack RUN --suite {column.partition('/')[0]}"
        raise ResourceError(f"no run has a number for {column}", where=", ".join(map(str, runs)), next=hint)
    chosen = _curve(table) if curve is None else curve
    notes = [*table["notes"]]
    if chosen not in TRADEOFF_CURVES:
        chosen = "none"
        notes.append("no curve and no ARDist: they are for CIFAR-10 and CIFAR-100 at linf 8/255 (--curve draws one all the same)")
    rows += _printed(chosen) if papers and chosen != "none" else []
    for row in rows:
        row["sum"] = row["clean"] + row["robust"]
        row["ardist"] = ardist(row["clean"], row["robust"], chosen) if chosen != "none" else None
    own = [row for row in rows if row["source"] == "own"]
    beyond = [row["name"] for row in own if chosen != "none" and not _meant(row, chosen)]
    notes += [f"the ARDist of {', '.join(beyond)} says nothing: the curve was fitted to other clean accuracies"] if beyond else []
    return FigureData("tradeoff", rows, _headline(own, chosen), notes, {"curve": chosen, "column": robust, "bound": _bound(table, robust)})


def _own(row: dict[str, Any], clean: dict[str, Any], robust: dict[str, Any]) -> dict[str, Any]:
    low, high = [100 * end for end in robust["ci"]] if robust["ci"] else (None, None)
    facts = {"source": "own", "name": row["name"], "network": row["trains"]["network"] if row["trains"] else ""}
    values = {"clean": 100 * clean["mean"], "robust": 100 * robust["mean"], "sum": None, "ardist": None}
    return {**facts, **values, "low": low, "high": high, "verdict": robust["verdict"]}


def _curve(table: dict[str, Any]) -> str:
    """The data set that all runs share, if it has a curve and they were trained for its threat."""
    trained = {(t["data"], t["norm"], round(255 * t["eps"], 9)) if (t := row["trains"]) else None for row in table["rows"]}
    (one, *others) = trained
    return one[0] if one and not others and one[1:] == ("linf", 8) else "none"


def _printed(data: str) -> list[dict[str, Any]]:
    """Every row of the papers with clean and AutoAttack accuracy on a data set, each network of a paper once."""
    pairs: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in numbers():
        if cell.data == data and cell.unit == "percent" and cell.reading in ("clean", "aa"):
            key = (cell.paper, cell.table, cell.row, cell.network)
            pairs.setdefault(key, {"clean": None, "robust": None})["clean" if cell.reading == "clean" else "robust"] = cell.value
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (paper, number, name, network), values in pairs.items():
        if None not in values.values():
            facts = {"source": f"{paper}, table {number}", "name": name, "network": network, **values, "sum": None, "ardist": None}
            rows.setdefault((paper, network, *values.values()), {**facts, "low": None, "high": None, "verdict": None})
    return list(rows.values())


def _bound(table: dict[str, Any], name: str) -> bool:
    return any(column["upper_bound"] for column in table["columns"] if column["name"] == name)


def _meant(row: dict[str, Any], curve: str) -> bool:
    """Whether the curve was fitted over such clean accuracies."""
    low, high = _MEANT[curve]
    return bool(low <= row["clean"] <= high)


def _headline(own: Sequence[dict[str, Any]], curve: str) -> str:
    """The highest sum among numbers that can be trusted, where there are some."""
    best = max([row for row in own if row["verdict"] == "trustworthy"] or own, key=lambda row: row["sum"])
    words = f"{best['name']}: clean {best['clean']:.1f} + robust {best['robust']:.1f} = {best['sum']:.1f}"
    distance = f", ARDist {best['ardist']:.3f}" if curve != "none" and _meant(best, curve) else ""
    return words + distance + ("" if best["verdict"] == "trustworthy" else ", an upper bound" if best["verdict"] else "")


@style.styled
def draw(data: FigureData) -> Figure:
    figure = style.new_figure(height=4.4)
    axes = figure.subplots()
    papers = [row for row in data.rows if row["source"] != "own"]
    for number, paper in enumerate(dict.fromkeys(row["source"].partition(",")[0] for row in papers)):
        rows = [row for row in papers if row["source"].startswith(f"{paper},")]
        points = [row["clean"] for row in rows], [row["robust"] for row in rows]
        axes.scatter(
            *points,
            marker=style.marker(number),
            s=22,
            facecolors="none",
            edgecolors=style.OTHER,
            linewidths=0.8,
            label=f"printed by {paper}",
        )
    own = [row for row in data.rows if row["source"] == "own"]
    curve = data.more["curve"]
    for number, row in enumerate(own):
        ends = [[row["robust"] - row["low"]], [row["high"] - row["robust"]]] if row["low"] is not None else None
        look: dict[str, Any] = {"color": style.colour(number), "marker": style.marker(number), "markersize": 7, "linestyle": "none"}
        face = "white" if row["verdict"] == "upper bound" and not data.more["bound"] else style.colour(number)
        label = f"{row['name']}, ARDist {row['ardist']:.2f}" if curve != "none" and _meant(row, curve) else row["name"]
        axes.errorbar(row["clean"], row["robust"], yerr=ends, markerfacecolor=face, elinewidth=0.8, label=label, **look)
    outside = _frame(axes, own, papers)
    if curve != "none":
        _draw_curve(axes, curve)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(f"robust accuracy, {data.more['column']}, %{' (upper bounds)' if data.more['bound'] else ''}")
    figure.legend(loc="outside right upper")
    style.note(figure, [*data.notes, *_small_print(data, papers, outside)])
    return figure


def _frame(axes: Axes, own: Sequence[dict[str, Any]], papers: Sequence[dict[str, Any]]) -> int:
    """All own points and the nine tenths of the papers' in the middle, with a margin; returns how many of the papers' are outside."""
    sides = {key: np.array([row[key] for row in papers]) for key in ("clean", "robust")}
    limits = {}
    for key, margin in (("clean", 1.0), ("robust", 4.0)):
        middle = np.quantile(sides[key], [0.05, 0.95]).tolist() if papers else []
        ends = [row[end] for row in own for end in ("low", "high") if key == "robust" and row[end] is not None]
        values = [*(row[key] for row in own), *ends, *middle]
        limits[key] = (max(-2.0, min(values) - margin), min(101.0, max(values) + margin))
    axes.set_xlim(*limits["clean"])
    axes.set_ylim(*limits["robust"])
    inside = np.ones(len(papers), bool)
    for key, (low, high) in limits.items():
        inside &= (sides[key] >= low) & (sides[key] <= high)
    return int((~inside).sum())


def _draw_curve(axes: Axes, curve: str) -> None:
    """Solid where it was fitted, dashed beyond."""
    for low, high, line in ((*_MEANT[curve], "-"), (0, _MEANT[curve][0], "--"), (_MEANT[curve][1], 100, "--")):
        along = np.linspace(low, high, 400)
        label = "ARREST's curve" if line == "-" else None
        axes.plot(along, np.polyval(TRADEOFF_CURVES[curve], along), color="black", linestyle=line, linewidth=0.9, label=label, zorder=1)


def _small_print(data: FigureData, papers: Sequence[dict[str, Any]], outside: int) -> list[str]:
    lines = ["Filled: own runs" + ("; hollow and coloured: their upper bounds, through a gate." if not data.more["bound"] else ".")]
    if papers:
        more = f"; {outside} lie outside the frame" if outside else ""
        lines.append(f"Grey: what the papers print, each under AutoAttack as its paper ran it, through gates where there are some{more}.")
    if data.more["curve"] != "none":
        low, high = _MEANT[data.more["curve"]]
        lines.append(_WEAKNESSES.format(low=low, high=high))
    return lines
