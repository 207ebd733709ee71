"""Runs a suite against a checkpoint into a ledger, attack by attack, so that a kill loses at most the images in hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Apgd, Cost, Fab, Judge, Surrogate, Threat, measure_bound
from advcli.attacks.expectation import DRAWS, ExpectedSurrogate, seeded
from advcli.attacks.pool import Attempt, PooledAttack, Task, stream
from advcli.attacks.substitute import substituted
from advcli.attacks.views import ViewedSurrogate
from advcli.data import Split, stratified_order, to_float
from advcli.draws import Draws
from advcli.errors import CheckpointError, InterruptedRunError, ResumeError, UsageError
from advcli.evaluation import search, shards, signs
from advcli.evaluation.adaptive import gate_entries, joint_entries, random_entries, substitute_entries
from advcli.evaluation.entries import Entry
from advcli.evaluation.inspection import inspect
from advcli.evaluation.pace import Pace, measure
from advcli.evaluation.suites import PROBED, PROTOCOL, from_sources, notes, suite
from advcli.evaluation.summary import summarise
from advcli.models import ModelOutput, Network, frozen, head_of
from advcli.recipe.number import parse_number
from advcli.runs import atomic
from advcli.runs.checkpoint import Loaded, versions
from advcli.runs.ledger import Ledger
from advcli.training.device import set_precision

_PROBE = 64  # images on which rounding is measured


class Watcher(Protocol):
    """Whoever shows progress. spent and left are work done in this session and still to come, in seconds as they passed at the start."""

    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...
    def advanced(self, done: int, spent: float, left: float) -> None: ...
    def noted(self, text: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """What is evaluated. eps_text: eps as typed. images: the split, already cut to the n that are wanted, in ascending order."""

    loaded: Loaded
    images: Split
    threat: Threat
    eps_text: str
    suite: str
    engine: str
    seed: int
    chunk: int
    data: dict[str, Any] = field(default_factory=dict)  # the recipe's data part that the images come from, and which split
    split: str = "test"
    head: str = "final"  # which decision is judged and attacked
    sources: tuple[Loaded, ...] = ()  # other networks that attacks are crafted on
    search: str = "fp32"  # how attacks search, as asked for; judged is in float32

    @property
    def gated(self) -> bool:
        """Whether what is judged passes gates that close."""
        network = self.loaded.network
        return network.gated if self.head == "final" else self.head != "open" and network.gated_before(int(self.head.removeprefix("aux:")))

    @property
    def aux_weight(self) -> float:
        """Weight of the auxiliary heads' mean loss in training, at which joint losses attack; 1 where the checkpoint tells none."""
        objective = self.loaded.header.get("objective")
        return float(parse_number(objective.get("aux_weight", 1))) if isinstance(objective, dict) else 1.0

    def identity(self) -> dict[str, Any]:
        """Everything that decides a verdict; its digest names the evaluation."""
        parts = {
            "tensors_sha256": self.loaded.header["tensors_sha256"],
            "architecture": self.loaded.architecture.to_json(),
            "images_sha256": images_digest(self.images),
            "threat": asdict(self.threat),
            "suite": self.suite,
            "engine": self.engine,
            "head": self.head,
            "protocol": PROTOCOL,
            "seed": self.seed,
            "chunk": self.chunk,
            "precision": "fp32",
        }
        if self.loaded.network.gate_sites:
            parts["aux_weight"] = self.aux_weight
        parts |= {"search": self.search} if self.search != "fp32" else {}
        parts |= {"sources": [source.header["tensors_sha256"] for source in self.sources]} if self.sources else {}
        parts = json.loads(json.dumps(parts))
        return {**parts, "digest": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}


def images_digest(split: Split) -> str:
    """SHA-256 of images, labels and indices."""
    content = hashlib.sha256()
    for tensor in (split.images, split.labels, split.index):
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


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
    folder = folder or job.loaded.evals / f"{job.suite}-{identity['digest'][:8]}"
    ledger = Ledger(folder / "ledger")
    _claim(folder, identity, ledger, resume=resume)
    if not ledger.complete:
        try:
            _Run(job, identity, ledger, watcher, device).finish(folder)
        except KeyboardInterrupt:
            what = "interrupted; every finished image is saved"
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
    atomic.make_folder(folder)
    if not path.is_file():
        atomic.write_json(path, identity)


