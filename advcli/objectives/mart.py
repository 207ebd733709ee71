"""MART (Wang et al., ICLR 2020, eq. 10 to 12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks import Threat
from advcli.attacks.losses import kl, over_heads
from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives.objective import AdversarialObjective, Crafted, LossParts, trace_pair
from advcli.recipe.schema import Craft, Mart


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Batch mean of -log p_y - log(1 - max_{k != y} p_k) (eq. 8), from logits (N, K) of adversarial examples.

    log(1 - p_k) is summed from the other classes' log-probabilities, so that it stays finite and exact where p_k rounds
    to 1; the authors' code adds 1e-4 inside the logarithm instead.
    """
    log_p = logits.log_softmax(1)
    own = F.one_hot(y, logits.shape[1]).bool()
    runner_up = F.one_hot(log_p.masked_fill(own, -torch.inf).argmax(1), logits.shape[1]).bool()
    log_rest = log_p.masked_fill(runner_up, -torch.inf).logsumexp(1)
    return (F.nll_loss(log_p, y, reduction="none") - log_rest).mean()


def weighted_kl(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """Batch mean of KL(p(x) || p(x_adv)) * (1 - p_y(x)) (eq. 11); the weight is not detached, as in the authors' code."""
    doubt = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
    return (kl(adversarial, clean) * doubt).mean()


class MartObjective(AdversarialObjective):
    """Boosted CE at x_adv + beta * the KL weighted by how unsure the network is of the clean image."""

    def __init__(self, part: Mart, threat: Threat, craft: Craft, step_size: float) -> None:
        super().__init__(threat, craft, step_size, float(part.aux_weight))
        self.beta = float(part.beta)
        self.batch_norm = part.batch_norm

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        clean, adversarial = trace_pair(model, batch.images, crafted.x_adv, self.batch_norm)
        boosted = over_heads(lambda logits: boosted_cross_entropy(logits, batch.labels), adversarial, aux_weight=self.aux_weight)
        weighted = over_heads(lambda c, a: weighted_kl(c, a, batch.labels), clean, adversarial, aux_weight=self.aux_weight)
        return LossParts(boosted + self.beta * weighted, {"bce": boosted.detach(), "weighted_kl": weighted.detach()})
