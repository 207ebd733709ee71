"""Probes for masked gradients: cheap measurements on a sample, whose pairs of outcomes the verdict reads from the ledger.

A probe answers, for each image of the sample, two yes-or-no questions of which an honest network's second is at least as often
yes as the first. Sources: Athalye et al. 2018, Carlini et al. 2019, Pintor et al. 2022, Zimmermann et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Cost, Pgd, Surrogate, Threat
from advcli.attacks.losses import attack_loss, cross_entropy, margin
from advcli.attacks.state import State, given, size
from advcli.attacks.state import pick as pick_rows
from advcli.data import Split, to_float
from advcli.draws import Draws
from advcli.evaluation.active import active_test
from advcli.evaluation.job import pick
from advcli.models import ModelOutput
from advcli.runs.ledger import Arrays

SAMPLE = 128
"""Images at most; ten and one of them on one side are enough for a p-value under 0.001."""

STEPS = 100
_EARLY = 10
_NOISES = 100
_UNBOUNDED = 0.5

Pair = tuple[Tensor, Tensor]


class Sample(NamedTuple):
    """images (N, C, H, W) in [0, 1]; labels (N,); draws of all."""

    images: Tensor
    labels: Tensor
    draws: Draws


def columns(trace: Callable[[Tensor], ModelOutput], threat: Threat, images: Split, seed: int) -> Arrays:
    """Of every probe a column (n,) int8 for a ledger: weak + 2 * strong of the images in a seeded sample, -1 for the others."""
    part = pick(images, SAMPLE, seed)
    sample = Sample(to_float(part.images[:]), part.labels, Draws(seed, part.index, "signs"))
    pairs = measure(trace, threat, sample, int(images.labels.bincount().argmax()), Cost())
    place = torch.isin(images.index, part.index).cpu().numpy()
    found = {name: np.full(len(images), -1, np.int8) for name in pairs}
    for name, (weak, strong) in pairs.items():
        found[name][place] = (weak.to(torch.int8) + 2 * strong.to(torch.int8)).cpu().numpy()
    return found


def measure(trace: Callable[[Tensor], ModelOutput], threat: Threat, sample: Sample, largest_class: int, cost: Cost) -> dict[str, Pair]:
    """The pairs (N,) bool of every probe. trace: the deployed network, as an attack that knows nothing of it sees it.

    largest_class: the label that most images of the whole split have.
    """
    surrogate = Surrogate(trace, cost)
    clean = _margins(surrogate, sample.images, sample.labels)
    path, losses = _path(surrogate, threat, sample)
    wrong, end = path >= 0, path[:, -1] >= 0
    right = clean < 0
    still = ~wrong.any(1)
    noise = _noise(surrogate, threat, sample, right)
    flat, saturated = _gradients(surrogate, sample)
    none = torch.zeros_like(right)
    survived = _unbounded(surrogate, threat, sample)
    return {
        "more-steps-not-stronger": (right & wrong[:, _EARLY], right & end),
        "silent-success": (right & wrong.any(1), right & end),
        "loss-not-rising": (right & still & (losses[:, -1] <= losses[:, 0]), none),
        "robust-above-clean": (~right, end),
        "noise-beats-gradient": (noise, right & wrong.any(1)),
        "unbounded-attack-fails": (survived, sample.labels == largest_class),
        "zero-gradients": (flat, none),
        "saturated-loss": (saturated & ~flat, none),
        "active-test-fails": active_test(trace, threat, sample.images, sample.draws.sub("active"), cost),
    }


@torch.no_grad()
def _margins(surrogate: Surrogate, x: Tensor, y: Tensor) -> Tensor:
    return margin(surrogate(x, {}).logits.float(), y)


def _ascend(attack: Pgd, surrogate: Surrogate, sample: Sample) -> Iterator[tuple[Tensor, Tensor]]:
    """Margins and losses (N,) at each of the steps + 1 points of one run of the attack, whether or not an image falls."""
    x, y = sample.images, sample.labels
    state: State = attack.begin(x, y, sample.draws.sub("path"), {}, torch.zeros_like(y))
    for _ in range(attack.steps + 1):
        gradient, loss, output = surrogate.gradient(attack.loss, state["x_adv"], y, given(state))
        yield margin(output.logits.float(), y), loss
        state["x_adv"] = attack.threat.project(attack.threat.step(state["x_adv"], gradient, attack.step_size), x)


def _path(surrogate: Surrogate, threat: Threat, sample: Sample) -> tuple[Tensor, Tensor]:
    """Margins and losses (N, STEPS + 1) of PGD on the cross-entropy."""
    margins, losses = zip(*_ascend(Pgd(threat, attack_loss("ce"), STEPS, threat.eps / 10), surrogate, sample), strict=True)
    return torch.stack(margins, 1), torch.stack(losses, 1)


def _unbounded(surrogate: Surrogate, threat: Threat, sample: Sample) -> Tensor:
    """(N,) bool: what no iterate breaks at a radius that turns every image into grey, half the range in each pixel."""
    eps = _UNBOUNDED if threat.norm == "linf" else _UNBOUNDED * math.sqrt(sample.images[0].numel())
    wide = replace(threat, eps=max(eps, threat.eps))
    attack, y = Pgd(wide, attack_loss("margin"), STEPS, wide.eps / 10), sample.labels
    state = attack.begin(sample.images, y, sample.draws.sub("path"), {}, torch.zeros_like(y))
    state["row"] = torch.arange(len(y), device=y.device)
    for _ in range(STEPS + 1):
        if not size(state):
            break
        gradient, _, output = surrogate.gradient(attack.loss, state["x_adv"], state["y"], {})
        state["x_adv"] = wide.project(wide.step(state["x_adv"], gradient, attack.step_size), state["x"])
        state = pick_rows(state, margin(output.logits.float(), state["y"]) < 0)
    survived = torch.zeros_like(y, dtype=torch.bool)
    survived[state["row"]] = True
    return survived


def _noise(surrogate: Surrogate, threat: Threat, sample: Sample, right: Tensor) -> Tensor:
    """(N,) bool: of right (N,) bool, whom one of so many random points, half of them at distance eps, turns wrong."""
    found = torch.zeros_like(right)
    for number in range(_NOISES):
        rows = torch.nonzero(right & ~found)[:, 0]
        if not len(rows):
            break
        draws = sample.draws.sub("noise").at(number).select(rows)
        start = threat.surface_start if number % 2 else threat.random_start
        found[rows] = _margins(surrogate, start(sample.images[rows], draws), sample.labels[rows]) >= 0
    return found


def _gradients(surrogate: Surrogate, sample: Sample) -> Pair:
    """(N,) bool each: the margin's gradient at the image is zero; the cross-entropy's is, or too small for float32 to have a direction."""
    x, y = sample.images, sample.labels
    first, _, output = surrogate.gradient(attack_loss("margin"), x, y, {})
    second, _, _ = surrogate.gradient(lambda out, label, _: cross_entropy(out.logits, label), x, y, {})
    flat = (first == 0).flatten(1).all(1)
    return flat, (second == 0).flatten(1).all(1) & (margin(output.logits.float(), y) < 0)
