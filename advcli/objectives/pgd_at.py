"""PGD adversarial training: cross-entropy on adversarial examples (Madry et al., ICLR 2018, eq. 2.1)."""

from __future__ import annotations

import torch.nn.functional as F

from advcli.objectives.objective import AdversarialObjective
from advcli.objectives.parts import LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.recipe.schema import PgdAt, Recipe


class PgdAtObjective(AdversarialObjective):
    """min over weights of the mean CE at x_adv, summed over heads where gates add some (CAS; AGAIN, eq. 7).

    clean_pass: Rice et al. 2020's code also shows batch norm the clean images each step.
    """

    learns_from_clean = False

    def __init__(self, recipe: Recipe, part: PgdAt) -> None:
        super().__init__(recipe)
        self.clean_pass = part.clean_pass

    def base(self, passes: Passes) -> LossParts:
        if self.clean_pass:
            _ = passes.clean  # without a graph, unless a term learns through it
        y = passes.batch.labels
        return by_head("ce_adv", lambda logits: F.cross_entropy(logits, y), passes.adversarial, aux_weight=self.aux_weight)
