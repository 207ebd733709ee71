"""Finished evaluations and runs as they lie on disk, read without torch; every number is taken from the ledger again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from advcli.errors import CheckpointError, RecipeError
from advcli.evaluation.summary import Outcomes, outcomes, summarise
from advcli.recipe import Recipe
from advcli.runs import container, log
from advcli.runs import folder as run_folder
from advcli.runs.ledger import Arrays, Ledger

_IMAGES = ("adversarial", "clean")  # nearly all of a ledger, and no number needs them


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its ledger without the images, and what it amounts to."""

    folder: Path
    arrays: Arrays
    header: dict[str, Any]

    @cached_property
    def report(self) -> dict[str, Any]:
        return summarise(self.arrays, self.header)

    @cached_property
    def outcomes(self) -> Outcomes:
        return outcomes(self.arrays, self.header)

    @property
    def suite(self) -> str:
        return str(self.header["suite"])

    @property
    def n(self) -> int:
        return len(self.arrays["index"])

    @property
    def threat(self) -> tuple[str, float]:
        """(norm, eps as a number): 8/255 is the same radius however it was typed."""
        threat = self.header["identity"]["threat"]
        return threat["norm"], float(threat["eps"])

    @property
    def protocol(self) -> str:
        """What was run, of transfer attacks with the networks that they were crafted on."""
        sources = self.header["identity"].get("sources", [])
        return str(self.header["protocol"]) + (f" from {', '.join(sha[:8] for sha in sources)}" if sources else "")

    @property
    def images(self) -> str:
        """SHA-256 of images, labels and indices."""
        return str(self.header["identity"]["images_sha256"])


@dataclass(frozen=True)
class Run:
    """A run folder. place: that folder, or a checkpoint of others in it. recipe: None beside such a one; asked: that with `auto` where
    the machine settled it. header: its model's, None there and where none was written yet.

    log: an event an epoch, in order. hours: of training, None where no log tells. evaluations: finished ones of that model.
    of_last: those of the last epoch's weights, which may be the same. passed_over: (folder, why) of the others.
    """

    folder: Path
    place: Path
    recipe: Recipe | None
    asked: Recipe | None
    header: dict[str, Any] | None
    log: tuple[dict[str, Any], ...]
    hours: float | None
    evaluations: tuple[Evaluation, ...]
    of_last: tuple[Evaluation, ...]
    passed_over: tuple[tuple[Path, str], ...]

    @property
    def epoch(self) -> int | None:
        """The last that was logged."""
        return self.log[-1]["epoch"] if self.log else None


def is_evaluation(folder: Path) -> bool:
    return (folder / "identity.json").is_file() or (folder / "ledger").is_dir()


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("recipe.yaml", "model.safetensors", "evals"))


def open_evaluation(folder: Path) -> Evaluation:
    """CheckpointError where it is not finished, or damaged."""
    ledger = Ledger(folder / "ledger")
    if not ledger.complete:
        raise CheckpointError(
            "this evaluation is not finished", where=str(folder), next="the attack command that began it, with --resume, goes on with it"
        )
    arrays, header = ledger.read()
    kept = {name: array for name, array in arrays.items() if name not in _IMAGES}
    return Evaluation(folder, kept, header)


def evaluations_in(place: Path) -> list[Evaluation]:
    """An evaluation alone, those of a run's own weights, or of a model file's, or the finished ones that a folder holds."""
    if is_evaluation(place):
        return [open_evaluation(place)]
    if place.is_file() or is_run(place):
        return list(open_place(place).evaluations)
    return [open_evaluation(path) for path in sorted(place.glob("*")) if is_evaluation(path) and Ledger(path / "ledger").complete]


def open_place(place: Path) -> Run:
    """The run of a folder, or of one model file in it, as `open_run`."""
    return open_run(place.parent, place.name) if place.is_file() else open_run(place)


