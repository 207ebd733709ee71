"""A transfer matrix: several networks attacked with what was crafted on several others (ANCRA, table VII), each row an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advcli.errors import UsageError
from advcli.evaluation import masking, session
from advcli.evaluation.job import Watcher
from advcli.evaluation.session import Options
from advcli.evaluation.stored import Evaluation, open_evaluation
from advcli.evaluation.suites import TRANSFER
from advcli.measures import wilson


def run(options: Options, targets: Sequence[Path], watcher: Watcher) -> dict[str, Any]:
    """The report of a matrix. A network is not its own source. UsageError for another suite, or where a target is left without a source."""
    if options.suite != TRANSFER:
        raise UsageError("several checkpoints make a transfer matrix", where="--suite", next="--suite transfer --source OTHER")
    paths = [session.find_checkpoint(target) for target in targets]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a checkpoint is named twice", where="CKPT", next="name each once")
    rows = [_row(options, path, number) for number, path in enumerate(paths)]
    folders, seconds = [], 0.0
    for row in rows:
        folder, report = session.run(row, watcher)
        folders.append(folder)
        seconds += report["seconds"] or 0.0
    return {**summarise([open_evaluation(folder) for folder in folders]), "seconds": seconds}


def _row(options: Options, path: Path, number: int) -> Options:
    """The evaluation of one target, by every source but itself."""
    others = tuple(source for source in options.source if session.find_checkpoint(source).resolve() != path.resolve())
    if not others:
        raise UsageError("no source is left for a checkpoint that is its only one", where=str(path), next="--source OTHER")
    out = options.out / f"{number + 1}-{path.parent.name or path.stem}" if options.out else None
    return replace(options, checkpoint=path, source=others, out=out)


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """evaluations: of suite transfer, one a target, on equal images.

    `matrix` has for each target its `clean` accuracy and by source what stands after its attacks, the worst case per image, with the
    interval and each attack's own accuracy; fractions of all n images.
    """
    reports, first = [evaluation.report for evaluation in evaluations], evaluations[0]
    rows = [
        {"target": report["checkpoint"], "clean": report["clean"], "sources": _cells(evaluation), "receipt": str(evaluation.folder)}
        for evaluation, report in zip(evaluations, reports, strict=True)
    ]
    return {
        **{key: reports[0][key] for key in ("data", "split", "threat", "suite", "protocol")},
        "n": first.n,
        "matrix": rows,
        "evaluations": reports,
        "notes": list(dict.fromkeys(note for report in reports for note in report["notes"])),
        "flags": [flag for report in reports for flag in report["flags"]],
        "verdict": masking.worst([report["verdict"] for report in reports]),
        "reasons": list(dict.fromkeys(reason for report in reports for reason in report["reasons"])),
    }


def _cells(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """By source: robust, ci, and attacks by name."""
    left, cells = evaluation.outcomes.left, {}
    for source in dict.fromkeys(name.partition("@")[2] for name in left):
        own = {name.partition("@")[0]: rows for name, rows in left.items() if name.partition("@")[2] == source}
        standing = evaluation.outcomes.correct.copy()
        for rows in own.values():
            standing &= rows
        robust = int(standing.sum())
        attacks = {name: float(rows.mean()) for name, rows in own.items()}
        cells[source] = {"robust": robust / evaluation.n, "ci": list(wilson(robust, evaluation.n)), "attacks": attacks}
    return cells
