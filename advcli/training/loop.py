"""The training loop: epochs of steps, a measurement and a selection after each, and a state that survives a kill at any moment."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from advcli.attacks import Threat
from advcli.data import Batch, Moment, batches
from advcli.errors import InterruptedRunError, NonFiniteError
from advcli.gates.whole import processes
from advcli.models import Network
from advcli.recipe.schema import selection_steps
from advcli.runs import checkpoint
from advcli.runs import folder as folders
from advcli.runs.log import Log
from advcli.training import distributed, ema, schedule, state
from advcli.training.interrupt import StopRequest
from advcli.training.monitor import StoppedError, measure
from advcli.training.setup import Assembly
from advcli.training.step import step_of

_NEVER = 2**62


class Watcher(Protocol):
    """Whoever shows progress."""

    def noted(self, text: str) -> None: ...
    def started(self, done: int, total: int) -> None: ...
    def stepped(self, step: int, images: int) -> None: ...
    def measured(self, event: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """checkpoint: the selected weights. best_epoch counts from 1. measured: the event of that epoch."""

    folder: Path
    checkpoint: Path
    epochs: int
    best_epoch: int
    measured: dict[str, Any]


def train(parts: Assembly, folder: Path, watcher: Watcher, *, resume: bool) -> Outcome:
    """Train into folder, from its saved state where resume is set and there is one, until the last epoch."""
    with StopRequest() as stop:
        return _Run(parts, folder, watcher, stop, resume=resume).finish()


class _Run:
    def __init__(self, parts: Assembly, folder: Path, watcher: Watcher, stop: StopRequest, *, resume: bool) -> None:
        recipe = parts.recipe
        self.parts, self.recipe, self.folder, self.watcher, self.stop = parts, recipe, folder, watcher, stop
        self.threat = Threat(recipe.threat.norm, float(recipe.threat.eps))
        self.step = step_of(parts)
        self.average = ema.averaged_copy(parts.model) if recipe.train.ema is not None else None
        self.modules = {"model": parts.model, "objective": parts.objective} | ({"ema": self.average} if self.average else {})
        self.digest = folders.digest(recipe)
        self.counters = state.Counters()
        self.sums: dict[str, Tensor] = {}
        self.state_file = folder / "state.safetensors"
        stored = distributed.lead(lambda: state.read(self.state_file) if resume and self.state_file.is_file() else None)
        if stored is not None:
            self.counters, self.sums = state.restore(stored, self.modules, parts.optimizer, parts.device)
        else:
            self.counters.start = parts.start
        self.first_bad = torch.tensor(_NEVER, device=parts.device)
        self.vote = distributed.StopVote(lambda: stop.requested, parts.device)
        if distributed.leads():
            self.log = Log(folder / "metrics.jsonl", self.counters.log_size)
            self.timing = Log(folder / "timing.jsonl", self.counters.timing_size)

    def finish(self) -> Outcome:
        epochs, per_epoch = self.recipe.schedule.epochs, self.parts.steps_per_epoch
        self.watcher.started(self.counters.epoch * per_epoch + self.counters.step_in_epoch, epochs * per_epoch)
        self.saved_at = self.clock = time.monotonic()
        distributed.check_equal([*self.modules.values()])
        while self.counters.epoch < epochs:
            self._run_epoch()
            self._end_epoch()
        distributed.wait()  # whoever returns finds everything written
        return Outcome(self.folder, self.folder / "model.safetensors", epochs, self.counters.best_epoch, self.counters.measured)

    def _run_epoch(self) -> None:
        """The steps of this epoch that are still to be done; a stop leaves between two steps with the state saved."""
        recipe, parts, c = self.recipe, self.parts, self.counters
        parts.model.train()
        stream = batches(
            parts.data.train,
            batch_size=recipe.train.batch_size,
            seed=recipe.seed,
            epoch=c.epoch,
            first=c.step_in_epoch,
            augmentations=recipe.data.augment,
            part=(distributed.rank(), processes()),
        )
        with closing(stream):
            for batch in stream:
                self._take_step(batch)

    def _take_step(self, batch: Batch) -> None:
        recipe, parts, c = self.recipe, self.parts, self.counters
        step = c.epoch * parts.steps_per_epoch + c.step_in_epoch
        rate = float(recipe.optim.lr) * schedule.factor(recipe.schedule, step, parts.steps_per_epoch)
        for group in parts.optimizer.param_groups:
            group["lr"] = rate
        moment = Moment(recipe.seed, c.epoch, step, step / (recipe.schedule.epochs * parts.steps_per_epoch))
        self._account(step, self.step(batch, moment, self.vote.cast))
        if self.average is not None and recipe.train.ema is not None:
            ema.update(self.average, parts.model, float(recipe.train.ema))
        c.step_in_epoch += 1
        self.watcher.stepped(step + 1, recipe.train.batch_size)
        if self.vote.passed():
            self._leave()
        if time.monotonic() - self.saved_at >= recipe.train.save_every:
            self._save()

    def _account(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Add a step's scalars to the epoch's sums on the device; remember the first step whose loss was no number."""
        for name, value in scalars.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.double()
            self.counters.counts[name] = self.counters.counts.get(name, 0) + 1
        bad = torch.where(torch.isfinite(scalars["loss"]), _NEVER, step)
        self.first_bad = torch.minimum(self.first_bad, bad)

    def _end_epoch(self) -> None:
        """Measure, select, write weights and log, then the state: a kill anywhere in between only repeats this."""
        c, recipe = self.counters, self.recipe
        self._check_finite()
        distributed.check_equal([*self.modules.values()])
        if not self.state_file.is_file():
            self._save()  # so that weights without a state always mean a lost one
        kept = self.average if self.average is not None else self.parts.model
        last = c.epoch + 1 == recipe.schedule.epochs
        steps = (c.epoch + 1) * self.parts.steps_per_epoch
        rate = float(recipe.optim.lr) * schedule.factor(recipe.schedule, steps - 1, self.parts.steps_per_epoch)
        event: dict[str, Any] = {"event": "epoch", "epoch": c.epoch + 1, "step": steps, "lr": rate}
        event |= {name: float(total) / c.counts[name] for name, total in sorted(self.sums.items())}
        if last or (c.epoch + 1) % recipe.select.every == 0:
            event |= self._measure(kept)
            self._select(kept, event)
        self._write_weights("last.safetensors", kept, event)
        seconds = c.seconds + time.monotonic() - self.clock
        if distributed.leads():
            self.log.write(event)
            timing = {"epoch": c.epoch + 1, "seconds": round(seconds, 3), "device": str(self.parts.device), "processes": processes()}
            self.timing.write(timing)
        c.epoch, c.step_in_epoch, c.counts, c.seconds, self.sums, self.clock = c.epoch + 1, 0, {}, 0.0, {}, time.monotonic()
        self._save()
        self.watcher.measured(event | {"seconds": seconds})

    def _measure(self, kept: Network) -> dict[str, Any]:
        steps, seed = selection_steps(self.recipe.select.metric), self.recipe.seed
        weight = float(self.recipe.objective.aux_weight) if kept.gate_sites else 0.0
        result = {}
        try:
            for name, split in (("validation", self.parts.data.validation), ("train", self.parts.monitored)):
                if len(split):
                    values = measure(
                        kept,
                        split,
                        self.threat,
                        steps=steps,
                        seed=seed,
                        stop=lambda: self.stop.requested,
                        aux_weight=weight,
                        observe=self.parts.objective.observe,
                    )
                    result[name] = {**values, "attack": f"pgd-{steps}-joint" if weight else f"pgd-{steps}"}
        except StoppedError:
            self._leave()
        if self.counters.start and self.counters.start["saw_held_out"] and "validation" in result:
            result["validation"]["seen_by_start"] = True
        return result

    def _select(self, kept: Network, event: dict[str, Any]) -> None:
        """Write model.safetensors where this epoch is the best so far; the earlier one wins a tie."""
        c, metric = self.counters, self.recipe.select.metric
        if metric == "last":
            score = [float(event["epoch"]), 0.0]
        else:
            measured = event["validation"]
            score = [measured["clean" if metric == "clean" else "robust"], measured["clean"]]
        event["selected"] = c.best is None or score > c.best
        if event["selected"]:
            c.best, c.best_epoch, c.measured = score, event["epoch"], event
            self._write_weights("model.safetensors", kept, event)

    def _write_weights(self, name: str, network: Network, event: dict[str, Any]) -> None:
        if not distributed.leads():
            return
        recipe = self.recipe.model_dump(mode="json")
        header = {
            "name": self.recipe.name,
            "classes": list(self.parts.data.classes),
            "data": recipe["data"],
            "threat": recipe["threat"],
            "objective": recipe["objective"],
            "init": self.counters.start,
            "selection": {"metric": self.recipe.select.metric, "split": self.recipe.select.split, "measured": event.get("validation")},
            "recipe_sha256": self.digest,
            "seed": self.recipe.seed,
            "epoch": event["epoch"],
            "step": event["step"],
            "precision": self.recipe.train.precision,
        }
        checkpoint.write_network(self.folder / name, network, self.parts.architecture, header)

    def _save(self) -> None:
        if not distributed.leads():
            return
        self._check_finite()
        now = time.monotonic()
        c = self.counters
        c.log_size, c.timing_size = self.log.size, self.timing.size
        c.seconds, self.clock, self.saved_at = c.seconds + now - self.clock, now, now
        state.save(self.state_file, c, self.modules, self.parts.optimizer, self.sums, self.digest)

    def _check_finite(self) -> None:
        """NonFiniteError, before anything is written, where a loss or a weight is no number."""
        bad = int(self.first_bad)
        if bad != _NEVER:
            epoch, step = divmod(bad, self.parts.steps_per_epoch)
            what = f"the loss was not a finite number in epoch {epoch + 1}, step {step + 1}"
        elif not all(bool(torch.isfinite(tensor).all()) for tensor in self.parts.model.state_dict().values()):
            what = f"weights are no longer finite numbers in epoch {self.counters.epoch + 1}"
        else:
            return
        kept = "the last good state is kept" if self.state_file.is_file() else "no state had been saved yet"
        hint = f"{kept}; a lower optim.lr usually helps, and so does a warm-up (schedule.name=one-cycle)"
        raise NonFiniteError(what, where=str(self.folder), next=hint)

    def _leave(self) -> None:
        self._save()
        distributed.wait()  # once one process has left, torchrun ends the others
        raise InterruptedRunError(
            "stopped on request; the state is saved", where=str(self.folder), next="the same command with --resume goes on from here"
        )
