"""Reverse attention put on a trained network, and what that is worth to an attacker who knows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy import bool_
from numpy.typing import NDArray

from advcli.errors import ResumeError, UsageError
from advcli.evaluation import session
from advcli.evaluation.job import Watcher
from advcli.evaluation.pairs import difference
from advcli.evaluation.session import Options
from advcli.evaluation.stored import Evaluation, open_evaluation
from advcli.runs import container, folder
from advcli.runs.checkpoint import Loaded, write_network
from advcli.runs.given import NOTHING_GIVEN

SUITE = "full"
GATE = "reverse-attention"

FIGURE_7 = {"PGD-AT": 31.18, "TRADES": 31.26, "MART": 18.08}
"""Points gained under PGD-40 on the final logits by the same retrofit of ResNet-18, CIFAR-10, eps 8/255 (ANCRA, section IV.D)."""

_PGD, _JOINT, _WORST = "PGD-40", "final + auxiliary loss", "worst case, adaptive"
_AUTO = ("apgd-ce", "apgd-t", "fab-t", "square")


class Row(NamedTuple):
    """What one row of the table reads off each evaluation; the plain network has no auxiliary loss, so there the attack is plain PGD."""

    name: str
    before: str
    after: str


_ROWS = (
    Row("FGSM", "fgsm", "fgsm"),
    Row(_PGD, "pgd-40@0.007", "pgd-40@0.007"),
    Row("C&W", "cw-40@0.007", "cw-40@0.007"),
)
_ADAPTED = Row(_JOINT, "pgd-40@0.007", "pgd-40-joint@0.007")


def deploy(options: Options, out: Path | None, watcher: Watcher, *, evaluate: bool) -> dict[str, Any]:
    """Write the checkpoint with the gate; with evaluate, attack it and the one it came from, and weigh the two.

    Returns {checkpoint, before, after, differences, verdict}, or {checkpoint, evaluated: False}. Raises UsageError where the network
    has gates, or where out holds something; ResumeError where it holds another retrofit.
    """
    loaded = session.open_checkpoint(options, watcher)
    if loaded.architecture.gates:
        raise UsageError("the network has gates already", where=str(loaded.path), next="advcli attack --suite adaptive knows them")
    gated = session.with_named_gate(loaded, GATE)
    header = _header(loaded)
    path = _claim(gated, header, out, resume=options.resume)
    if not evaluate:
        return {"checkpoint": str(path), "evaluated": False}
    settled = replace(options, suite=SUITE)
    folder_before, before = session.attack(loaded, settled, watcher)
    folder_after, after = session.run(replace(settled, checkpoint=path, given=NOTHING_GIVEN), watcher)
    rows = differences(open_evaluation(folder_before), open_evaluation(folder_after))
    sentence = verdict(rows)
    evaluated = {"suite": SUITE, "n": after["n"], "before": before["identity"], "after": after["identity"], "verdict": sentence}
    write_network(path, gated.network, gated.architecture, {**header, "evaluated": evaluated})
    return {"checkpoint": str(path), "before": before, "after": after, "differences": rows, "verdict": sentence}


def _header(loaded: Loaded) -> dict[str, Any]:
    """The receipts of the checkpoint it came from, which are about the same weights, and that a gate was put on them.

    What was measured while it was trained is about another network and does not come along.
    """
    name = f"{loaded.header.get('name', loaded.path.stem)}-ra"
    note = "reverse attention was put on weights that were trained without it"
    retrofit = {"gate": GATE, "of": str(loaded.path)}
    kept = {key: value for key, value in loaded.header.items() if key != "selection"}
    return {**kept, "name": name, "notes": [*loaded.header.get("notes", []), note], "retrofit": retrofit, "evaluated": False}


def _claim(gated: Loaded, header: dict[str, Any], out: Path | None, *, resume: bool) -> Path:
    """The file of the retrofit: written anew, or, with resume, the one that an interrupted command left."""
    place = out or (folder.newest(header["name"]) if resume else None)
    path = folder.model_file(place) if place is not None else None
    if path is None or not resume or not path.is_file():
        path = folder.new_model_file(header["name"], out)
        write_network(path, gated.network, gated.architecture, header)
        return path
    stored = container.read_header(path, "model")
    if stored["tensors_sha256"] != gated.header["tensors_sha256"] or stored["architecture"] != gated.architecture.to_json():
        raise ResumeError("the file holds another network than this one with its gate", where=str(path), next="-o names another")
    return path


def differences(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """For each row of the table after minus before, paired by image; rows whose attack either lacks are left out.

    Of a row: {first, this, difference, ci, only_first, only_this, p}, accuracies as fractions of all n images.
    """
    a, b = before.outcomes, after.outcomes
    found = {"clean": difference(a.correct, b.correct)}
    for row in _ROWS:
        if row.before in a.left and row.after in b.left:
            found[row.name] = difference(a.left[row.before], b.left[row.after])
    auto = [_after_auto_attack(evaluation) for evaluation in (before, after)]
    if auto[0] is not None and auto[1] is not None:
        found["AutoAttack, final logits"] = difference(auto[0], auto[1])
    if _ADAPTED.before in a.left and _ADAPTED.after in b.left:
        found[_JOINT] = difference(a.left[_ADAPTED.before], b.left[_ADAPTED.after])
    return found | {_WORST: difference(a.robust, b.robust)}


def _after_auto_attack(evaluation: Evaluation) -> NDArray[bool_] | None:
    """(n,): who stands after the last part of AutoAttack and all before it."""
    parts = [name for name in evaluation.outcomes.left if name in _AUTO]
    return evaluation.outcomes.left[parts[-1]] if parts else None


def verdict(rows: dict[str, dict[str, Any]]) -> str:
    """One sentence: what part of the gain under the paper's attack is left under attacks that know the gate."""
    left, shown = rows[_WORST], rows.get(_PGD)
    kept = f"{_points(left['difference'])} [{_points(left['ci'][0])}, {_points(left['ci'][1])}]"
    papers = "ANCRA's figure 7: " + ", ".join(f"+{gain:.1f} on {name}" for name, gain in FIGURE_7.items())
    if shown is None:
        return f"Under attacks that know it reverse attention changes the worst case by {kept} points."
    if shown["difference"] <= 0:
        seen = (
            f"Even under PGD-40 on the final logits reverse attention gains nothing here ({_points(shown['difference'])} points; {papers})"
        )
        return f"{seen}; under attacks that know it the worst case changes by {kept}."
    gain = f"Of the {_points(shown['difference'])} points that reverse attention shows under PGD-40 on the final logits ({papers}),"
    if left["ci"][0] > 0:
        share = min(1.0, left["difference"] / shown["difference"])
        return f"{gain} {100 * share:.0f} % survive attacks that know it: {kept}."
    return f"{gain} none is shown to survive attacks that know it: {kept}."


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
