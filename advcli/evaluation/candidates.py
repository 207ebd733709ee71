"""What is measured before a search: how quick copies of a network are on this machine, and how near they are to what is judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from advcli.attacks import Judge, Surrogate, Threat
from advcli.attacks.judge import pad
from advcli.attacks.losses import attack_loss
from advcli.attacks.pgd import ascend
from advcli.draws import Draws
from advcli.errors import ResourceError
from advcli.evaluation.search import COMPILED, Agreement, Follower, Search, compiling, followed
from advcli.models import Network
from advcli.training.turns import by_turns

_LONG = 240.0  # seconds of forwards for which the compiler, which takes a few to half a minute, is asked
_GAIN = 1.1  # how much quicker a candidate must be, so that noise of the clock decides nothing
_SAFETY = 2.0  # for images that the probe did not look at


@dataclass(frozen=True)
class Probe:
    """What candidates are measured on: images (N, C, H, W), labels (N,), draws of all. network's head is what judge judges.

    forwards: of images that attacks without gradients will ask for at most. noted: hears what cannot be had.
    """

    network: Network
    head: str
    judge: Judge
    threat: Threat
    images: Tensor
    labels: Tensor
    draws: Draws
    forwards: int
    noted: Callable[[str], None]

    def measure(self, asked: str) -> Search:
        """Speed and agreement in the judge's chunks; for `auto` the quickest that agrees, and nothing is left to the clock otherwise."""
        names = ("folded", "bf16") if asked in ("auto", "bf16") else ("folded",)
        copies = {name: followed(self.network, self.head, name) for name in names}
        points = self._points()
        agreements = {name: agreement(self.judge, copy, points, self.labels) for name, copy in copies.items()}
        if asked == COMPILED:
            return Search(asked, "folded", agreements | {COMPILED: self._compiled(points)[1]}, {})
        chosen, seconds = asked, dict[str, float]()
        if asked == "auto":
            seconds = self._seconds({"fp32": self.judge.model, **copies}, _gradient)
            chosen = "fp32"
            for name in copies:
                if agreements[name].holds and seconds[chosen] >= _GAIN * seconds[name]:
                    chosen = name
        if chosen == "fp32":
            return Search(asked, chosen, {}, seconds)
        settled = Search(asked, chosen, {name: agreements[name] for name in ("folded", chosen)}, seconds)
        return self._with_compiled(settled, copies["folded"], points) if asked == "auto" else settled

    def _points(self) -> list[Tensor]:
        """Where searches look: the images, and what PGD makes of them in 1 and in 10 steps of eps/4, in float32."""
        surrogate, loss, size = Surrogate(self.judge.model.trace), attack_loss("ce"), self.threat.eps / 4  # type: ignore[arg-type]
        walk = partial(ascend, surrogate, loss, self.threat, self.images, self.labels, self.draws, {}, step_size=size, start="uniform")
        return [self.images, *(walk(steps=steps) for steps in (1, 10))]

    def _with_compiled(self, search: Search, folded: Follower, points: Sequence[Tensor]) -> Search:
        """The search, with attacks that ask for no gradient on a compiled copy, where they ask for much and it is quicker and agrees."""
        alone = self._seconds({"folded": folded}, _answers, rounds=1)["folded"]
        if self.forwards * alone / self.judge.chunk < _LONG:
            return search
        try:
            compiled, agrees = self._compiled(points)
        except ResourceError as error:
            self.noted(error.what)
            return search
        seconds = self._seconds({"folded": folded, COMPILED: compiled}, _answers)
        seconds = {"folded forward": seconds["folded"], "compiled forward": seconds[COMPILED]}
        taken = agrees.holds and seconds["folded forward"] >= _GAIN * seconds["compiled forward"]
        more = {COMPILED: agrees} if taken else {}
        return replace(search, agreements=search.agreements | more, seconds=search.seconds | seconds)

    def _compiled(self, points: Sequence[Tensor]) -> tuple[Follower, Agreement]:
        """The compiled copy, and how near it is; ResourceError where it cannot be had."""
        with compiling():
            compiled = followed(self.network, self.head, COMPILED)
            return compiled, forward_agreement(self.judge, compiled, points, self.labels)

    def _seconds(self, models: Mapping[str, Any], way: Callable[..., tuple[Tensor, Tensor]], rounds: int = 5) -> dict[str, float]:
        """Medians of what way does with a chunk, the candidates taking turns; the first round warms up."""
        rows = torch.arange(self.judge.chunk, device=self.labels.device) % len(self.labels)
        x, y = self.images[rows], self.labels[rows]
        runs = {name: partial(_read, way, model, x, y) for name, model in models.items()}
        spent, _ = by_turns(runs, rounds + 1, lambda text: None)
        return {name: statistics.median(times[1:]) for name, times in spent.items()}


def agreement(judge: Judge, fast: Follower, points: Sequence[Tensor], labels: Tensor) -> Agreement:
    """How near a fast copy's margins and gradients are to those of the judge's network; points: (N, C, H, W) each."""
    errors, margins, signs = [], [], []
    for x in points:
        exact, near = (_gradient(model, x, labels) for model in (judge.model, fast))  # type: ignore[arg-type]
        margins.append(judge.margins_of(exact[1], labels))
        errors.append((margins[-1] - judge.margins_of(near[1], labels)).abs())
        told = exact[0] != 0
        signs.append((exact[0].sign() == near[0].sign())[told].double().mean() if bool(told.any()) else torch.ones((), dtype=torch.float64))
    bound = _SAFETY * float(torch.cat(errors).quantile(0.999))
    return Agreement(bound, float(torch.cat(margins).std(correction=0)), float(torch.stack([sign.cpu() for sign in signs]).mean()))


def forward_agreement(judge: Judge, fast: Follower, points: Sequence[Tensor], labels: Tensor) -> Agreement:
    """The same of a copy that only answers, which it does in the judge's chunks."""
    errors, margins = [], []
    for x in points:
        margins.append(judge.margins(x, labels))
        rows = [pad(part, judge.chunk) for part in torch.split(torch.arange(len(x), device=x.device), judge.chunk)]
        answers = torch.cat([_answers(fast, x[part], labels[part])[1][:size] for part, size in rows])
        errors.append((margins[-1] - judge.margins_of(answers, labels)).abs())
    return Agreement(_SAFETY * float(torch.cat(errors).quantile(0.999)), float(torch.cat(margins).std(correction=0)), None)


def _gradient(model: Follower, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cross-entropy, (N, C, H, W), and logits (N, K)."""
    gradient, _, output = Surrogate(model.trace).gradient(attack_loss("ce"), x, labels, {})
    return gradient, output.logits.float()


@torch.no_grad()
def _answers(model: Follower, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images themselves and logits (N, K)."""
    return x, model.trace(x).logits.float()


def _read(way: Callable[..., tuple[Tensor, Tensor]], model: Follower, x: Tensor, labels: Tensor) -> float:
    """A number of what way gives, so that the device is done."""
    return float(sum(part.sum() for part in way(model, x, labels)))
