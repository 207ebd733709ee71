"""PGD adversarial training: cross-entropy on adversarial examples (Madry et al., ICLR 2018, eq. 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from advcli.attacks import Threat
from advcli.attacks.losses import over_heads
from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives.objective import AdversarialObjective, Crafted, LossParts
from advcli.recipe.schema import Craft, PgdAt


class PgdAtObjective(AdversarialObjective):
    """min over weights of the mean CE at x_adv. clean_pass: Rice et al. 2020's code also shows batch norm the clean images each step."""

    def __init__(self, part: PgdAt, threat: Threat, craft: Craft, step_size: float) -> None:
        super().__init__(threat, craft, step_size, float(part.aux_weight))
        self.clean_pass = part.clean_pass

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        if self.clean_pass:
            with torch.no_grad():
                model.trace(batch.images)
        output = model.trace(crafted.x_adv)
        total = over_heads(lambda logits: F.cross_entropy(logits, batch.labels), output, aux_weight=self.aux_weight)
        return LossParts(total, {"ce_adv": total.detach()})
