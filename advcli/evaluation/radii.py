"""What evaluations at several radii amount to: a security curve, read off their ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advcli.evaluation import masking
from advcli.evaluation.stored import Evaluation
from advcli.measures import wilson


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """evaluations: one checkpoint and suite, the same images, by ascending radius.

    The ball of a smaller eps lies in that of a larger one, so what broke an image there breaks it here: the curve is closed over
    all smaller radii that were attacked, and `closed_by_smaller` counts the images for which that made the difference.
    """
    reports = [evaluation.report for evaluation in evaluations]
    standing = evaluations[0].outcomes.correct
    points = []
    for evaluation, report in zip(evaluations, reports, strict=True):
        alone = evaluation.outcomes.robust
        closed = alone & ~standing
        standing = standing & alone
        robust = int(standing.sum())
        point = {"eps": report["threat"]["eps"], "robust": robust / evaluation.n, "ci": list(wilson(robust, evaluation.n))}
        point |= {"closed_by_smaller": int(closed.sum()), "verdict": report["verdict"], "receipt": str(evaluation.folder)}
        points.append(point)
    first = reports[0]
    return {
        **{key: first[key] for key in ("checkpoint", "data", "split", "head", "gated", "suite", "protocol", "n", "clean")},
        "threat": {"norm": first["threat"]["norm"], "eps": [point["eps"] for point in points], "bounds": first["threat"]["bounds"]},
        "curve": points,
        "evaluations": reports,
        "notes": first["notes"],
        "flags": [{**flag, "eps": report["threat"]["eps"]} for report in reports for flag in report["flags"]],
        "verdict": masking.worst([report["verdict"] for report in reports]),
        "reasons": list(dict.fromkeys(reason for report in reports for reason in report["reasons"])),
    }
