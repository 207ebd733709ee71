"""TRADES (Zhang et al., ICML 2019, eq. 3 and 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advcli.attacks import Threat
from advcli.attacks.losses import kl, over_heads
from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives.objective import AdversarialObjective, Crafted, LossParts, trace_pair
from advcli.recipe.schema import Craft, Trades


def robust_regulariser(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Batch mean of KL(p(x) || p(x_adv)) from logits (N, K). Gradients flow into both sides, as in the authors' code."""
    return kl(adversarial, clean).mean()


class TradesObjective(AdversarialObjective):
    """Mean CE(f(x), y) + beta * mean KL(p(x) || p(x_adv)).

    The clean pass runs once and serves both terms; the authors' code runs it twice, which changes nothing but how often
    batch norm counts it.
    """

    def __init__(self, part: Trades, threat: Threat, craft: Craft, step_size: float) -> None:
        super().__init__(threat, craft, step_size, float(part.aux_weight))
        self.beta = float(part.beta)
        self.batch_norm = part.batch_norm

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        clean, adversarial = trace_pair(model, batch.images, crafted.x_adv, self.batch_norm)
        natural = over_heads(lambda logits: F.cross_entropy(logits, batch.labels), clean, aux_weight=self.aux_weight)
        robust = over_heads(robust_regulariser, clean, adversarial, aux_weight=self.aux_weight)
        return LossParts(natural + self.beta * robust, {"ce": natural.detach(), "kl": robust.detach()})
