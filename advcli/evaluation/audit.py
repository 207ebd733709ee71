"""What the audit of a fast search found: the same attack with the same draws, searched in float32. Reads arrays alone; no torch."""

from __future__ import annotations

from typing import Any

from advcli.evaluation import masking
from advcli.measures import mcnemar
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


def flags(search: dict[str, Any] | None) -> list[masking.Flag]:
    """A flag where float32 surely broke more than the fast search did, by the rule of all flags."""
    if search is None or not search["audited"]:
        return []
    effect = (search["missed"] - search["gained"]) / search["audited"]
    if effect <= masking.EFFECT or mcnemar(search["missed"], search["gained"]) >= masking.P_VALUE:
        return []
    message = "searching in float32 breaks more images than the fast search: attack again with --search-precision fp32"
    return [{"name": "fast-search-misses", "value": round(effect, 6), "threshold": masking.EFFECT, "message": message}]
