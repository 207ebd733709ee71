"""Runs a suite against a checkpoint into a ledger, chunk by chunk, so that a kill loses at most the chunk in hand."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Cost, Judge, Surrogate, Threat, measure_bound
from advcli.data import Split, stratified_order, to_float
from advcli.draws import Draws
from advcli.errors import CheckpointError, InterruptedRunError, ResumeError, UsageError
from advcli.evaluation.suites import PROTOCOL, Entry, suite
from advcli.evaluation.summary import summarise
from advcli.models import Network, frozen
from advcli.runs import atomic
from advcli.runs.checkpoint import Loaded, versions
from advcli.runs.ledger import Arrays, Ledger, merge
from advcli.training.device import set_precision

_PROBE = 64  # images on which rounding is measured


class Watcher(Protocol):
    """Whoever shows progress: chunk by chunk, and attack by attack inside one."""

    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...
    def advanced(self, done: int, images: int) -> None: ...


@dataclass(frozen=True)
class Job:
    """What is evaluated. eps_text: eps as typed. images: the split, already cut to the n that are wanted, in ascending order."""

    loaded: Loaded
    images: Split
    threat: Threat
    eps_text: str
    suite: str
    seed: int
    chunk: int

    def identity(self) -> dict[str, Any]:
        """Everything that decides a verdict; its digest names the evaluation."""
        content = hashlib.sha256()
        for tensor in (self.images.images, self.images.labels, self.images.index):
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        parts = {
            "tensors_sha256": self.loaded.header["tensors_sha256"],
            "architecture": self.loaded.architecture.to_json(),
            "images_sha256": content.hexdigest(),
            "threat": asdict(self.threat),
            "suite": self.suite,
            "protocol": PROTOCOL,
            "seed": self.seed,
            "chunk": self.chunk,
            "precision": "fp32",
        }
        parts = json.loads(json.dumps(parts))
        return {**parts, "digest": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}


def pick(split: Split, n: int | None, seed: int) -> Split:
    """A seeded, stratified part of n images in ascending order; the whole split for None."""
    if n is None or n >= len(split):
        return split
    return split.take(stratified_order(split.labels, seed, "attack/order")[:n].sort().values)


def evaluate(job: Job, folder: Path | None, watcher: Watcher, *, device: torch.device, resume: bool) -> tuple[Path, dict[str, Any]]:
    """Run the job into folder (None: beside the checkpoint, under evals/); returns the folder and the report, `seconds` included.

    A finished evaluation of the same identity is reported again, not run again. An unfinished one goes on with resume.
    """
    identity = job.identity()
    folder = folder or job.loaded.path.parent / "evals" / f"{job.suite}-{identity['digest'][:8]}"
    ledger = Ledger(folder / "ledger")
    _claim(folder, identity, ledger, resume=resume)
    if not ledger.complete:
        try:
            _Run(job, identity, ledger, watcher, device).finish(folder)
        except KeyboardInterrupt:
            what = "interrupted; every finished batch is saved"
            raise InterruptedRunError(what, where=str(folder), next="the same command with --resume goes on from there") from None
    arrays, header = ledger.read()
    report = summarise(arrays, header)
    atomic.write_json(folder / "report.json", report)
    return folder, {**report, "seconds": _stored_seconds(folder)}


def _stored_seconds(folder: Path) -> float | None:
    """The clock is no receipt: a lost or damaged one costs nothing but itself."""
    try:
        return float(json.loads((folder / "timing.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _claim(folder: Path, identity: dict[str, Any], ledger: Ledger, *, resume: bool) -> None:
    """Write identity.json, or check that the one there is the same; refuse to walk over somebody's work."""
    path = folder / "identity.json"
    if path.is_file():
        try:
            stored = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise CheckpointError(
                "the record of what is evaluated here is damaged", where=str(path), next="name another folder with --out"
            ) from None
        rows = [
            f"{key}: {stored.get(key)} in the folder, {identity[key]} now"
            for key in identity
            if key != "digest" and stored.get(key) != identity[key]
        ]
        if rows:
            raise ResumeError(
                "the folder holds another evaluation\n" + "\n".join(rows), where=str(folder), next="name another folder with --out"
            )
        if not ledger.complete and ledger.shards() and not resume:
            raise UsageError("this evaluation was begun and not finished", where=str(folder), next="--resume goes on with it")
    elif folder.exists() and not atomic.is_free(folder):
        raise UsageError(
            "the folder holds something else, and nothing is overwritten", where=str(folder), next="name another folder with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, identity)


class _Run:
    def __init__(self, job: Job, identity: dict[str, Any], ledger: Ledger, watcher: Watcher, device: torch.device) -> None:
        self.job, self.identity, self.ledger, self.watcher, self.device = job, identity, ledger, watcher, device
        set_precision("fp32", device)
        self.model = job.loaded.network.to(device).eval()
        self.images = job.images.to(device)
        self.cost = Cost()
        self.entries = suite(job.suite).entries(job.threat, job.loaded.architecture.num_classes)
        probe = to_float(self.images.images[:_PROBE])
        _check_logits(self.model, probe, job)
        self.judge = Judge(self.model, chunk=job.chunk, bound=measure_bound(self.model, probe), cost=self.cost)

    def finish(self, folder: Path) -> None:
        """All chunks, then the whole ledger and the clock beside it."""
        with frozen(self.model):
            margins = self._clean()
            right = torch.nonzero(~self.judge.broken(margins))[:, 0]
            chunks = [right[i : i + self.job.chunk] for i in range(0, len(right), self.job.chunk)]
            done = self.ledger.shards()
            self.watcher.started(len(done), len(chunks))
            for number, rows in enumerate(chunks):
                if number not in done:
                    self._chunk(number, rows, margins)
                    self.watcher.advanced(number + 1, len(rows))
        self._merge(len(chunks), margins, folder)

    def _clean(self) -> Tensor:
        """(n,) clean margins of all images."""
        size = self.job.chunk
        images, labels = self.images.images, self.images.labels
        parts = [self.judge.margins(to_float(images[i : i + size]), labels[i : i + size]) for i in range(0, len(labels), size)]
        return torch.cat(parts)

    def _chunk(self, number: int, rows: Tensor, margins: Tensor) -> None:
        """Every attack of the suite on one chunk of correctly classified images, written as one shard."""
        started, before = time.monotonic(), (self.cost.forwards, self.cost.backwards)
        x, y, index = to_float(self.images.images[rows]), self.images.labels[rows], self.images.index[rows]
        arrays: Arrays = {"index": index.cpu().numpy(), "label": y.cpu().numpy(), "clean_margin": margins[rows].cpu().numpy()}
        alive = torch.ones(len(rows), dtype=torch.bool, device=x.device)
        found_by = torch.full((len(rows),), -1, device=x.device)
        kept = x.clone()
        for position, entry in enumerate(self.entries):
            self.watcher.attacking(entry.name, int(alive.sum()), len(rows))
            target = alive if entry.on == "survivors" else torch.ones_like(alive)
            result = self._attack(entry, x, y, index, target)
            arrays |= {f"{key}.{entry.name}": value.cpu().numpy() for key, value in result.items() if key != "x_adv"}
            first = result["broken"] & alive
            kept = torch.where(first[:, None, None, None], result["x_adv"], kept)
            found_by[first] = position
            alive &= ~result["broken"]
        broken = found_by >= 0
        arrays |= {
            "found_by": found_by.cpu().numpy(),
            "adversarial": kept[broken].cpu().numpy(),
            "adversarial_index": index[broken].cpu().numpy(),
        }
        spent = {"forwards": self.cost.forwards - before[0], "backwards": self.cost.backwards - before[1]}
        self.ledger.write_shard(number, arrays, {"digest": self.identity["digest"], "cost": spent, "seconds": time.monotonic() - started})

    def _attack(self, entry: Entry, x: Tensor, y: Tensor, index: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One attack on the examples of target (N,) bool; rows (N, ...) for all, with `not attacked` where it was not."""
        n = len(x)
        nothing, never = torch.full((n,), torch.nan, device=x.device), torch.full((n,), -1, device=x.device)
        result = {"x_adv": x.clone(), "broken": torch.zeros_like(target), "steps": never, "margin": nothing}
        if target.any():
            draws = Draws(self.job.seed, index[target], f"attack/{entry.name}")
            found = entry.attack(Surrogate(self.model.trace, self.cost), self.judge, x[target], y[target], draws, {})
            for key, value in zip(
                ("x_adv", "broken", "steps", "margin"), (found.x_adv, found.broken, found.steps, found.margins), strict=True
            ):
                result[key][target] = value
        return result

    def _merge(self, shards: int, margins: Tensor, folder: Path) -> None:
        """Join the shards with the images that were wrong from the start, and write ledger and clock."""
        read = [self.ledger.read_shard(number) for number in range(shards)]
        wrong = self.judge.broken(margins).cpu().numpy()
        labels, index = self.images.labels.cpu().numpy()[wrong], self.images.index.cpu().numpy()[wrong]
        n, shape = len(index), tuple(self.images.images.shape[1:])
        rest: Arrays = {"index": index, "label": labels, "clean_margin": margins.cpu().numpy()[wrong], "found_by": np.full(n, -1)}
        rest |= {"adversarial": np.zeros((0, *shape), np.float32), "adversarial_index": np.zeros(0, np.int64)}
        for entry in self.entries:
            rest |= {
                f"broken.{entry.name}": np.zeros(n, bool),
                f"steps.{entry.name}": np.full(n, -1),
                f"margin.{entry.name}": np.full(n, np.nan, np.float32),
            }
        spent = [{"forwards": len(margins), "backwards": 0}, *(header["cost"] for _, header in read)]
        cost = {key: sum(part[key] for part in spent) for key in ("forwards", "backwards")}
        self.ledger.finish(merge([rest, *(arrays for arrays, _ in read)]), self._header(cost))
        seconds = round(sum(header["seconds"] for _, header in read), 3)
        atomic.write_json(folder / "timing.json", {"seconds": seconds, "device": str(self.device), "threads": torch.get_num_threads()})

    def _header(self, cost: dict[str, int]) -> dict[str, Any]:
        job = self.job
        return {
            "checkpoint": str(job.loaded.path),
            "classes": job.loaded.header["classes"],
            "threat": {"norm": job.threat.norm, "eps": job.eps_text, "bounds": list(job.threat.bounds)},
            "suite": job.suite,
            "protocol": f"{job.suite}/{PROTOCOL}",
            "identity": self.identity,
            "bound": self.judge.bound,
            "cost": cost,
            "versions": versions(),
            "entries": [{"name": e.name, "on": e.on, "readings": e.readings or ((e.name, 2**31),)} for e in self.entries],
        }


@torch.no_grad()
def _check_logits(model: Network, images: Tensor, job: Job) -> None:
    """Before hours are spent: logits are finite and of the right number, and two forwards agree."""
    logits = model(images)
    where, classes = str(job.loaded.path), len(job.loaded.header["classes"])
    if logits.shape != (len(images), classes):
        raise CheckpointError(f"the network returns {tuple(logits.shape)} for {len(images)} images of {classes} classes", where=where)
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError("the network's outputs are not finite numbers", where=where, next="its weights are broken: train it again")