def open_run(folder: Path, name: str = "model.safetensors") -> Run:
    """name: of the model file that evaluations must be of.

    CheckpointError where something is damaged, or where no header tells whose several networks' evaluations are meant.
    """
    others = (folder / name).is_file() and container.is_foreign(folder / name)
    header, last = (None if others else _model_header(folder / file) for file in (name, "last.safetensors"))
    evaluations, of_last, passed_over = [], [], []
    for path in _evaluation_folders(folder):
        if not Ledger(path / "ledger").complete:
            passed_over.append((path, f"the {_suite_of(path)} evaluation is not finished; --resume goes on with it"))
            continue
        found = open_evaluation(path)
        why = _of_another_file(found, name) if others else _not_deployed(found, header)
        if not why:
            evaluations.append(found)
        if last and not _not_deployed(found, last):
            of_last.append(found)
        elif why:
            passed_over.append((path, why))
    if header is None:
        _check_one_network(evaluations, folder / name if others else folder)
    if others:  # what lies beside it is another network's
        return Run(folder, folder / name, None, None, None, (), None, tuple(evaluations), (), tuple(passed_over))
    log = tuple(sorted(events(folder), key=lambda event: event["epoch"]))
    recipe = _recipe(folder)
    asked = run_folder.as_asked(folder, recipe) if recipe else None
    return Run(folder, folder, recipe, asked, header, log, hours(folder), tuple(evaluations), tuple(of_last), tuple(passed_over))


def _model_header(path: Path) -> dict[str, Any] | None:
    return container.read_header(path, "model") if path.is_file() else None


def _not_deployed(found: Evaluation, model: dict[str, Any] | None) -> str:
    """In what the network that was judged is not the run's model as it is deployed; empty where it is."""
    identity = found.header["identity"]
    if found.report["head"] != "final":
        return f"it judged head {found.report['head']}, not the decision"
    if model is None:
        return ""
    if identity["tensors_sha256"] != model["tensors_sha256"]:
        return "it attacked other weights than those in the model file"
    put, own = ((part.get("architecture") or {}).get("gates") or [] for part in (identity, model))
    return "" if put == own else "a gate was put on the network for it"


def _of_another_file(found: Evaluation, name: str) -> str:
    """The same for a checkpoint of others, which has no gates and whose file alone tells it from those beside it."""
    judged = Path(found.header["checkpoint"]).name
    if judged != name:
        return f"it attacked {judged}"
    return _not_deployed(found, None) or ("a gate was put on the network for it" if _network(found)[1] != "[]" else "")


def _network(found: Evaluation) -> tuple[str, str]:
    """(digest of the weights, gates) that were judged."""
    identity = found.header["identity"]
    return identity["tensors_sha256"], json.dumps((identity.get("architecture") or {}).get("gates") or [], sort_keys=True)


def _check_one_network(evaluations: Sequence[Evaluation], place: Path) -> None:
    """CheckpointError where numbers of several networks would stand under one name."""
    if len({_network(found) for found in evaluations}) > 1:
        files = sorted({str(found.header["checkpoint"]) for found in evaluations})
        folders = ", ".join(sorted(found.folder.name for found in evaluations))
        what = f"evaluations of several networks lie here: {folders}"
        hint = f"name one of {', '.join(files)}" if len(files) > 1 else "name the evaluation folders"
        raise CheckpointError(what, where=str(place), next=hint)


def _evaluation_folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted((folder / "evals").glob("*")) if path.is_dir() and is_evaluation(path))


def _suite_of(folder: Path) -> str:
    """The suite of an unfinished evaluation, for a message only."""
    try:
        return str(json.loads((folder / "identity.json").read_text(encoding="utf-8"))["suite"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name


def events(folder: Path) -> list[dict[str, Any]]:
    """What training logged, an event an epoch; CheckpointError where the log is damaged."""
    return [event for event in _read_log(folder / "metrics.jsonl") if "epoch" in event]


def hours(folder: Path) -> float | None:
    """How long training took, over all its sessions; None where no epoch was timed."""
    path = folder / "timing.jsonl"
    try:
        seconds = [float(event["seconds"]) for event in _read_log(path)]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the log is damaged: {error}", where=str(path)) from None
    return sum(seconds) / 3600 if seconds else None


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        return [{**event, "epoch": int(event["epoch"])} if "epoch" in event else event for event in log.read(path)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the log is damaged: {error}", where=str(path)) from None


def _recipe(folder: Path) -> Recipe | None:
    """The stored recipe; here a damaged one is a receipt that does not hold, not something that the user typed."""
    try:
        return run_folder.stored_recipe(folder)
    except RecipeError as error:
        raise CheckpointError(f"the stored recipe is damaged\n{error.what}", where=str(folder / "recipe.yaml")) from None
