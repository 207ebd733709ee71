"""Accuracies before and after reverse attention was put on a trained network (ANCRA, figure 7), attacks that know the gate included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from advcli.errors import ResourceError, UsageError
from advcli.evaluation.stored import Evaluation, evaluations_in
from advcli.measures import wilson
from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names

_SIDES = ("before", "after")


def gather(folders: Sequence[Path]) -> FigureData:
    """Rows: {model, attack, side, accuracy, low, high, n, verdict}. side: before or after. attack: clean, one of a suite, or a suite.

    folders: pairs, each the network before and then after; a run, or a folder of evaluations, stands for all of them, an evaluation
    for itself. Suites that go on with survivors are one bar, their worst case. Of several sets of images or radii that both sides
    share, the one of most evaluations. UsageError for half a pair; ResourceError where a side has no evaluation, nothing is shared,
    or the second has no gate.
    """
    if len(folders) % 2:
        raise UsageError("a network before and one after make a pair", where=str(folders[-1]), next="BEFORE AFTER [BEFORE AFTER ...]")
    rows: list[dict[str, Any]] = []
    for name, before, after in zip(run_names([_network(folder) for folder in folders[::2]]), folders[::2], folders[1::2], strict=True):
        rows += _pair(name, before, after)
    return FigureData("deploy", rows, _headline(rows), [])


def _network(folder: Path) -> Path:
    """The folder of the network that an evaluation lies beside, by which it is known."""
    return folder.parent.parent if folder.parent.name == "evals" else folder


def _pair(name: str, before: Path, after: Path) -> list[dict[str, Any]]:
    sides = [_evaluations(before), _evaluations(after)]
    shared = set.intersection(*({_condition(e) for e in side} for side in sides))
    if not shared:
        hint = "attack both with the same --data, --split, --n, --seed and --eps"
        raise ResourceError("before and after were not attacked on the same images at one radius", where=f"{before} and {after}", next=hint)
    if not any(e.report["gated"] for e in sides[1]):
        hint = "the first folder of a pair is the network before, the second the one with the gate"
        raise ResourceError("the network after has no gate", where=str(after), next=hint)
    chosen = max(shared, key=lambda one: (sum(_condition(e) == one for side in sides for e in side), one))
    bars = [_bars([e for e in side if _condition(e) == chosen]) for side in sides]
    attacks = list(dict.fromkeys([*bars[0], *bars[1]]))
    pairs = [(attack, side, found) for attack in attacks for side, found in zip(_SIDES, bars, strict=True) if attack in found]
    return [{"model": name, "attack": attack, "side": side} | found[attack] for attack, side, found in pairs]


def _condition(evaluation: Evaluation) -> tuple[int, str, tuple[str, float]]:
    """What both sides must share; more images come first."""
    return evaluation.n, evaluation.images, evaluation.threat


def _evaluations(place: Path) -> list[Evaluation]:
    found = evaluations_in(place)
    if not found:
        hint = f"advcli attack {place} --suite quick"
        raise ResourceError("there is no finished evaluation of this network", where=str(place), next=hint)
    return found


def _bars(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Attack to {accuracy, low, high, n, verdict}; of several of one name the lowest."""
    bars: dict[str, dict[str, Any]] = {}
    for e in sorted(evaluations, key=lambda e: e.suite == "adaptive"):
        whole = {"clean": e.outcomes.correct}
        if any(entry["on"] == "survivors" for entry in e.header["entries"]):
            whole[e.suite] = e.outcomes.robust
        else:
            whole |= e.outcomes.left
        for attack, right in whole.items():
            low, high = wilson(int(right.sum()), e.n)
            bar = {"accuracy": float(right.mean()), "low": low, "high": high, "n": e.n, "verdict": e.report["verdict"]}
            if attack not in bars or bar["accuracy"] < bars[attack]["accuracy"]:
                bars[attack] = bar
    return bars


def _headline(rows: Sequence[dict[str, Any]]) -> str:
    """The lowest number after, whatever it was found by: what the defence is worth."""
    after = [row for row in rows if row["side"] == "after" and row["attack"] != "clean"]
    if not after:
        return "no attack on the network after"
    low = min(after, key=lambda row: row["accuracy"])
    before = [row["accuracy"] for row in rows if row["model"] == low["model"] and row["side"] == "before" and row["attack"] != "clean"]
    was = f", {100 * min(before):.1f} % before" if before else ""
    return f"{low['model']}: at most {100 * low['accuracy']:.1f} % after ({low['attack']}){was}"


@style.styled
def draw(data: FigureData) -> Figure:
    """A panel a model, two bars an attack."""
    models = list(dict.fromkeys(row["model"] for row in data.rows))
    figure = style.new_figure(height=0.8 + 2.2 * len(models))
    for axes, model in zip(figure.subplots(len(models), 1, squeeze=False, sharey=True).flat, models, strict=True):
        rows = [row for row in data.rows if row["model"] == model]
        attacks = list(dict.fromkeys(row["attack"] for row in rows))
        for side, shift, colour in zip(_SIDES, (-0.2, 0.2), (style.CLEAN, style.ADVERSARIAL), strict=True):
            own = [row for row in rows if row["side"] == side]
            places = [attacks.index(row["attack"]) + shift for row in own]
            heights = [100 * row["accuracy"] for row in own]
            ends = [[100 * abs(row["accuracy"] - row[end]) for row in own] for end in ("low", "high")]
            label = f"{side} reverse attention" if model == models[0] else None
            axes.bar(places, heights, 0.38, color=colour, yerr=ends, error_kw={"elinewidth": 0.8, "ecolor": "#333333"}, label=label)
            for place, height in zip(places, heights, strict=True):
                axes.annotate(f"{height:.0f}", (place, 2), ha="center", color="white", fontsize=7)
        axes.set_xticks(range(len(attacks)), attacks, rotation=20 if len(attacks) > 6 else 0)
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
        axes.set_title(model)
    figure.legend(loc="outside upper left", ncols=2)
    words = "Attacks through the gate follow a gradient that it hides: only what knows it (adaptive, joint) says what the gate is worth."
    style.note(figure, [*data.notes, words, "Bars: 95 % Wilson intervals."])
    return figure
