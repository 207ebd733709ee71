"""Probes for masked gradients: cheap measurements on a sample, whose pairs of outcomes the verdict reads from the ledger.

A probe answers, for each image of the sample, two yes-or-no questions of which an honest network's second is at least as often
yes as the first. Sources: Athalye et al. 2018, Carlini et al. 2019, Pintor et al. 2022, Zimmermann et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Cost, Pgd, Surrogate, Threat
from advcli.attacks.losses import attack_loss, cross_entropy, margin
from advcli.attacks.state import State
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


def columns(trace: Callable[[Tensor], ModelOutput], threat: Threat, images: Split, seed: int, *, repeatable: bool) -> Arrays:
    """Of every probe a column (n,) int8 for a ledger: weak + 2 * strong of the images in a seeded sample, -1 for the others."""
    part = pick(images, SAMPLE, seed)
    sample = Sample(to_float(part.images[:]), part.labels, Draws(seed, part.index, "signs"))
    pairs = measure(trace, threat, sample, int(images.labels.bincount().argmax()), Cost(), repeatable=repeatable)
    place = torch.isin(images.index, part.index).cpu().numpy()
    found = {name: np.full(len(images), -1, np.int8) for name in pairs}
    for name, (weak, strong) in pairs.items():
        found[name][place] = (weak.to(torch.int8) + 2 * strong.to(torch.int8)).cpu().numpy()
    return found


def measure(
    trace: Callable[[Tensor], ModelOutput], threat: Threat, sample: Sample, largest_class: int, cost: Cost, *, repeatable: bool = True
) -> dict[str, Pair]:
    """The pairs (N,) bool of every probe. trace: the network in float32, as an attack that knows nothing of it sees it.

    largest_class: the label that most images of the whole split have. repeatable: it answers alike in whatever company, so images that
    have answered are let go; where they kept their places, a seeded network's noise stays an image's own.
    """
    surrogate = Surrogate(trace, cost, repeatable=repeatable)
    clean = _margins(surrogate, sample.images, sample.labels)
    right = clean < 0
    path, losses = _path(surrogate, threat, sample, right)
    wrong, end = path >= 0, path[:, -1] >= 0
    still = ~wrong.any(1)
    noise = _noise(surrogate, threat, sample, right)
    flat, saturated = _gradients(surrogate, sample)
    none = torch.zeros_like(right)
    survived = _unbounded(surrogate, threat, sample)
    return {
        "more-steps-not-stronger": (right & wrong[:, _EARLY], right & end),
        "silent-success": (right & wrong.any(1), right & end),
        "loss-not-rising": (right & still & (losses[:, -1] <= losses[:, 0]), none),
        "robust-above-clean": (~right, wrong[:, _EARLY]),
        "noise-beats-gradient": (noise, right & wrong.any(1)),
        "unbounded-attack-fails": (survived, sample.labels == largest_class),
        "zero-gradients": (flat, none),
        "saturated-loss": (saturated & ~flat, none),
        "active-test-fails": active_test(trace, threat, sample.images, sample.draws.sub("active"), cost, repeatable=repeatable),
    }


@torch.no_grad()
def _margins(surrogate: Surrogate, x: Tensor, y: Tensor) -> Tensor:
    return margin(surrogate(x, {}).logits.float(), y)


def _begin(attack: Pgd, sample: Sample) -> State:
    return attack.begin(sample.images, sample.labels, sample.draws.sub("path"), {}, torch.zeros_like(sample.labels))


def _step(attack: Pgd, surrogate: Surrogate, state: State) -> tuple[Tensor, Tensor]:
    """Margins and losses (N,) where the images are; then they move, whether or not they fool."""
    gradient, loss, output = surrogate.gradient(attack.loss, state["x_adv"], state["y"], {})
    state["x_adv"] = attack.threat.project(attack.threat.step(state["x_adv"], gradient, attack.step_size), state["x"])
    return margin(output.logits.float(), state["y"]), loss


def _path(surrogate: Surrogate, threat: Threat, sample: Sample, right: Tensor) -> tuple[Tensor, Tensor]:
    """Margins and losses (N, STEPS + 1) along PGD on the cross-entropy.

    Images that are wrong from the start, ~right (N,) bool, are asked only whether ascent repairs them: they stop after few steps.
    """
    attack = Pgd(threat, attack_loss("ce"), STEPS, threat.eps / 10)
    state = _begin(attack, sample) | {"row": torch.arange(len(right), device=right.device)}
    margins, losses = (sample.images.new_zeros(len(right), STEPS + 1) for _ in range(2))
    for step in range(STEPS + 1):
        for values, now in zip((margins, losses), _step(attack, surrogate, state), strict=True):
            values[state["row"], step:] = now[:, None]
        if step == _EARLY and surrogate.repeatable:
            state = pick_rows(state, right)
        if not len(state["row"]):
            break
    return margins, losses


def _unbounded(surrogate: Surrogate, threat: Threat, sample: Sample) -> Tensor:
    """(N,) bool: what no iterate breaks at a radius that turns every image into grey, half the range in each pixel."""
    eps = _UNBOUNDED if threat.norm == "linf" else _UNBOUNDED * math.sqrt(sample.images[0].numel())
    wide = replace(threat, eps=max(eps, threat.eps))
    attack, survived = Pgd(wide, attack_loss("margin"), STEPS, wide.eps / 10), torch.ones_like(sample.labels, dtype=torch.bool)
    state = _begin(attack, sample) | {"row": torch.arange(len(survived), device=survived.device)}
    for _ in range(STEPS + 1):
        if not bool(survived.any()):
            break
        stands = _step(attack, surrogate, state)[0] < 0
        survived[state["row"]] &= stands
        state = pick_rows(state, stands) if surrogate.repeatable else state
    return survived


def _noise(surrogate: Surrogate, threat: Threat, sample: Sample, right: Tensor) -> Tensor:
    """(N,) bool: of right (N,) bool, whom one of so many random points, half of them at distance eps, turns wrong."""
    found = torch.zeros_like(right)
    for number in range(_NOISES):
        waiting = right & ~found
        if not bool(waiting.any()):
            break
        rows = torch.nonzero(waiting if surrogate.repeatable else torch.ones_like(waiting))[:, 0]
        draws = sample.draws.sub("noise").at(number).select(rows)
        start = threat.surface_start if number % 2 else threat.random_start
        found[rows] |= _margins(surrogate, start(sample.images[rows], draws), sample.labels[rows]) >= 0
    return found & right


def _gradients(surrogate: Surrogate, sample: Sample) -> Pair:
    """(N,) bool each: the margin's gradient at the image is zero; the cross-entropy's is, or too small for float32 to have a direction."""
    x, y = sample.images, sample.labels
    first, _, output = surrogate.gradient(attack_loss("margin"), x, y, {})
    second, _, _ = surrogate.gradient(lambda out, label, _: cross_entropy(out.logits, label), x, y, {})
    flat = (first == 0).flatten(1).all(1)
    return flat, (second == 0).flatten(1).all(1) & (margin(output.logits.float(), y) < 0)
