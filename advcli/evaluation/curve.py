"""A security curve: the same suite at several radii, each an evaluation of its own, read together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advcli.errors import UsageError
from advcli.evaluation import session
from advcli.evaluation.job import Watcher
from advcli.evaluation.radii import summarise
from advcli.evaluation.session import Options
from advcli.evaluation.stored import open_evaluation
from advcli.evaluation.suites import suite
from advcli.training import distributed


def is_list(eps: str | None) -> bool:
    return eps is not None and "," in eps


def run(options: Options, watcher: Watcher) -> dict[str, Any]:
    """The report of a curve. Every radius is checked before any is attacked; smaller ones come first."""
    suite(options.suite, options.engine)
    folders, seconds = [], 0.0
    for text in distributed.in_turn(lambda: _ascending(options, watcher)):
        out = options.out / f"eps-{text.replace('/', '_')}" if options.out else None
        folder, report = session.run(replace(options, eps=text, out=out), _Labelled(watcher, text))
        folders.append(folder)
        seconds += report["seconds"] or 0.0
    return {**summarise([open_evaluation(folder) for folder in folders]), "seconds": seconds}


def _ascending(options: Options, watcher: Watcher) -> list[str]:
    """The radii as typed, smallest first; UsageError for one that is none, or that is there twice."""
    if options.out is not None and (options.out / "identity.json").exists():
        what = "the folder holds a single evaluation, and a list of eps makes a folder for each"
        raise UsageError(what, where=str(options.out), next="name another folder with --out")
    loaded = session.open_checkpoint(options, watcher)
    radii: dict[float, str] = {}
    for text in str(options.eps).split(","):
        threat, typed = session.threat(loaded, replace(options, eps=text.strip()))
        if threat.eps in radii:
            raise UsageError(f"eps {typed} is given twice", where="--eps", next="name each radius once")
        radii[threat.eps] = typed
    return [radii[eps] for eps in sorted(radii)]


class _Labelled:
    """A watcher that hears at which radius an attack runs."""

    def __init__(self, watcher: Watcher, eps: str) -> None:
        self.watcher, self.eps = watcher, eps
        self.planned, self.started, self.advanced = watcher.planned, watcher.started, watcher.advanced

    def attacking(self, name: str, survivors: int, of: int) -> None:
        self.watcher.attacking(f"eps {self.eps} {name}", survivors, of)

    def noted(self, text: str) -> None:
        """Nothing: what there is to note about the checkpoint was noted before the first radius."""
