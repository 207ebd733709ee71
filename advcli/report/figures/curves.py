"""What training logged, epoch by epoch: losses, accuracies, the gap between training and held-out images, learning rate, replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from advcli.errors import ResourceError
from advcli.evaluation.stored import events, hours
from advcli.report.figures import style
from advcli.report.figures.data import FigureData, run_names
from advcli.runs.folder import stored_recipe

_SPLITS = ("validation", "train")
_MEASURED = tuple(f"{split}_{what}" for split in _SPLITS for what in ("clean", "robust"))
_TAKEN = {"event", "epoch", "step", "lr", "selected", *_SPLITS}

Rows = Sequence[dict[str, Any]]


def gather(runs: Sequence[Path]) -> FigureData:
    """Rows: {run, epoch, lr, the logged losses by name, validation_clean, validation_robust, train_clean, train_robust, gap_clean,
    gap_robust, teacher_cosine, selected}, an epoch of a run each; None where it was not measured. Accuracies are fractions.

    gap: accuracy on training images minus that on held-out ones (AGAIN, figure 3). replayed: the share of images that ARREST showed
    without an attack; more: replays, of every run how it showed them: with noise, clean, or None without replay. ResourceError
    where no run has a log; a run without one is left out and named.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    replays: dict[str, str | None] = {}
    for name, folder in zip(run_names(runs), map(_folder, runs), strict=True):
        found = [_row(name, event) for event in events(folder)] if folder.is_dir() else []
        replays |= {name: _replays(folder)}
        if not found:
            notes.append(f"{name} has no training log")
            continue
        rows += found
        broken = sorted({key for row in found for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)})
        notes += [f"{name}: {', '.join(broken)} not a finite number in some epochs"] if broken else []
    if not rows:
        hint = "name run folders: a model file of other origin has no log"
        raise ResourceError("there is no training log to draw", where=", ".join(map(str, runs)), next=hint)
    took = [time for run in runs if (time := hours(_folder(run))) is not None]
    notes += [f"{sum(took):.2g} hours of training in all"] if took else []
    keys = dict.fromkeys(key for row in rows for key in row)
    return FigureData("curves", [{key: row.get(key) for key in keys} for row in rows], _headline(rows), notes, {"replays": replays})


def _folder(run: Path) -> Path:
    return run.parent if run.is_file() else run


def _replays(folder: Path) -> str | None:
    recipe = stored_recipe(folder)
    replay = getattr(recipe.objective, "replay", None) if recipe else None
    return replay.input if replay else None


def _row(name: str, event: dict[str, Any]) -> dict[str, Any]:
    measured = {split: event.get(split) or {} for split in _SPLITS}
    row: dict[str, Any] = {"run": name, "epoch": event["epoch"], "lr": event.get("lr")}
    row |= {key: float(value) for key, value in event.items() if key not in _TAKEN and isinstance(value, int | float)}
    for split, values in measured.items():
        row |= {f"{split}_{what}": values.get(what) for what in ("clean", "robust")}
    for what in ("clean", "robust"):
        ours, others = measured["train"].get(what), measured["validation"].get(what)
        row[f"gap_{what}"] = ours - others if ours is not None and others is not None else None
    cosine, attack = (measured["validation"].get(key) for key in ("teacher_cosine", "attack"))
    return row | {"teacher_cosine": cosine, "attack": attack, "selected": bool(event.get("selected", False))}


def _headline(rows: Rows) -> str:
    """Of the run whose kept weights were the most robust."""
    kept = {row["run"]: row for row in rows if row["selected"] and _finite(row["validation_robust"])}
    if not kept:
        return f"{len(rows)} epochs, none of them measured on held-out images"
    best = max(kept.values(), key=lambda row: row["validation_robust"])
    last = next(row for row in reversed(rows) if row["run"] == best["run"] and _finite(row["validation_robust"]))
    words = f"{best['run']}: {100 * best['validation_robust']:.1f} % robust on held-out images in epoch {best['epoch']}, kept"
    return words if last is best else f"{words}; {100 * last['validation_robust']:.1f} % in epoch {last['epoch']}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


