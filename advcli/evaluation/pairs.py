"""Evaluations side by side: paired differences on the same images, with their intervals and exact tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advcli.errors import ResourceError
from advcli.evaluation.stored import Evaluation
from advcli.measures import mcnemar, paired_bootstrap, wilson

DRAWS, SEED = 10_000, 0  # of the bootstrap


def compare(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """{kind, images, evaluations, comparisons, notes, bootstrap}; ResourceError unless all are on the same images.

    A comparison holds {evaluation, clean, robust, attacks}: the evaluation of that number minus the first one, for accuracies as
    fractions of all n images: {difference, ci, only_first, only_this, p}. The attacks are those that both have.
    """
    first, *others = evaluations
    for other in others:
        _check_same_images(first, other)
    data = {key: first.report[key] for key in ("data", "split", "n")}
    return {
        "kind": "evaluations",
        "images": {**data, "sha256": first.images},
        "evaluations": [_describe(evaluation) for evaluation in evaluations],
        "comparisons": [{"evaluation": number, **_against(first, other)} for number, other in enumerate(others, 1)],
        "notes": [note for number, other in enumerate(others, 2) for note in _notes(first, other, number)],
        "bootstrap": {"draws": DRAWS, "seed": SEED},
    }


def _check_same_images(a: Evaluation, b: Evaluation) -> None:
    if a.images == b.images:
        return
    rows = [f"{key}: {a.report[key]} in the first, {b.report[key]} in this one" for key in ("data", "split", "n")]
    rows = [row for row, key in zip(rows, ("data", "split", "n"), strict=True) if a.report[key] != b.report[key]]
    shared = len(np.intersect1d(a.arrays["index"], b.arrays["index"]))
    rows.append(f"{shared} of the {a.n} and {b.n} image numbers are the same")
    raise ResourceError(
        "pairs need the same images, and these evaluations are on others\n" + "\n".join(rows),
        where=f"{a.folder} and {b.folder}",
        next="attack both with the same --data, --split, --n and --seed",
    )


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    report, correct = evaluation.report, int(evaluation.outcomes.correct.sum())
    row = {"folder": str(evaluation.folder), "clean_ci": list(wilson(correct, evaluation.n))}
    return row | {key: report[key] for key in ("checkpoint", "suite", "protocol", "threat", "n", "clean", "robust", "ci", "verdict")}


def _against(first: Evaluation, other: Evaluation) -> dict[str, Any]:
    a, b = first.outcomes, other.outcomes
    shared = [name for name in _comparable(first) if _comparable(first)[name] == _comparable(other).get(name)]
    return {
        "clean": difference(a.correct, b.correct),
        "robust": difference(a.robust, b.robust),
        "attacks": {name: difference(a.left[name], b.left[name]) for name in shared},
    }


def _comparable(evaluation: Evaluation) -> dict[str, tuple[str, ...]]:
    """Reading to what it means: on survivors, the number is what is left after it and all before it, so those belong to it."""
    meanings: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for entry in evaluation.header["entries"]:
        for name, _ in entry["readings"]:
            meanings[name] = (entry["on"], *(before if entry["on"] == "survivors" else ()))
        before = (*before, entry["name"])
    return meanings


def difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> dict[str, Any]:
    """b minus a, paired by image: a (n,) and b (n,) say who is classified right."""
    found = discordant(a, b)
    return {
        "first": float(a.mean()),
        "this": float(b.mean()),
        "difference": found["difference"],
        "ci": list(paired_bootstrap(b, a, SEED, DRAWS)),
        "only_first": found["only_best"],
        "only_this": found["only_this"],
        "p": found["p"],
    }


def discordant(best: NDArray[np.bool_], this: NDArray[np.bool_]) -> dict[str, Any]:
    """{difference, only_best, only_this, p} of this minus best, paired by image: (n,) bool each, who is classified right."""
    only_best, only_this = int((best & ~this).sum()), int((this & ~best).sum())
    difference = (only_this - only_best) / len(best)
    return {"difference": difference, "only_best": only_best, "only_this": only_this, "p": mcnemar(only_best, only_this)}


def _notes(first: Evaluation, other: Evaluation, number: int) -> list[str]:
    """What else than the network differs, so that the difference may not be the network's."""
    parts = []
    if first.threat != other.threat:
        parts.append(("threat", threat_words(first), threat_words(other)))
    if first.report["head"] != other.report["head"]:
        parts.append(("head", first.report["head"], other.report["head"]))
    if first.suite != other.suite:
        parts.append(("suite", first.suite, other.suite))
    elif first.protocol != other.protocol:
        parts.append(("protocol", first.protocol, other.protocol))
    return [f"another {name} in 1 and {number}: {a} and {b}" for name, a, b in parts]


def threat_words(evaluation: Evaluation) -> str:
    threat = evaluation.header["threat"]
    return f"{threat['norm']} eps {threat['eps']}"
