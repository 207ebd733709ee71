"""What the audit of a fast search found: the same attack with the same draws, searched in float32. Reads arrays alone; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from advcli.runs.ledger import Arrays


def summarise(ledger: Arrays, header: dict[str, Any]) -> dict[str, Any] | None:
    """The report's `search`; None where attacks searched in float32 as the judge judges.

    precision; bound on the margin's error, in logits; agreement_sign of gradients and agreement_verdict of audited images;
    audited, and of those missed (broken in float32 only) and gained (broken by the fast search only); judge_calls of all attacks.
    """
    search, entries = header.get("search"), header["entries"]
    audits = [entry for entry in entries if "audits" in entry]
    if search is None or not audits:
        return None
    measured, name = search["agreements"][search["precision"]], audits[0]["name"]
    audited = ledger[f"run.{name}"] >= 0
    exact, fast = ledger[f"broken.{name}"][audited], ledger[f"broken.{audits[0]['audits']}"][audited]
    return {
        "asked": search["asked"],
        "precision": search["precision"],
        "bound": measured["bound"],
        "agreement_sign": measured["signs"],
        "agreement_verdict": float((exact == fast).mean()) if len(exact) else None,
        "audited": int(audited.sum()),
        "missed": int((exact & ~fast).sum()),
        "gained": int((fast & ~exact).sum()),
        "judge_calls": int(sum(ledger[f"judged.{entry['name']}"].sum() for entry in entries)),
    }


def pairs(ledger: Arrays, header: dict[str, Any]) -> NDArray[np.int8]:
    """(n,): broken in float32 + 2 * broken by the fast search, -1 for images that were not audited; (0,) where nothing was."""
    audits = [entry for entry in header["entries"] if "audits" in entry]
    if not audits:
        return np.zeros(0, np.int8)
    name, fast = audits[0]["name"], audits[0]["audits"]
    both = ledger[f"broken.{name}"].astype(np.int8) + 2 * ledger[f"broken.{fast}"].astype(np.int8)
    return np.where(ledger[f"run.{name}"] >= 0, both, -1).astype(np.int8)
