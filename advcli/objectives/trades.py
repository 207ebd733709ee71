"""TRADES (Zhang et al., ICML 2019, eq. 3 and 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.losses import kl
from advcli.objectives.objective import AdversarialObjective
from advcli.objectives.parts import LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.recipe.schema import Recipe, Trades


def robust_regulariser(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Batch mean of KL(p(x) || p(x_adv)) from logits (N, K). Gradients flow into both sides, as in the authors' code."""
    return kl(adversarial, clean).mean()


class TradesObjective(AdversarialObjective):
    """Mean CE(f(x), y) + beta * mean KL(p(x) || p(x_adv)).

    The clean pass runs once and serves both terms; the authors' code runs it twice, which changes nothing but how often
    batch norm counts it.
    """

    def __init__(self, recipe: Recipe, part: Trades) -> None:
        super().__init__(recipe)
        self.beta = float(part.beta)
        self.batch_norm = part.batch_norm

    def base(self, passes: Passes) -> LossParts:
        clean, adversarial = passes.pair(self.batch_norm)
        y = passes.batch.labels
        natural = by_head("ce", lambda logits: F.cross_entropy(logits, y), clean, aux_weight=self.aux_weight)
        robust = by_head("kl", robust_regulariser, clean, adversarial, aux_weight=self.aux_weight)
        return LossParts(natural.total + self.beta * robust.total, natural.parts | robust.parts)
