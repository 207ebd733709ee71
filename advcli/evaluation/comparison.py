"""A compare command from folders to a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advcli.errors import ResourceError, UsageError
from advcli.evaluation import columns, pairs, table
from advcli.evaluation.stored import is_evaluation, is_run, open_evaluation, open_place


def gather(folders: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    """The comparison of run folders, or of evaluation folders; a model file means the evaluations of its weights."""
    parsed = [columns.parse(text) for text in names]
    places = [path.parent if path.name == "model.safetensors" and path.is_file() else path for path in folders]
    kinds = [_kind(place) for place in places]
    _check_once(places)
    if len(set(kinds)) > 1:
        raise UsageError(
            "runs and evaluations do not compare with one another",
            where=", ".join(f"{place} ({kind})" for place, kind in zip(places, kinds, strict=True)),
            next="give run folders alone, or evaluation folders alone",
        )
    if kinds[0] == "run":
        return table.tabulate([open_place(place) for place in places], parsed)
    if parsed:
        raise UsageError("columns are chosen for runs; of evaluations every attack is shown", where="--column")
    if len(places) == 1:
        raise UsageError("one evaluation alone compares with nothing", where=str(places[0]), next="name another on the same images")
    return pairs.compare([open_evaluation(place) for place in places])


def _kind(place: Path) -> str:
    if is_evaluation(place):
        return "evaluation"
    if place.is_file() or is_run(place):
        return "run"
    what = "there is no run and no evaluation here" if place.exists() else "there is no such folder"
    raise ResourceError(what, where=str(place), next="give folders such as runs/quickstart or runs/quickstart/evals/aa-1f3c9a2b")


def _check_once(places: Sequence[Path]) -> None:
    resolved = [place.resolve() for place in places]
    for number, place in enumerate(resolved):
        if place in resolved[:number]:
            raise UsageError("a run is named twice", where=str(places[number]), next="name each once")
