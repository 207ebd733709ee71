"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

import torch.nn.functional as F

from advcli.data import Batch, Moment
from advcli.models import Network
from advcli.objectives.objective import Objective
from advcli.objectives.parts import Crafted, LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.recipe.schema import Standard


class StandardTraining(Objective):
    """Mean CE(f(x), y), summed over heads where gates add some."""

    def __init__(self, part: Standard) -> None:
        super().__init__()
        self.aux_weight = float(part.aux_weight)

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        passes = Passes(model, batch, batch.images, moment, clean_features=crafted.extra.get("clean_features"))
        ce = by_head("ce", lambda logits: F.cross_entropy(logits, batch.labels), passes.clean, aux_weight=self.aux_weight)
        return LossParts(ce.total, ce.parts | passes.notes, passes.extra)
