"""Re-checks the receipts of an evaluation without running an attack, tells how an image was broken, and exports for RobustBench."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Judge, Surrogate, Threat
from advcli.attacks.pool import Task
from advcli.attacks.targets import by_distance, other_classes
from advcli.data import Split, load_test, to_float
from advcli.draws import Draws
from advcli.errors import CheckFailedError, CheckpointError, UsageError
from advcli.evaluation.job import Job
from advcli.evaluation.search import followed
from advcli.evaluation.summary import summarise
from advcli.models import Architecture, HeadView, Network, frozen, head_of, with_gate
from advcli.recipe.number import parse_number
from advcli.recipe.schema import Data
from advcli.runs import atomic, foreign, zoo
from advcli.runs.checkpoint import Loaded, load_network
from advcli.runs.ledger import Arrays, Ledger
from advcli.training.device import set_precision

_ROUNDING = 1e-6  # how far float32 arithmetic may put a projected point outside its ball


@dataclass(frozen=True)
class Evidence:
    """A finished evaluation with the network and the images that it is about, in the order of the ledger."""

    folder: Path
    ledger: Arrays
    header: dict[str, Any]
    loaded: Loaded
    images: Split
    threat: Threat

    @property
    def judged(self) -> Network | HeadView:
        """What was judged: the network, or one of its heads."""
        return head_of(self.loaded.network, self.header.get("head", "final"))

    @property
    def robust(self) -> Any:
        """(n,) bool: right from the start and broken by nothing."""
        broken = np.logical_or.reduce([self.ledger[f"broken.{entry['name']}"] for entry in self.header["entries"]])
        return (self.ledger["clean_margin"] < -self.header["bound"]) & ~broken


def gather(folder: Path, *, checkpoint: Path | None, data_root: str | None) -> Evidence:
    """Read an evaluation folder; CheckpointError where its checkpoint or its images are not the ones that it was made with."""
    ledger = Ledger(folder / "ledger")
    if not ledger.complete:
        what = "this evaluation is not finished" if ledger.shards() else "there is no evaluation here"
        raise CheckpointError(what, where=str(folder), next="give an evaluation folder, such as runs/quickstart/evals/aa-1f3c9a2b")
    arrays, header = ledger.read()
    loaded = _as_judged(_load(checkpoint or _find_checkpoint(header, folder), header), header)
    data = Data.model_validate({**loaded.header["data"], **header["data"], **({"root": data_root} if data_root else {})})
    split, _ = load_test(data, header["split"])
    threat = Threat(header["threat"]["norm"], float(parse_number(header["threat"]["eps"])))
    images = split.take(torch.from_numpy(arrays["index"]))
    identity = header["identity"]
    settled = {key: identity[key] for key in ("suite", "engine", "seed", "chunk")} | {"head": header.get("head", "final")}
    now = Job(loaded, images, threat, header["threat"]["eps"], **settled).identity()
    for key, what in (("tensors_sha256", "the checkpoint is not"), ("images_sha256", "the images are not")):
        if now[key] != identity[key]:
            raise CheckpointError(
                f"{what} what this evaluation was made with", where=str(folder), next="--checkpoint and --data-root name the right ones"
            )
    return Evidence(folder, arrays, header, loaded, images, threat)


def _load(path: Path, header: dict[str, Any]) -> Loaded:
    """The checkpoint; one of others as the network that the receipt says it was read as."""
    if not foreign.is_foreign(path):
        return load_network(path)
    try:
        architecture = Architecture.from_json(header["identity"]["architecture"])
    except ValueError as error:
        raise CheckpointError(f"the receipt describes no network: {error}", where=str(path)) from None
    return foreign.as_evaluated(path, architecture, header["classes"], header["data"])


def _as_judged(loaded: Loaded, header: dict[str, Any]) -> Loaded:
    """The checkpoint with the gate that was put on it for the evaluation, where one was."""
    judged = Architecture.from_json(header["identity"]["architecture"])
    if judged.gates == loaded.architecture.gates or loaded.architecture.gates or len(judged.gates) != 1:
        return loaded  # where it is another network, its digest will tell
    network, architecture = with_gate(loaded.network, loaded.architecture, *judged.gates)
    return dataclasses.replace(loaded, network=network, architecture=architecture)


def _find_checkpoint(header: dict[str, Any], folder: Path) -> Path:
    """Where the ledger says, else beside the evaluations: run folders move."""
    stored = Path(header["checkpoint"])
    return stored if stored.is_file() or zoo.is_remote(stored) else folder.resolve().parents[1] / stored.name


def check(evidence: Evidence, *, device: torch.device, quantize: bool) -> dict[str, Any]:
    """Every stored adversarial example again, in float32: in the ball, in the box, and not surely classified right.

    quantize: after rounding to 8 bits. Returns {checked, failures: [{index, reason}], robust, quantize}.
    """
    set_precision("fp32", device)
    model = evidence.judged.to(device).eval()
    ledger, threat = evidence.ledger, evidence.threat
    names = ledger["adversarial_index"]
    rows = torch.from_numpy(np.searchsorted(ledger["index"], names))
    judge = Judge(model, chunk=evidence.header["identity"]["chunk"], bound=evidence.header["bound"])
    failures: list[dict[str, Any]] = []
    with frozen(model):
        for part in torch.split(torch.arange(len(names)), judge.chunk):
            x_adv = torch.from_numpy(ledger["adversarial"][part.numpy()]).to(device)
            x_adv = (x_adv * 255).round() / 255 if quantize else x_adv
            x, y = to_float(evidence.images.images[rows[part]]).to(device), evidence.images.labels[rows[part]].to(device)
            for position, reason in _reasons(judge, threat, x_adv, x, y):
                failures.append({"index": int(names[part[position]]), "reason": reason})
    missing = sorted(set(_expected(evidence)) - set(names.tolist()))
    failures += [{"index": index, "reason": "scored as broken, but no adversarial example is stored"} for index in missing]
    failures += _report_mismatches(evidence)
    return {"checked": len(names), "failures": failures, "robust": float(evidence.robust.mean()), "quantize": quantize}


def _reasons(judge: Judge, threat: Threat, x_adv: Tensor, x: Tensor, y: Tensor) -> list[tuple[int, str]]:
    """(row, what does not hold) of adversarial examples."""
    distance, margins = threat.distance(x_adv, x), judge.margins(x_adv, y)
    low, high = threat.bounds
    outside = (x_adv < low).flatten(1).any(1) | (x_adv > high).flatten(1).any(1) | ~torch.isfinite(x_adv).flatten(1).all(1)
    found = []
    for row in range(len(y)):
        if float(distance[row]) > threat.eps + _ROUNDING:
            found.append((row, f"{threat.norm} distance {float(distance[row]):.8f} is over eps {threat.eps:.8f}"))
        if bool(outside[row]):
            found.append((row, "pixels outside [0, 1]"))
        if not bool(judge.broken(margins[row])):
            found.append((row, f"classified right, margin {float(margins[row]):.6f}"))
    return found


def _expected(evidence: Evidence) -> list[int]:
    """Names of the examples that an attack broke."""
    names: list[int] = evidence.ledger["index"][evidence.ledger["found_by"] >= 0].tolist()
    return names


def _report_mismatches(evidence: Evidence) -> list[dict[str, Any]]:
    """What report.json says otherwise than the ledger; its numbers are recomputed."""
    path = evidence.folder / "report.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [{"index": None, "reason": "report.json is missing or damaged"}]
    again = json.loads(json.dumps(summarise(evidence.ledger, evidence.header)))
    wrong = [key for key in again if stored.get(key) != again[key]]
    return [{"index": None, "reason": f"report.json differs from the ledger in {', '.join(wrong)}"}] if wrong else []


def require_held(result: dict[str, Any], folder: Path) -> None:
    """CheckFailedError, exit 4, where anything did not hold."""
    if result["failures"]:
        rows = [f"{'image ' + str(f['index']) if f['index'] is not None else 'report'}: {f['reason']}" for f in result["failures"]]
        more = f"\n... and {len(rows) - 10} more" if len(rows) > 10 else ""
        raise CheckFailedError(f"{len(rows)} receipts do not hold\n" + "\n".join(rows[:10]) + more, where=str(folder))


def explain(evidence: Evidence, index: int) -> dict[str, Any]:
    """What happened to the image called index: {index, label, clean_margin, robust, attacks: [{name, about, broken, ...}], found_by}.

    Of an attack: margin reached, steps, and the run, which of a targeted attack is the target class.
    """
    ledger, header = evidence.ledger, evidence.header
    rows = np.flatnonzero(ledger["index"] == index)
    if not len(rows):
        raise UsageError(
            f"image {index} was not part of this evaluation",
            where="--explain",
            next=f"it holds {len(ledger['index'])} images, the first is {ledger['index'][0]}",
        )
    row = int(rows[0])
    classes = header["classes"]
    with frozen(evidence.judged):
        logits = evidence.judged(to_float(evidence.images.images[row : row + 1]))
        others = other_classes({"logits": logits}, evidence.images.labels[row : row + 1])[0].tolist()
        nearest = _nearest(evidence, row, logits) if any(entry.get("ranked") for entry in header["entries"]) else []
    attacks = []
    for entry in header["entries"]:
        name = entry["name"]
        run = int(ledger[f"run.{name}"][row])
        if run < 0:
            continue
        facts = {"name": name, "about": entry["about"], "broken": bool(ledger[f"broken.{name}"][row])}
        facts |= {"margin": float(ledger[f"margin.{name}"][row]), "steps": int(ledger[f"steps.{name}"][row]), "run": run}
        order = nearest if entry.get("ranked") else others
        attacks.append(facts | ({"target": classes[order[run]]} if entry["targeted"] else {}))
    found_by = int(ledger["found_by"][row])
    return {
        "index": index,
        "label": classes[int(ledger["label"][row])],
        "threat": header["threat"],
        "clean_margin": float(ledger["clean_margin"][row]),
        "robust": bool(evidence.robust[row]),
        "found_by": header["entries"][found_by]["name"] if found_by >= 0 else None,
        "attacks": attacks,
    }


def _nearest(evidence: Evidence, row: int, logits: Tensor) -> list[int]:
    """The order in which a ranked attack took its targets; logits (1, K) of that image."""
    images, labels = evidence.images.images[row : row + 1], evidence.images.labels[row : row + 1]
    draws = Draws(0, evidence.images.index[row : row + 1], "none")  # a task has them; the order does not depend on any
    task = Task(lambda pick: to_float(images[pick]), labels, draws, {"logits": logits})
    precision = evidence.header.get("search", {}).get("precision", "fp32")
    judged = followed(evidence.loaded.network, evidence.header.get("head", "final"), precision)
    order = by_distance(Surrogate(judged.trace), evidence.threat, task, evidence.header["identity"]["chunk"])
    nearest: list[int] = order[0].tolist()
    return nearest


def export_robustbench(evidence: Evidence, directory: Path) -> None:
    """adversarial.pt, a float32 tensor of all images in ledger order, and model.json with the fields that RobustBench asks for.

    Images that nothing broke stand as they are. Fields that no receipt holds are left empty, to be filled in by hand.
    """
    if not atomic.is_free(directory):
        raise UsageError("the directory is not empty, and nothing is overwritten", where=str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    images, ledger, header = to_float(evidence.images.images[:]), evidence.ledger, evidence.header
    images[torch.from_numpy(np.searchsorted(ledger["index"], ledger["adversarial_index"]))] = torch.from_numpy(ledger["adversarial"])
    torch.save(images, directory / "adversarial.pt")
    report = summarise(ledger, header)
    a = evidence.loaded.architecture
    by_hand = dict.fromkeys(("link", "name", "authors", "venue", "reported", "footnote", "additional_data"), "")
    known = {
        "number_forward_passes": 1,
        "dataset": evidence.loaded.header["data"]["name"],
        "architecture": a.arch if a.width == 1 else f"{a.arch} (width {a.width:g})",
        "eps": header["threat"]["eps"],
        "clean_acc": f"{100 * report['clean']:.2f}",
        "autoattack_acc": f"{100 * report['robust']:.2f}" if header["suite"] == "aa" else "",
        "external": f"{100 * report['robust']:.2f}",
        "unreliable": report["verdict"] != "trustworthy",
    }
    atomic.write_json(directory / "model.json", {**by_hand, **known})