class _Run:
    """One evaluation in progress. Verdicts live in the ledger's shards; here is only what the next attack needs to know."""

    def __init__(self, job: Job, identity: dict[str, Any], ledger: Ledger, watcher: Watcher, device: torch.device) -> None:
        self.job, self.identity, self.ledger, self.watcher, self.device = job, identity, ledger, watcher, device
        set_precision("fp32", device)
        self.model = head_of(job.loaded.network.to(device), job.head).eval()
        self.images = job.images.to(device)
        self.cost, self.worked = Cost(), 0.0
        self.sources = [source.network.to(device).eval() for source in job.sources]
        probe = to_float(pick(self.images, _PROBE, job.seed).images)
        self.traits = inspect(self.model, probe, len(job.loaded.header["classes"]), str(job.loaded.path))
        self.entries = self._entries()
        bound = 0.0 if self.traits.random else measure_bound(self.model, probe)  # what noise moves is not rounding
        draws = DRAWS if self.traits.random else 1
        self.judge = Judge(self.model, chunk=job.chunk, bound=bound, cost=self.cost, draws=draws)
        self.search = self._settled()
        self.followed = {
            "fp32": self.model,
            **{name: search.followed(job.loaded.network, job.head, name) for name in self.search.agreements},
        }
        if self._is_fast:
            self.entries += (search.audit(self.entries, len(self.images)),)

    @property
    def _is_fast(self) -> bool:
        return self.search.precision != "fp32"

    def _settled(self) -> search.Search:
        """How attacks search: stored beside the ledger, so that it is the same after an interruption."""
        job = self.job
        if job.search == "fp32":
            return search.Search("fp32", "fp32", {}, {})
        part = pick(self.images, _PROBE, job.seed)
        images, labels, draws = to_float(part.images), part.labels, Draws(job.seed, part.index, "attack/probe")
        with frozen(self.model):
            begun, folder = bool(self.ledger.shards()), self.ledger.directory.parent
            measured = partial(search.measure, job.search, job.loaded.network, job.head, self.judge, job.threat, images, labels, draws)
            return search.settle(job.search, folder, measured, begun=begun)

    def _entries(self) -> tuple[Entry, ...]:
        """The suite, with what it adds for this network: the joint loss of auxiliary heads, and attacks that know what it hides."""
        job = self.job
        entries = suite(job.suite, job.engine).entries(job.threat, job.loaded.architecture.num_classes)
        if job.sources:
            return from_sources(entries, [_label(source) for source in job.sources])
        if job.engine != "native":
            return entries
        if job.head == "final" and job.loaded.network.gate_sites:
            entries += joint_entries(job.suite, job.threat, job.aux_weight)
        if job.suite == "adaptive":  # what knows the network comes first: it leaves the fewest to the others
            return self._knowing() + entries
        return entries + self._knowing() if job.suite == "full" else entries

    def _knowing(self) -> tuple[Entry, ...]:
        """Attacks chosen by looking at the network; none for one that hides nothing."""
        job, network = self.job, self.job.loaded.network
        entries: tuple[Entry, ...] = ()
        classes = job.loaded.architecture.num_classes
        if job.head == "final" and network.gated:
            heads, exact = len(network.gate_sites), network.closes_at_features
            entries += gate_entries(job.threat, classes, heads, job.aux_weight, exact=exact)
        if self.traits.operations or self.traits.probabilities:
            entries += substitute_entries(job.threat, classes)
        return entries + random_entries(job.threat, classes) if self.traits.random else entries

    def finish(self, folder: Path) -> None:
        """Every attack on everybody it is due to, then the whole ledger and the clock beside it."""
        with ExitStack() as stack:
            for network in (self.model, *self.sources):
                stack.enter_context(frozen(network))
            logits, margins = self._clean()
            alive = ~self.judge.broken(margins)
            correct = alive.clone()
            stored = shards.stored(self.ledger, [entry.name for entry in self.entries])
            self._probe()
            task = self._task(self.entries[0], torch.arange(len(alive), device=alive.device), logits)
            self.pace = Pace(self.entries, measure(self.entries, self._surrogate, task, self.job.chunk), self.job.chunk)
            self.watcher.started(sum(len(ids) for ids in stored.values()), int(correct.sum()) * len(self.entries))
            for position, entry in enumerate(self.entries):
                due = torch.nonzero(self._due(entry, alive, correct))[:, 0]
                self.watcher.attacking(entry.name, int(alive.sum()), len(alive))
                alive[self._attack(position, entry, due, logits, alive, stored)] = False
        self._merge(margins, folder)

    def _due(self, entry: Entry, alive: Tensor, correct: Tensor) -> Tensor:
        """(n,) bool: whom an entry attacks."""
        if entry.audits is None:
            return alive if entry.on == "survivors" else correct
        sample = torch.zeros_like(correct)
        sample[stratified_order(self.images.labels, self.job.seed, "attack/audit")[: entry.sample]] = True
        return correct & sample

    def _clean(self) -> tuple[Tensor, Tensor]:
        """Logits (n, K) float32, from which every attack takes its targets, and margins (n,); nothing passes the clean images again."""
        parts = torch.split(torch.arange(len(self.images), device=self.images.labels.device), self.job.chunk)
        answers = [self.judge.answer(to_float(self.images.images[part]), self.images.labels[part]) for part in parts]
        logits, margins = (torch.cat(columns) for columns in zip(*answers, strict=True))
        return logits, margins

    def _probe(self) -> None:
        """Measure the signs of masked gradients once, before anything is attacked, in suites whose verdict may be trusted."""
        if self.job.suite not in PROBED or self.job.engine != "native" or self.ledger.probes() is not None:
            return
        images = pick(self.images, signs.SAMPLE, self.job.seed)
        sample = signs.Sample(to_float(images.images), images.labels, Draws(self.job.seed, images.index, "signs"))
        largest = int(self.images.labels.bincount().argmax())
        pairs = signs.measure(self._as_deployed, self.job.threat, sample, largest, Cost())
        place = torch.isin(self.images.index, images.index).cpu().numpy()
        columns = {name: np.full(len(self.images), -1, np.int8) for name in pairs}
        for name, (weak, strong) in pairs.items():
            columns[name][place] = (weak.to(torch.int8) + 2 * strong.to(torch.int8)).cpu().numpy()
        self.ledger.write_probes(columns)

    def _as_deployed(self, x: Tensor) -> ModelOutput:
        """What an attack sees that knows nothing of the network; of a random one always the same answer."""
        if not self.traits.random:
            return self.model.trace(x)
        with seeded(self.job.seed, x.device):
            return self.model.trace(x)

    def _attack(self, number: int, entry: Entry, due: Tensor, logits: Tensor, alive: Tensor, stored: dict[str, dict[int, bool]]) -> Tensor:
        """Run one attack on the examples at positions due; returns the positions that it broke, now or before an interruption."""
        known = stored[entry.name]
        names = self.images.index[due].tolist()
        done = torch.tensor([name in known for name in names], dtype=torch.bool, device=due.device)
        broken = [due[[bool(known.get(name, False)) for name in names]]] if names else []
        shard = shards.ShardWriter(
            self.ledger, self.images.index, alive, attack=entry.name, digest=self.identity["digest"], size=self.job.chunk
        )
        before, closed, standing = self._units(), int(done.sum()), int(alive.sum())
        open_ = int(alive[due[~done]].sum())  # those that fell before will soon fall again
        fallen = lost = 0

        def worked() -> None:
            spent = self._units() - before
            left = self.pace.left(number, spent - lost, open_ - fallen, standing - fallen)
            self.watcher.advanced(closed, self.worked + spent * self.pace.seconds[number], left)

        try:
            for attempt in self._attempts(entry, due, done, logits, worked):
                final = attempt.final
                rows = due[attempt.positions[final]]
                new = attempt.found.broken & final
                broken.append(due[attempt.positions[new]])
                closed, fallen = closed + len(rows), fallen + int(alive[broken[-1]].sum())
                lost += int((attempt.forwards + attempt.backwards)[new].sum())
                shard.add(rows, attempt)
                worked()
        finally:
            shard.write()  # what is finished is kept, whatever ends the loop
            self.worked += (self._units() - before) * self.pace.seconds[number]
        return torch.cat(broken) if broken else due[:0]

    def _units(self) -> int:
        return self.cost.forwards + self.cost.backwards

    def _attempts(self, entry: Entry, due: Tensor, done: Tensor, logits: Tensor, worked: Callable[[], None]) -> Iterator[Attempt]:
        """Attempts with positions in due. The authors' package draws by batch, so its batches are cut before what is done is left out."""
        surrogate = self._surrogate(entry)
        if isinstance(entry.attack, PooledAttack):
            todo = torch.nonzero(~done)[:, 0]
            for attempt in stream(entry.attack, surrogate, self.judge, self._task(entry, due[todo], logits), worked):
                yield attempt._replace(positions=todo[attempt.positions])
            return
        for part in torch.split(torch.arange(len(due), device=due.device), self.job.chunk):
            if not bool(done[part].all()):
                task = self._task(entry, due[part], logits)
                before = (self.cost.forwards, self.cost.backwards)
                found = entry.attack(surrogate, self.judge, task.images(torch.arange(len(part))), task.labels, task.draws, {})
                forwards, backwards = (
                    torch.full_like(part, (now - then) // len(part)) for now, then in zip(self._passes(), before, strict=True)
                )
                none = torch.zeros_like(part)
                yield Attempt(part, found, none, forwards, backwards, none, torch.ones_like(found.broken))

    def _surrogate(self, entry: Entry) -> Surrogate:
        """What the attack follows: another network, this one through a view, or what is judged."""
        if entry.source is not None:
            return Surrogate(self.sources[entry.source].trace, self.cost)
        precision = self.search.precision_of(entry)
        model, error = self.followed[precision], self.search.error(precision)
        if entry.view is not None and isinstance(model, Network):
            return ViewedSurrogate(model, entry.view, self.cost, error=error)
        passed = entry.surrogate == "substituted" or (entry.surrogate == "expected" and bool(self.traits.operations))
        trace = substituted(model.trace) if passed else model.trace
        if entry.surrogate == "expected":
            return ExpectedSurrogate(trace, self.cost, apart=self.traits.random == "row")
        return Surrogate(trace, self.cost, error=error)

    def _passes(self) -> tuple[int, int]:
        return self.cost.forwards, self.cost.backwards

    def _task(self, entry: Entry, rows: Tensor, logits: Tensor) -> Task:
        draws = Draws(self.job.seed, self.images.index[rows], f"attack/{entry.audits or entry.name}")
        condition = {"logits": logits[rows], "label": self.images.labels[rows]}
        return Task(lambda pick: to_float(self.images.images[rows[pick]]), self.images.labels[rows], draws, condition)

    def _merge(self, margins: Tensor, folder: Path) -> None:
        """Join the shards, attack by attack, into one table of all examples, and write it and the clock."""
        split = self.images
        table = {"index": split.index.cpu().numpy(), "label": split.labels.cpu().numpy(), "clean_margin": margins.cpu().numpy()}
        table |= {f"probe.{name}": column for name, column in (self.ledger.probes() or {}).items()}
        names = [entry.name for entry in self.entries]
        whole, seconds = shards.join(self.ledger, table, names, split.images.shape[1:], judged=self._is_fast)
        whole["clean"] = split.images.cpu().numpy()[np.isin(whole["index"], whole["adversarial_index"])]
        self.ledger.finish(whole, self._header())
        atomic.write_json(
            folder / "timing.json", {"seconds": round(seconds, 3), "device": str(self.device), "threads": torch.get_num_threads()}
        )

    def _header(self) -> dict[str, Any]:
        job = self.job
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
            "notes": self._notes(),
            "identity": self.identity,
            "bound": self.judge.bound,
            "traits": self.traits.to_json(),
            **({"search": self.search.header()} if self._is_fast else {}),
            "versions": versions(),
            "entries": [self._describe(entry) for entry in self.entries],
        }

    def _notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        job = self.job
        few = notes(job.suite, job.loaded.architecture.num_classes) if job.engine == "native" else []
        few = [*job.loaded.header.get("notes", []), *few]
        if job.head != "final":
            few = [*few, f"the decision of head {job.head} was judged, not the one that is deployed"]
        if job.gated:
            few = [*few, "the network gates its features by its own decision, which hides the gradient: an upper bound"]
            few[-1] += "" if job.suite in ("adaptive", "full") else " (--suite adaptive knows the gate and comes closer)"
        few += self.traits.notes()
        return few + (["training images: the network has seen them, so this is an upper bound"] if job.split == "train" else [])

    def _describe(self, entry: Entry) -> dict[str, Any]:
        targeted = isinstance(entry.attack, Apgd | Fab) and entry.attack.is_targeted
        readings = entry.readings or ((entry.name, 2**31),)
        ranked = {"ranked": True} if isinstance(entry.attack, Apgd) and entry.attack.ranked else {}
        audits = {"audits": entry.audits} if entry.audits is not None else {}
        words = {"name": entry.name, "about": entry.about, "on": entry.on, "part": entry.part or self.job.suite}
        return {**words, "targeted": targeted, "readings": readings, **ranked, **audits}


def _label(source: Loaded) -> str:
    """A name for a source in tables and ledgers, which does not change when its file is moved."""
    return f"{source.header.get('name', 'source')}-{source.header['tensors_sha256'][:8]}"
