"""What a page or a card is about: an evaluation, and the run folder that it lies in. Read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advcli.errors import CheckpointError, ResourceError
from advcli.evaluation.masking import UPPER_BOUNDS
from advcli.evaluation.stored import Evaluation, Run, is_evaluation, is_run, open_evaluation, open_place, open_run
from advcli.runs import container

_KNOWING = ("full", "adaptive")  # suites that know a network's gates


@dataclass(frozen=True)
class Subject:
    """evaluation: the one whose number leads; None where a run has none. run: None where the evaluation lies in no run folder.

    notes: why something that a reader may look for is not there.
    """

    folder: Path
    evaluation: Evaluation | None
    run: Run | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The recipe's name, else that of the folder that the checkpoint lay in."""
        if self.run is not None:
            return self.run.recipe.name if self.run.recipe else self.run.place.resolve().name
        assert self.evaluation is not None, "a subject is a run, an evaluation, or both"
        return Path(self.evaluation.header["checkpoint"]).parent.name or "checkpoint"

    @property
    def model(self) -> dict[str, Any]:
        """The header of the run's model file; empty where there is none."""
        return (self.run.header if self.run else None) or {}

    @property
    def others(self) -> tuple[Evaluation, ...]:
        """The run's other evaluations."""
        own = self.evaluation.folder.resolve() if self.evaluation else None
        return tuple(e for e in (self.run.evaluations if self.run else ()) if e.folder.resolve() != own)


def of(path: Path) -> Subject:
    """The subject in a run folder, an evaluation folder or at a model file. CheckpointError where there is none, or it is damaged."""
    if path.is_file():
        run = open_place(path)
        return Subject(path.parent, leading(run), run)
    if is_evaluation(path):
        return _of_evaluation(path)
    if not is_run(path):
        what = "there is neither a run nor an evaluation here" if path.exists() else "there is no such folder"
        raise CheckpointError(what, where=str(path), next="name a run folder, such as runs/quickstart, or one under its evals/")
    run = open_run(path)
    return Subject(path, leading(run), run)


def leading(run: Run) -> Evaluation | None:
    """The evaluation whose number stands for the run: the hardest suite on most images, and the lowest number of equals.

    Those at another threat, on another data set or on training images are for their own pages.
    """
    own = [e for e in run.evaluations if e.report["split"] == "test" and (run.recipe is None or _as_trained(e, run))]
    return max(own, key=lambda e: (e.suite not in UPPER_BOUNDS, e.suite in _KNOWING, e.n, -e.report["robust"]), default=None)


def _as_trained(evaluation: Evaluation, run: Run) -> bool:
    assert run.recipe is not None, "asked only where a recipe tells"
    threat = run.recipe.threat
    return evaluation.threat == (threat.norm, float(threat.eps)) and evaluation.report["data"] in (None, run.recipe.data.name)


def _of_evaluation(folder: Path) -> Subject:
    evaluation = open_evaluation(folder)
    home = folder.resolve().parent.parent
    if folder.resolve().parent.name != "evals" or not is_run(home):
        return Subject(folder, evaluation, None)
    try:
        name = Path(evaluation.header["checkpoint"]).name
        mine = (name,) if container.is_foreign(home / name) else ()
        run = open_run(folder.parent.parent if folder.parent.name == "evals" else home, *mine)
    except ResourceError as error:  # what lies beside an evaluation takes nothing from it
        return Subject(folder, evaluation, None, (f"the run folder could not be read: {error.what} ({error.where})",))
    if run.header is not None and run.header["tensors_sha256"] != evaluation.header["identity"]["tensors_sha256"]:
        note = "the run folder holds other weights than those that were attacked, so it is left out"
        return Subject(folder, evaluation, None, (note,))
    return Subject(folder, evaluation, run)


def clock(path: Path) -> dict[str, Any]:
    """timing.json of an evaluation; empty where it is lost or damaged, for the clock is no receipt."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
