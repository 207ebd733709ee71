"""The data behind a figure: what is drawn, and what --json and --csv print."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FigureData:
    """rows: flat, all with the same keys: the table. headline: the one number that matters, in words.

    notes: what a reader of the figure must know. more: what is drawn and fits no flat row, such as images; arrays are allowed.
    """

    kind: str
    rows: list[dict[str, Any]]
    headline: str
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; what is no finite number becomes null."""
        whole = {"kind": self.kind, "headline": self.headline, "notes": self.notes, "rows": self.rows, **self.more}
        return {name: _plain(value) for name, value in whole.items()}

    def to_csv(self) -> str:
        """The rows under a line of names; an absent value is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in self.rows)
        return text.getvalue()


def run_names(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: its folder's, with as many folders above it as it takes to tell them apart.

    run: a folder, which means its model.safetensors, or a model file.
    """
    places = [(run.parent if run.name == "model.safetensors" else run.with_suffix("") if run.is_file() else run).resolve() for run in runs]
    names, deep = [place.name for place in places], 1
    while len(set(names)) < len(set(places)):
        deep += 1
        names = ["/".join(place.parts[-deep:]) for place in places]
    return names


def evenly(count: int, most: int) -> list[int]:
    """At most so many of count positions, spread evenly from the first to the last."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()
    return chosen


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(child) for name, child in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
