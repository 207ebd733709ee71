"""What a ledger says of itself: the job, the network's traits, every attack in words, and what a reader must know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from advcli.attacks import Apgd, Fab
from advcli.evaluation.entries import Entry
from advcli.evaluation.inspection import Traits
from advcli.evaluation.job import Job
from advcli.evaluation.search import Search
from advcli.evaluation.suites import PROTOCOL, notes
from advcli.runs.checkpoint import versions


def header(job: Job, identity: dict[str, Any], traits: Traits, search: Search, entries: Sequence[Entry], bound: float) -> dict[str, Any]:
    """identity: what job.identity() said when the evaluation began. bound: on rounding of the judge's margins."""
    return {
        "checkpoint": str(job.loaded.path),
        "classes": job.loaded.header["classes"],
        "threat": {"norm": job.threat.norm, "eps": job.eps_text, "bounds": list(job.threat.bounds)},
        "data": job.data,
        "split": job.split,
        "head": job.head,
        "gated": job.gated,
        "suite": job.suite,
        "protocol": f"{job.suite}/{PROTOCOL} {job.engine}",
        "notes": _notes(job, traits),
        "identity": identity,
        "bound": bound,
        "traits": traits.to_json(),
        **({"search": search.header()} if search.is_fast else {}),
        "versions": versions(),
        "entries": [_describe(entry, job.suite) for entry in entries],
    }


def _notes(job: Job, traits: Traits) -> list[str]:
    """What a reader must know beside the reasons of the verdict, which are read from the rest."""
    few = [*job.loaded.header.get("notes", [])]
    few += notes(job.suite, job.loaded.architecture.num_classes) if job.engine == "native" else []
    if job.head != "final":
        few.append(f"the decision of head {job.head} was judged, not the one that is deployed")
    return few + traits.notes()


def _describe(entry: Entry, suite: str) -> dict[str, Any]:
    targeted = isinstance(entry.attack, Apgd | Fab) and entry.attack.is_targeted
    readings = entry.readings or ((entry.name, 2**31),)
    ranked = {"ranked": True} if isinstance(entry.attack, Apgd) and entry.attack.ranked else {}
    audits = {"audits": entry.audits} if entry.audits is not None else {}
    words = {"name": entry.name, "about": entry.about, "on": entry.on, "part": entry.part or suite}
    return {**words, "targeted": targeted, "readings": readings, **ranked, **audits}
