"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

import torch.nn.functional as F

from advcli.attacks.losses import over_heads
from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives.objective import Crafted, LossParts, Objective


class StandardTraining(Objective):
    def __init__(self, aux_weight: float) -> None:
        super().__init__()
        self.aux_weight = aux_weight

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        output = model.trace(batch.images)
        total = over_heads(lambda logits: F.cross_entropy(logits, batch.labels), output, aux_weight=self.aux_weight)
        return LossParts(total, {"ce": total.detach()})
