"""An evaluation from a job to its report: its folder is claimed, its run finished or gone on with, its ledger read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from advcli.errors import CheckpointError, InterruptedRunError, ResumeError, UsageError
from advcli.evaluation.job import Job, Watcher
from advcli.evaluation.run import Run
from advcli.evaluation.summary import summarise
from advcli.runs import atomic
from advcli.runs.ledger import Ledger
from advcli.training import distributed
from advcli.training.interrupt import termination_interrupts


def evaluate(job: Job, folder: Path | None, watcher: Watcher, *, device: torch.device, resume: bool) -> tuple[Path, dict[str, Any]]:
    """Run the job into folder (None: beside the checkpoint, under evals/); returns the folder and the report, `seconds` included.

    A finished evaluation of the same identity is reported again, not run again. An unfinished one goes on with resume.
    """
    identity = job.identity()
    folder = folder or job.loaded.evals / f"{job.suite}-{identity['digest'][:8]}"
    ledger = Ledger(folder / "ledger")
    _check_alike(identity, folder)
    if not distributed.lead(lambda: _claim(folder, identity, ledger, resume=resume)):
        try:
            with termination_interrupts():
                Run(job, identity, ledger, watcher, device).finish(folder)
        except KeyboardInterrupt:
            what = "interrupted; every finished image is saved"
            raise InterruptedRunError(what, where=str(folder), next="the same command with --resume goes on from there") from None
    return folder, distributed.lead(lambda: _report(folder, ledger))


def _report(folder: Path, ledger: Ledger) -> dict[str, Any]:
    arrays, header = ledger.read()
    report = summarise(arrays, header)
    atomic.write_json(folder / "report.json", report)
    return {**report, "seconds": _stored_seconds(folder)}


def _stored_seconds(folder: Path) -> float | None:
    """The clock is no receipt: a lost or damaged one costs nothing but itself."""
    try:
        return float(json.loads((folder / "timing.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_alike(identity: dict[str, Any], folder: Path) -> None:
    """Several processes attack parts of one evaluation: CheckpointError where a machine has another file or other images."""
    first = distributed.lead(lambda: identity)
    different = [key for key in identity if identity[key] != first.get(key)]
    if different:
        what = f"process {distributed.rank()} would evaluate something else than process 0: {', '.join(different)}"
        raise CheckpointError(what, where=str(folder), next="every machine needs the same checkpoint and data")


def _claim(folder: Path, identity: dict[str, Any], ledger: Ledger, *, resume: bool) -> bool:
    """Write identity.json, or check that the one there is the same; refuse to walk over somebody's work. Whether it is done already."""
    path = folder / "identity.json"
    if path.is_file():
        try:
            stored = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise CheckpointError(
                "the record of what is evaluated here is damaged", where=str(path), next="name another folder with --out"
            ) from None
        rows = [
            f"{key}: {stored.get(key)} in the folder, {identity[key]} now"
            for key in identity
            if key != "digest" and stored.get(key) != identity[key]
        ]
        if rows:
            raise ResumeError(
                "the folder holds another evaluation\n" + "\n".join(rows), where=str(folder), next="name another folder with --out"
            )
        if not ledger.complete and ledger.shards() and not resume:
            raise UsageError("this evaluation was begun and not finished", where=str(folder), next="--resume goes on with it")
    elif folder.exists() and not atomic.is_free(folder):
        raise UsageError(
            "the folder holds something else, and nothing is overwritten", where=str(folder), next="name another folder with --out"
        )
    atomic.make_folder(folder)
    if not path.is_file():
        atomic.write_json(path, identity)
    return ledger.complete
