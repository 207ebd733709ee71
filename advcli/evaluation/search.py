"""How searches compute: settled once by measuring speed and agreement, written down, and reused for as long as an evaluation lasts.

Verdicts are the judge's alone, in float32. What a fast search could do is miss; so it must agree with float32 on a probe, it
asks the judge wherever its margin is within its measured error of zero, and a part of its work is repeated in float32 (the audit).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from advcli.attacks import Judge, Surrogate, Threat
from advcli.attacks.losses import attack_loss
from advcli.attacks.pgd import ascend
from advcli.draws import Draws
from advcli.errors import CheckpointError
from advcli.evaluation.entries import Entry
from advcli.models import FastCopy, HeadView, Network, head_of
from advcli.runs import atomic
from advcli.training.turns import by_turns

Asked = Literal["auto", "fp32", "folded", "bf16"]
"""`fp32`: the network as it is. `folded`: float32 with batch norm folded, channels last. `bf16`: that in bfloat16. `auto`: measure."""

SHORT = 1000
"""Passes an image below which `auto` does not look: the probe would cost what it saves."""

_GAIN = 1.1  # how much quicker a candidate must be, so that noise of the clock decides nothing
_SIGNS = 0.95  # share of gradient signs that must agree
_SPREAD = 0.05  # largest bound on the margin's error, in standard deviations of the margin
_SAFETY = 2.0  # for images that the probe did not look at
_AUDIT = (0.04, 256)  # share of the suite's passes that the audit may take, and images at most
_FILE = "search.json"


@dataclass(frozen=True)
class Agreement:
    """bound: twice the 99.9 % quantile of the margin's error, in logits. spread: standard deviation of the margins. signs: share
    of the pixels' cross-entropy gradients that have float32's sign."""

    bound: float
    spread: float
    signs: float

    @property
    def holds(self) -> bool:
        return self.signs >= _SIGNS and self.bound <= _SPREAD * self.spread


@dataclass(frozen=True)
class Search:
    """What was settled. agreements: of each fast copy that is followed, by its precision; seconds: a forward and a backward, if timed."""

    asked: str
    precision: str
    agreements: dict[str, Agreement]
    seconds: dict[str, float]

    def error(self, precision: str) -> float:
        return self.agreements[precision].bound if precision in self.agreements else 0.0

    def precision_of(self, entry: Entry) -> str:
        """What an attack's surrogate computes in: the audit's and reference attacks' in float32, and nobody's below what it needs."""
        if entry.audits is not None or self.precision == "fp32":
            return "fp32"
        return "folded" if getattr(entry.attack, "needs_float32", False) else self.precision

    @property
    def is_fast(self) -> bool:
        return self.precision != "fp32"

    def header(self) -> dict[str, Any]:
        """For receipts: without the clock, which is different every time."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


def followed(network: Network, head: str, precision: str) -> Network | HeadView:
    """The network's head as searches see it in that precision."""
    return head_of(network if precision == "fp32" else FastCopy(network, precision).network, head)  # type: ignore[arg-type]


def settle(asked: str, folder: Path, probe: Callable[[], Search], *, begun: bool) -> Search:
    """The stored decision, else the probe's, which is then stored. begun: attacks have run, so that there must be a stored one."""
    path = folder / _FILE
    if path.is_file() or begun:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            agreements = {key: Agreement(**value) for key, value in stored["agreements"].items()}
            return Search(asked, str(stored["precision"]), agreements, dict(stored["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            next = "name another folder with --out"
            raise CheckpointError("the record of how attacks searched here is missing or damaged", where=str(path), next=next) from None
    search = probe()
    atomic.write_json(path, asdict(search))
    return search


def measure(asked: str, network: Network, head: str, judge: Judge, threat: Threat, images: Tensor, labels: Tensor, draws: Draws) -> Search:
    """Speed and agreement of the candidates on images (N, C, H, W), in the judge's chunks; the quickest that agrees for `auto`."""
    copies = {name: followed(network, head, name) for name in (("folded", "bf16") if asked in ("auto", "bf16") else ("folded",))}
    points = _points(judge, threat, images, labels, draws)
    agreements = {name: agreement(judge, copy, points, labels) for name, copy in copies.items()}
    if asked != "auto":
        return Search(asked, asked, agreements, {})
    seconds = _seconds({"fp32": judge.model, **copies}, images[: judge.chunk], labels[: judge.chunk])
    chosen = "fp32"
    for name in copies:
        if agreements[name].holds and seconds[chosen] >= _GAIN * seconds[name]:
            chosen = name
    kept = {"fp32": (), "folded": ("folded",), "bf16": ("folded", "bf16")}[chosen]
    return Search(asked, chosen, {name: agreements[name] for name in kept}, seconds)


def _points(judge: Judge, threat: Threat, images: Tensor, labels: Tensor, draws: Draws) -> list[Tensor]:
    """Where searches look: the images, and what PGD makes of them in 1 and in 10 steps of eps/4, in float32."""
    surrogate, loss = Surrogate(judge.model.trace), attack_loss("ce")  # type: ignore[arg-type]
    walks = [
        ascend(surrogate, loss, threat, images, labels, draws, {}, steps=steps, step_size=threat.eps / 4, start="uniform")
        for steps in (1, 10)
    ]
    return [images, *walks]


def agreement(judge: Judge, fast: Network | HeadView, points: Sequence[Tensor], labels: Tensor) -> Agreement:
    """How near a fast copy's margins and gradients are to those of the judge's network; points: (N, C, H, W) each."""
    errors, margins, signs = [], [], []
    for x in points:
        exact, near = (_gradient(model, x, labels) for model in (judge.model, fast))
        margins.append(judge.margins_of(exact[1], labels))
        errors.append((margins[-1] - judge.margins_of(near[1], labels)).abs())
        told = exact[0] != 0
        signs.append((exact[0].sign() == near[0].sign())[told].double().mean() if bool(told.any()) else torch.ones((), dtype=torch.float64))
    bound = _SAFETY * float(torch.cat(errors).quantile(0.999))
    return Agreement(bound, float(torch.cat(margins).std(correction=0)), float(torch.stack([sign.cpu() for sign in signs]).mean()))


def _gradient(model: torch.nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    gradient, _, output = Surrogate(model.trace).gradient(attack_loss("ce"), x, labels, {})  # type: ignore[arg-type]
    return gradient, output.logits.float()


def _seconds(models: dict[str, torch.nn.Module], x: Tensor, labels: Tensor, rounds: int = 5) -> dict[str, float]:
    """Medians of a forward and a backward, the candidates taking turns; the first round warms up."""
    runs = {name: partial(_read_gradient, model, x, labels) for name, model in models.items()}
    spent, _ = by_turns(runs, rounds + 1, lambda text: None)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def _read_gradient(model: torch.nn.Module, x: Tensor, labels: Tensor) -> float:
    """A number of it, so that the device is done."""
    return float(_gradient(model, x, labels)[0].sum())


def audit(entries: tuple[Entry, ...], n: int) -> Entry:
    """The suite's first attack again on some of the n images, with the same draws, followed in float32."""
    first, share = entries[0], _AUDIT[0]
    total = sum(entry.attack.passes for entry in entries)
    sample = max(1, min(_AUDIT[1], n, int(n * share * total / first.attack.passes)))
    about = f"{first.about}, searched in float32: the audit of {first.name}"
    return replace(first, name="audit", about=about, on="survivors", readings=None, audits=first.name, sample=sample)