@style.styled
def draw(data: FigureData) -> Figure:
    """A panel each; colours are runs, solid and dashed lines are told in the panels' own legends."""
    names = list(dict.fromkeys(row["run"] for row in data.rows))
    panels = [panel for key, panel in _PANELS if any(row.get(key) is not None for row in data.rows)]
    figure, grid = style.panels(len(panels), height=2.4, wide=2, sharex=True)
    for axes, panel in zip(grid, panels, strict=True):
        panel(axes, data.rows, names)
    for axes in grid[-2:]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=True)
    if len(names) > 1:
        replays = {name: f"{name}, {how} replayed" if how else name for name, how in data.more["replays"].items()}
        handles = [grid[0].plot([], [], color=style.colour(k), label=replays[name])[0] for k, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
    style.note(figure, [*data.notes, *_small_print(data.rows)])
    return figure


def _small_print(rows: Rows) -> list[str]:
    attacks = sorted({row["attack"] for row in rows if row["attack"]})
    words = f"Robust: under {' or '.join(attacks)} from one start, an upper bound. Dots: the epoch whose weights were kept."
    return [words] if attacks else []


def _losses(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    """The loss of every run; of a single run its parts too."""
    axes.set_ylabel("loss")
    _lines(axes, rows, names, "loss", "-")
    parts = [key for key in rows[0] if key.partition(".")[0] not in _NO_LOSS] if len(names) == 1 else []
    for number, key in enumerate(parts[:_PARTS], 1):
        axes.plot(*_series(rows, names[0], key), color=style.colour(number), linewidth=1, linestyle="--", label=key)
    if parts:
        axes.legend(fontsize=7)


def _accuracies(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    axes.set_ylabel("held-out accuracy, %")
    axes.set_ylim(0, 100)
    _pair(axes, rows, names, ("validation_clean", "validation_robust"))
    for number, name in enumerate(names):
        kept = [row for row in rows if row["run"] == name and row["selected"] and row["validation_robust"] is not None][-1:]
        for row in kept:
            axes.plot(row["epoch"], 100 * row["validation_robust"], "o", color=style.colour(number), markersize=4)


def _gaps(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    axes.set_ylabel("training - held-out, points")
    axes.axhline(0, color=style.OTHER, linewidth=0.6)
    _pair(axes, rows, names, ("gap_clean", "gap_robust"))


def _rate(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    axes.set_ylabel("learning rate")
    _lines(axes, rows, names, "lr", "-")


def _replay(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    axes.set_ylabel("replayed images, %")
    _lines(axes, rows, names, "replayed", "-", scale=100)
    axes.set_ylim(bottom=0)


def _cosine(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    axes.set_ylabel("cosine to the pretrained")
    _lines(axes, rows, names, "teacher_cosine", "-")


_PANELS = (
    ("loss", _losses),
    ("validation_clean", _accuracies),
    ("gap_clean", _gaps),
    ("lr", _rate),
    ("replayed", _replay),
    ("teacher_cosine", _cosine),
)
_PARTS = 6  # of a loss that are drawn
_SHARES = {"replayed", "gated", "anc_match", "collisions", "prompts_with_label"}  # logged beside the losses
_NO_LOSS = {"run", "epoch", "lr", "loss", "selected", "attack", "teacher_cosine", "gap_clean", "gap_robust", *_MEASURED, *_SHARES}


def _pair(axes: Axes, rows: Rows, names: Sequence[str], keys: tuple[str, str]) -> None:
    """Clean accuracy solid, robust accuracy dashed."""
    for key, line in zip(keys, ("-", "--"), strict=True):
        _lines(axes, rows, names, key, line, scale=100)
    handles = [axes.plot([], [], color="black", linestyle=line, label=word)[0] for line, word in (("-", "clean"), ("--", "robust"))]
    axes.legend(handles=handles, fontsize=7)


def _lines(axes: Axes, rows: Rows, names: Sequence[str], key: str, line: str, scale: float = 1) -> None:
    for number, name in enumerate(names):
        epochs, values = _series(rows, name, key)
        marker = {"-": ".", "--": "x"}[line] if len(epochs) < 4 else ""
        axes.plot(epochs, [scale * value for value in values], color=style.colour(number), linestyle=line, marker=marker)


def _series(rows: Rows, name: str, key: str) -> tuple[list[int], list[float]]:
    """(epochs, values) where there is a value; one that is no number leaves a gap."""
    found = [(row["epoch"], row[key]) for row in rows if row["run"] == name and row.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]
