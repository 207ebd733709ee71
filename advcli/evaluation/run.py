"""One evaluation in progress: attack after attack, images in and out of the pool, shards written as they come together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Cost, Judge, Surrogate, measure_bound
from advcli.attacks.expectation import DRAWS, ExpectedSurrogate, seeded
from advcli.attacks.pool import Attempt, PooledAttack, Task, stream
from advcli.attacks.substitute import substituted
from advcli.attacks.views import ViewedSurrogate
from advcli.data import stratified_order, to_float
from advcli.draws import Draws
from advcli.errors import CheckpointError, UsageError
from advcli.evaluation import receipt, search, shards, signs
from advcli.evaluation.candidates import Probe
from advcli.evaluation.composition import compose
from advcli.evaluation.entries import Entry
from advcli.evaluation.inspection import inspect
from advcli.evaluation.job import Job, Watcher, pick
from advcli.evaluation.pace import Pace, measure
from advcli.evaluation.suites import PROBED
from advcli.gates.whole import processes
from advcli.models import ModelOutput, Network, frozen, head_of
from advcli.runs import atomic
from advcli.runs.ledger import Arrays, Ledger
from advcli.training import distributed
from advcli.training.device import set_precision

_PROBE = 64  # images on which rounding is measured


class Run:
    """One evaluation in progress. Verdicts live in the ledger's shards; here is only what the next attack needs to know."""

    def __init__(self, job: Job, identity: dict[str, Any], ledger: Ledger, watcher: Watcher, device: torch.device) -> None:
        self.job, self.identity, self.ledger, self.watcher, self.device = job, identity, ledger, watcher, device
        set_precision("fp32", device)
        self.model = head_of(job.loaded.network.to(device), job.head).eval()
        self.images = job.images.to(device)
        self.cost, self.worked = Cost(), 0.0
        self.sources = [source.network.to(device).eval() for source in job.sources]
        probe = to_float(pick(self.images, _PROBE, job.seed).images[:])
        self.traits = inspect(self.model, probe, len(job.loaded.header["classes"]), str(job.loaded.path))
        if not self._repeatable and processes() > 1:
            what = "the network draws, or looks at its company, so its verdicts would depend on the number of processes"
            raise UsageError(what, where=str(job.loaded.path), next="attack it without torchrun")
        self.entries = compose(job, self.traits)
        # what noise moves is not rounding
        bound = 0.0 if self.traits.random else distributed.lead(lambda: measure_bound(self.model, probe))
        draws = DRAWS if self.traits.random else 1
        self.judge = Judge(self.model, chunk=job.chunk, bound=bound, cost=self.cost, draws=draws)
        self.search = distributed.lead(self._settled)
        self.followed = {"fp32": self.model, **{name: self._follow(name) for name in self.search.agreements}}
        if self.search.is_fast:
            self.entries += (search.audit(self.entries, len(self.images)),)

    @torch.no_grad()
    def _follow(self, precision: str) -> search.Follower:
        """A copy to search on; if it is compiled, then now, so that no attack's clock runs meanwhile."""
        if precision != search.COMPILED:
            return search.followed(self.job.loaded.network, self.job.head, precision)
        with search.compiling():
            model = search.followed(self.job.loaded.network, self.job.head, precision)
            rows = torch.arange(self.job.chunk, device=self.device) % len(self.images)
            model.trace(to_float(self.images.images[rows]))
        return model

    def _settled(self) -> search.Search:
        """How attacks search: stored beside the ledger, so that it is the same after an interruption."""
        job = self.job
        if job.search == "fp32":
            return search.Search("fp32", "fp32", {}, {})
        part = pick(self.images, _PROBE, job.seed)
        images, labels, draws = to_float(part.images[:]), part.labels, Draws(job.seed, part.index, "attack/probe")
        with frozen(self.model):
            begun, folder = bool(self.ledger.shards()), self.ledger.directory.parent
            attacks = [entry.attack for entry in self.entries if search.asks_forwards(entry) and self._repeatable]
            asked = [attack.passes * attack.timed(repeatable=True)[1] for attack in attacks if isinstance(attack, PooledAttack)]
            right = float((~self.judge.broken(self.judge.margins(images, labels))).double().mean())  # the others are not attacked
            where = (job.loaded.network, job.head, self.judge, job.threat)
            probe = Probe(*where, images, labels, draws, round(right * len(self.images) * sum(asked)), self.watcher.noted)
            return search.settle(job.search, folder, partial(probe.measure, job.search), begun=begun)

    def finish(self, folder: Path) -> None:
        """Every attack on everybody it is due to, then the whole ledger and the clock beside it.

        Of several processes each attacks every so many images, and hears of the others only at the end.
        """
        with ExitStack() as stack:
            for network in (self.model, *self.sources):
                stack.enter_context(frozen(network))
            logits, margins = self._clean()
            mine = torch.arange(len(margins), device=margins.device) % processes() == distributed.rank()
            right = ~self.judge.broken(margins)
            alive = right & mine
            correct = alive.clone()
            stored = shards.stored(self.ledger, [entry.name for entry in self.entries], set(self.images.index[mine].tolist()))
            self._look_for_signs()
            task = self._task(self.entries[0], torch.arange(len(alive), device=alive.device), logits)
            seconds = measure(self.entries, self._surrogate, task, self.job.chunk)
            self.pace = Pace(self.entries, seconds, self.job.chunk, repeatable=self._repeatable)
            standing = int(correct.sum())
            passes = int(right.sum()) * sum(entry.attack.passes for entry in self.entries)
            if processes() > 1:
                self.watcher.noted(f"progress is that of the first of {processes()} processes; it waits for the others at the end")
            self.watcher.planned(len(self.entries), passes, self.pace.left(0, 0, standing, standing))
            self.watcher.started(sum(len(ids) for ids in stored.values()), int(correct.sum()) * len(self.entries))
            due_to = {}
            for position, entry in enumerate(self.entries):
                due = torch.nonzero(self._due(entry, alive, correct))[:, 0]
                due_to[entry.name] = len(due)
                self.watcher.attacking(entry.name, int(alive.sum()), int(mine.sum()))
                with self._noise(position):
                    alive[self._attack(position, entry, due, logits, alive, stored)] = False
        everybody = distributed.gathered(due_to)
        if distributed.leads():
            self._merge(margins, folder, {name: sum(part[name] for part in everybody) for name in due_to})

    def _noise(self, number: int) -> AbstractContextManager[None]:
        """A random network's own draws while one attack runs: the same whenever the same command is given."""
        return seeded(self.job.seed + number, self.device) if self.traits.random else nullcontext()

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

    def _look_for_signs(self) -> None:
        """Of masked gradients, once, before anything is attacked, in suites whose verdict may be trusted."""
        if distributed.leads() and self.job.suite in PROBED and self.job.engine == "native" and self.ledger.probes() is None:
            self.ledger.write_probes(self._signs())

    def _signs(self) -> Arrays:
        return signs.columns(self._as_deployed, self.job.threat, self.images, self.job.seed, repeatable=self._repeatable)

    def _as_deployed(self, x: Tensor) -> ModelOutput:
        """What an attack sees that knows nothing of the network, in float32; of a random one always the same answer."""
        if not self.traits.random:
            return self.followed["folded" if self.search.is_fast else "fp32"].trace(x)
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
        before, closed, standing = self.cost.units, int(done.sum()), int(alive.sum())
        open_ = int(alive[due[~done]].sum())  # those that fell before will soon fall again
        fallen = lost = 0

        def worked() -> None:
            spent = self.cost.units - before
            left = self.pace.left(number, spent - lost, open_ - fallen, standing - fallen)
            self.watcher.advanced(closed, self.worked + spent * self.pace.seconds[number], left)

        try:
            for attempt in self._attempts(entry, due, done, logits, worked):
                final = attempt.final
                rows = due[attempt.positions[final]]
                new = attempt.found.broken & final
                broken.append(due[attempt.positions[new]])
                closed, fallen = closed + len(rows), fallen + int(alive[broken[-1]].sum())
                lost += int((attempt.units + attempt.wasted)[new].sum())
                shard.add(rows, attempt)
                worked()
        finally:
            shard.write()  # what is finished is kept, whatever ends the loop
            self.worked += (self.cost.units - before) * self.pace.seconds[number]
        return torch.cat(broken) if broken else due[:0]

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
                yield Attempt(part, found, none, forwards, backwards, none, none, torch.ones_like(found.broken), {})

    @property
    def _repeatable(self) -> bool:
        """Whether the network answers alike when asked twice, in whatever company."""
        return not (self.traits.random or self.traits.companions)

    def _surrogate(self, entry: Entry) -> Surrogate:
        """What the attack follows: another network, this one through a view, or what is judged."""
        if entry.source is not None:
            return Surrogate(self.sources[entry.source].trace, self.cost)
        precision = self.search.precision_of(entry)
        model, error = self.followed[precision], self.search.error(precision)
        if entry.view is not None and isinstance(model, Network):
            return ViewedSurrogate(model, entry.view, self.cost, error=error, repeatable=self._repeatable)
        passed = entry.surrogate == "substituted" or (entry.surrogate == "expected" and bool(self.traits.operations))
        trace = substituted(model.trace) if passed else model.trace
        if entry.surrogate == "expected":
            return ExpectedSurrogate(trace, self.cost, apart=self.traits.random == "row")
        follow = Surrogate(self.followed["folded"].trace, self.cost) if precision == search.COMPILED else None
        return Surrogate(trace, self.cost, error=error, repeatable=self._repeatable, follow=follow)

    def _passes(self) -> tuple[int, int]:
        return self.cost.forwards, self.cost.backwards

    def _task(self, entry: Entry, rows: Tensor, logits: Tensor) -> Task:
        draws = Draws(self.job.seed, self.images.index[rows], f"attack/{entry.audits or entry.name}")
        condition = {"logits": logits[rows], "label": self.images.labels[rows]}
        return Task(lambda pick: to_float(self.images.images[rows[pick]]), self.images.labels[rows], draws, condition)

    def _merge(self, margins: Tensor, folder: Path, due_to: dict[str, int]) -> None:
        """Join the shards, attack by attack, into one table of all examples, and write it and the clock.

        due_to: how many examples each attack was run on, which must all be there: what is missing would pass for robust.
        """
        split = self.images
        table = {"index": split.index.cpu().numpy(), "label": split.labels.cpu().numpy(), "clean_margin": margins.cpu().numpy()}
        table |= {f"probe.{name}": column for name, column in (self.ledger.probes() or {}).items()}
        names = {entry.name: getattr(entry.attack, "can_spare", False) for entry in self.entries}
        whole, seconds = shards.join(self.ledger, table, names, split.images.shape[1:], judged=self.search.is_fast)
        short = [name for name, count in due_to.items() if int((whole[f"run.{name}"] >= 0).sum()) != count]
        if short:
            what = f"verdicts of other processes are missing ({', '.join(short)})"
            raise CheckpointError(what, where=str(folder), next="all machines must write into one folder: --out on a disk that they share")
        found = torch.from_numpy(np.isin(whole["index"], whole["adversarial_index"]))
        whole["clean"] = split.images[found.to(split.images.device)].cpu().numpy()
        head = receipt.header(self.job, self.identity, self.traits, self.search, self.entries, self.judge.bound)
        self.ledger.finish(whole, head)
        timing = {"seconds": round(seconds, 3), "device": str(self.device), "threads": torch.get_num_threads(), "processes": processes()}
        atomic.write_json(folder / "timing.json", timing)
