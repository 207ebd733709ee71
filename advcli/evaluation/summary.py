"""What a ledger amounts to: the report as data. Reads arrays alone; no model, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from advcli.evaluation import audit, masking
from advcli.measures import wilson
from advcli.runs.ledger import Arrays

_SPARING = ("spared", "sampled", "mistaken", "queries_sampled", "queries_mistaken")  # columns of attacks that spare


class Outcomes(NamedTuple):
    """Per example, (n,) bool each. correct: classified right and surely so; robust: broken by nothing either.

    left: NAME of a reading to those still right after it (on survivors: after it and all before it). alone: NAME to those that
    the attack itself broke by then.
    """

    correct: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    left: masking.Broken
    alone: masking.Broken


def outcomes(ledger: Arrays, header: dict[str, Any]) -> Outcomes:
    """What became of every example of a finished ledger."""
    correct = ledger["clean_margin"] < -header["bound"]
    left: masking.Broken = {}
    alone: masking.Broken = {}
    robust = correct.copy()
    for entry in header["entries"]:
        steps = ledger[f"steps.{entry['name']}"]
        for name, limit in entry["readings"]:
            alone[name] = (steps >= 0) & (steps <= limit)
            left[name] = (robust if entry["on"] == "survivors" else correct) & ~alone[name]
        robust &= ~ledger[f"broken.{entry['name']}"]
    return Outcomes(correct, robust, left, alone)


def summarise(ledger: Arrays, header: dict[str, Any]) -> dict[str, Any]:
    """The report of a finished ledger: accuracies as fractions of all n examples, worst case per example, 95 % Wilson interval."""
    n = len(ledger["index"])
    correct, robust, left, alone = outcomes(ledger, header)
    readings = {name: {"accuracy": float(left[name].mean()), "on": on} for name, on in _readings(header)}
    parts = {name: entry.get("part", header["suite"]) for entry in header["entries"] for name, _ in entry["readings"]}
    probes = {key.removeprefix("probe."): column for key, column in ledger.items() if key.startswith("probe.")}
    search = audit.summarise(ledger, header)
    probes["fast-search-misses"] = audit.pairs(ledger, header)
    found = masking.flags(alone, parts, probes, header.get("traits", {}))
    circumstances = (header["suite"], header["split"], found)
    gated = bool(header.get("gated", False))
    near = _borderline(ledger, header["entries"], header["bound"])
    classes = _per_class(ledger["label"], correct, robust, header["classes"])
    return {
        "checkpoint": header["checkpoint"],
        "data": header["data"].get("name"),
        "split": header["split"],
        "head": header.get("head", "final"),
        "gated": gated,
        "threat": header["threat"],
        "suite": header["suite"],
        "protocol": header["protocol"],
        "identity": header["identity"]["digest"],
        "n": n,
        "clean": float(correct.mean()),
        "attacks": readings,
        "robust": float(robust.mean()),
        "worst": _worst(correct, alone, parts),
        "ci": list(wilson(int(robust.sum()), n)),
        "per_class": classes,
        "worst_class": min(classes, key=lambda name: classes[name]["robust"]) if classes else None,
        "borderline": int(near.sum()),
        "forwards": n + _total(ledger, header, "forwards"),
        "backwards": _total(ledger, header, "backwards"),
        **({"search": search} if search is not None else {}),
        **({"sparing": sparing} if (sparing := _sparing(ledger, header)) else {}),
        "notes": header["notes"],
        "flags": found,
        "verdict": masking.verdict(*circumstances, gated=gated, n=n),
        "reasons": masking.reasons(*circumstances, gated=gated, n=n),
    }


def _worst(correct: NDArray[np.bool_], alone: masking.Broken, parts: Mapping[str, str]) -> dict[str, float]:
    """What each part of the suite leaves standing: the attacks of that part alone, but `adaptive` with all that ran beside it."""
    left = {part: correct.copy() for part in dict.fromkeys(parts.values())}
    for name, broken in alone.items():
        for part in {parts[name], "adaptive"} & left.keys():
            left[part] &= ~broken
    return {part: float(rows.mean()) for part, rows in left.items()}


def _readings(header: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, on) of every reading, in the order of the suite."""
    return [(name, entry["on"]) for entry in header["entries"] for name, _ in entry["readings"]]


def _total(ledger: Arrays, header: dict[str, Any], what: str) -> int:
    """Passes over all attacks, what each example took itself; padding and idle rows are not in it."""
    return sum(_count(ledger, entry["name"], what) for entry in header["entries"])


def _count(ledger: Arrays, name: str, what: str) -> int:
    return int(ledger[f"{what}.{name}"].sum())


def _sparing(ledger: Arrays, header: dict[str, Any]) -> dict[str, dict[str, int]]:
    """For each attack that foresaw passes to come to nothing: `spared`, not made; `passes`, of which they are; `sampled`, runs that
    were walked on all the same; `mistaken`, those of them that broke their image; where there are any, also `queries_sampled`, of
    Square, looked at all the same, and `queries_mistaken`, those of them that raised the margin."""
    result: dict[str, dict[str, int]] = {}
    for name in (entry["name"] for entry in header["entries"]):
        if f"spared.{name}" in ledger:
            counts = {key: _count(ledger, name, key) for key in _SPARING if f"{key}.{name}" in ledger}
            passes = counts["spared"] + _count(ledger, name, "forwards") + _count(ledger, name, "backwards")
            told = {key: count for key, count in counts.items() if counts.get("queries_sampled") or not key.startswith("queries")}
            result |= {name: {"passes": passes, **told}} if any(counts.values()) else {}
    return result


def _borderline(ledger: Arrays, entries: Sequence[dict[str, Any]], bound: float) -> Any:
    """(n,) bool: examples whose clean or deciding adversarial margin lies within rounding of zero, and which are scored as broken."""
    near = np.abs(ledger["clean_margin"]) <= bound
    for position, entry in enumerate(entries):
        near |= (ledger["found_by"] == position) & (np.abs(ledger[f"margin.{entry['name']}"]) <= bound)
    return near


def _per_class(labels: Any, correct: Any, robust: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Clean and robust accuracy of every class that has examples."""
    result = {}
    for label, name in enumerate(names):
        own = labels == label
        if own.any():
            result[name] = {"n": int(own.sum()), "clean": float(correct[own].mean()), "robust": float(robust[own].mean())}
    return result
