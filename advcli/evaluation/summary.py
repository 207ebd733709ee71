"""What a ledger amounts to: the report as data. Reads arrays alone; no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from advcli.evaluation import masking
from advcli.measures import wilson
from advcli.runs.ledger import Arrays


def summarise(ledger: Arrays, header: dict[str, Any]) -> dict[str, Any]:
    """The report of a finished ledger: accuracies as fractions of all n examples, worst case per example, 95 % Wilson interval."""
    n = len(ledger["index"])
    bound = header["bound"]
    correct = ledger["clean_margin"] < -bound
    readings: dict[str, dict[str, Any]] = {}
    alone: masking.Broken = {}
    robust = correct.copy()
    for entry in header["entries"]:
        steps = ledger[f"steps.{entry['name']}"]
        for name, limit in entry["readings"]:
            alone[name] = (steps >= 0) & (steps <= limit)
            left = robust & ~alone[name] if entry["on"] == "survivors" else correct & ~alone[name]
            readings[name] = {"accuracy": float(left.mean()), "on": entry["on"]}
        robust &= ~ledger[f"broken.{entry['name']}"]
    raised = masking.flags(alone)
    near = _borderline(ledger, header["entries"], bound)
    classes = _per_class(ledger["label"], correct, robust, header["classes"])
    return {
        "checkpoint": header["checkpoint"],
        "data": header["data"].get("name"),
        "split": header["split"],
        "head": header["head"],
        "threat": header["threat"],
        "suite": header["suite"],
        "protocol": header["protocol"],
        "identity": header["identity"]["digest"],
        "n": n,
        "clean": float(correct.mean()),
        "attacks": readings,
        "robust": float(robust.mean()),
        "ci": list(wilson(int(robust.sum()), n)),
        "per_class": classes,
        "worst_class": min(classes, key=lambda name: classes[name]["robust"]) if classes else None,
        "borderline": int(near.sum()),
        "forwards": n + _total(ledger, header, "forwards"),
        "backwards": _total(ledger, header, "backwards"),
        "notes": header["notes"],
        "flags": raised,
        "verdict": masking.verdict(header["suite"], header["split"], raised, gated=header["gated"]),
    }


def _total(ledger: Arrays, header: dict[str, Any], what: str) -> int:
    """Passes over all attacks, what each example took itself; padding and idle rows are not in it."""
    return int(sum(ledger[f"{what}.{entry['name']}"].sum() for entry in header["entries"]))


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
