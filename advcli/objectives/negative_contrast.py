"""ANC, asymmetric negative contrast, and how its negatives are found (ANCRA, eq. 3 to 5, table I)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from advcli.attacks import Condition
from advcli.attacks.surrogate import Loss
from advcli.data import Batch, Moment
from advcli.draws import Draws
from advcli.gates.pairing import others
from advcli.gates.selection import precise
from advcli.gates.whole import own, whole
from advcli.models import ModelOutput
from advcli.objectives.parts import Crafted, LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.objectives.term import Term
from advcli.recipe.schema import NegativeContrast


def contrast(clean: Tensor, negative: Tensor, exists: Tensor, alpha: float) -> Tensor:
    """Batch mean of [h = h_o] (alpha sqrt(sg(p_h) p_h_o) + (1 - alpha) sqrt(p_h sg(p_h_o))) (eq. 3), sg stopping the gradient.

    clean, negative: logits (N, K) of an image and of one of another class; h, h_o their predicted classes. Pairs that are
    predicted differently, or whose negative does not exist (N,), add 0 and stay in the denominator.
    """
    p, q = (precise(logits).softmax(1).amax(1) for logits in (clean, negative))  # p_h and p_h_o, where h = h_o
    pulls = alpha * (p.detach() * q).sqrt() + (1 - alpha) * (p * q.detach()).sqrt()
    return torch.where(alike(clean, negative, exists), pulls, 0.0).mean()


def alike(clean: Tensor, negative: Tensor, exists: Tensor) -> Tensor:
    """(N,) bool: the pairs that push each other."""
    return (clean.argmax(1) == negative.argmax(1)) & exists


class Negatives(NamedTuple):
    """images (N, C, H, W) and labels (N,) of the examples that each image is contrasted with; exists (N,): whether there is one."""

    images: Tensor
    labels: Tensor
    exists: Tensor


def choose(strategy: str, batch: Batch, draws: Draws, logits: Tensor | None) -> Negatives:
    """An example of another class for each one, from the whole batch (table I).

    random, and targeted before its attack: a class uniformly, then an example. soft: predicted as the anchor is; hard:
    predicted as the anchor's label; each the one with the largest logit for the anchor's label, and a random one where there
    is none. logits (N, K): of the clean images, for soft and hard.
    """
    labels = whole(batch.labels)
    partner, exists = others(labels, draws)
    if logits is not None:
        scores = whole(logits)
        wanted = scores.argmax(1) if strategy == "soft" else labels
        fits = (scores.argmax(1)[None] == wanted[:, None]) & (labels[None] != labels[:, None])
        likest = scores[:, labels].T.masked_fill(~fits, -torch.inf).argmax(1)
        partner = torch.where(fits.any(1), likest, partner)
    mine = own(partner)
    return Negatives(whole(batch.images)[mine], labels[mine], own(exists))


def towards(base: Loss, aim: Loss) -> Loss:
    """Ascends base for the rows where condition["towards"] is False, and descends aim for the others: one attack for both."""

    def loss(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
        return torch.where(condition["towards"], -aim(output, y, condition), base(output, y, condition))

    return loss


class NegativeContrastTerm(Term):
    """Contrast head by head; its negatives come with the crafted images, each with its own label to open the gates.

    Under label gates the decision nearly always says the label, so pairs match almost only on heads before the first gate:
    how many do is logged as anc_match.
    """

    def __init__(self, part: NegativeContrast) -> None:
        super().__init__()
        self.weight, self.alpha, self.strategy, self.warmup = float(part.weight), float(part.alpha), part.negatives, part.warmup
        self.moves_clean = self.alpha < 1

    @property
    def targeted(self) -> bool:
        return self.strategy == "targeted"

    @torch.no_grad()
    def negatives(self, trace: Callable[[Tensor], ModelOutput], batch: Batch, moment: Moment) -> Negatives:
        """Natural negatives of this step, as the frozen network that crafting attacks (trace) sees them."""
        sampled = self.strategy in ("soft", "hard") and moment.epoch >= self.warmup
        logits = precise(trace(batch.images).logits) if sampled else None
        return choose(self.strategy, batch, Draws(moment.seed, batch.index, "negatives", moment.step), logits)

    def loss(self, passes: Passes, crafted: Crafted, aux_weight: float) -> LossParts:
        extra = crafted.extra
        clean, exists = passes.clean, extra["negative_exists"]
        negative = passes.trace("negative", extra["negatives"], extra["negative_labels"])
        total, parts, _ = by_head("anc", lambda c, o: contrast(c, o, exists, self.alpha), clean, negative, aux_weight=aux_weight)
        matches = by_head("anc_match", lambda c, o: alike(c, o, exists).float().mean(), clean, negative, aux_weight=0.0)
        return LossParts(self.weight * total, parts | matches.parts)
