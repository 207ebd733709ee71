"""MART (Wang et al., ICLR 2020, eq. 10 to 12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.losses import kl
from advcli.objectives.objective import AdversarialObjective
from advcli.objectives.parts import LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.recipe.schema import Mart, Recipe


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


def doubt(clean: Tensor, y: Tensor) -> Tensor:
    """(N,) 1 - p_y(x) from clean logits (N, K); not detached, as in the authors' code."""
    return 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]


def weighted_kl(clean: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """Batch mean of KL(p(x) || p(x_adv)) * weight (N,), which is the doubt of the clean image (eq. 11)."""
    return (kl(adversarial, clean) * weight).mean()


class MartObjective(AdversarialObjective):
    """Boosted CE at x_adv + beta * the KL weighted by how unsure the network is of the clean image.

    Where gates are, their labels make the decision sure of itself and its doubt almost 0; the doubt is then that of the
    first auxiliary head, which no gate precedes; in a step without gates it is the decision's as ever. That is ours: CAS's
    code takes the decision's for all heads.
    """

    def __init__(self, recipe: Recipe, part: Mart) -> None:
        super().__init__(recipe)
        self.beta = float(part.beta)
        self.batch_norm = part.batch_norm

    def base(self, passes: Passes) -> LossParts:
        clean, adversarial = passes.pair(self.batch_norm)
        y = passes.batch.labels
        weight = doubt((*(clean.aux_logits if passes.gated else ()), clean.logits)[0], y)
        boosted = by_head("bce", lambda logits: boosted_cross_entropy(logits, y), adversarial, aux_weight=self.aux_weight)
        weighted = by_head("weighted_kl", lambda c, a: weighted_kl(c, a, weight), clean, adversarial, aux_weight=self.aux_weight)
        return LossParts(boosted.total + self.beta * weighted.total, boosted.parts | weighted.parts)
