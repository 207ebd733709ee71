"""SHC, hypersphere contrast between adversarial and clean features, and the two it is compared with (StayFocused, eq. 10, table 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.gates.gate import pool
from advcli.gates.selection import precise
from advcli.gates.whole import processes, whole
from advcli.objectives.parts import Crafted, LossParts
from advcli.objectives.passes import Passes
from advcli.objectives.term import Term
from advcli.recipe.schema import HypersphereContrast


def angular(cosine: Tensor, m: int) -> Tensor:
    """cos(m theta) from cos(theta), made monotone: (-1)^k cos(m theta) - 2k for theta in [k pi/m, (k+1) pi/m].

    Chebyshev polynomials, never arccos, whose gradient is infinite at the ends. The continuation (SphereFace, Liu et al.
    2017) is ours: without it a clean twin further than pi/m away would be pushed further still. Features after a ReLU are
    within pi/2, so for m up to 2 it changes nothing.
    """
    c = cosine
    chebyshev = {1: c, 2: 2 * c**2 - 1, 3: 4 * c**3 - 3 * c, 4: 8 * c**4 - 8 * c**2 + 1}[m]
    turns = sum(((c < math.cos(j * math.pi / m)).to(c) for j in range(1, m)), torch.zeros_like(c))
    return (1 - 2 * (turns % 2)) * chebyshev - 2 * turns


def contrast(adversarial: Tensor, clean: Tensor, others: Tensor, margin: int, temperature: float) -> Tensor:
    """Mean over i of -log(e^{cos(m theta_ii)/t} / (e^{cos(m theta_ii)/t} + sum_{j in others(i)} e^{cos(theta_ij)/t})) (eq. 10).

    adversarial (N, C) against clean (M, C), whose first N rows are their twins; others (N, M) bool: which clean features are
    negatives of which anchor. Margin 1 is InfoNCE. Cosines in float32 whatever the precision outside.
    """
    cosines = F.normalize(adversarial, dim=1) @ F.normalize(clean, dim=1).T
    positive = angular(cosines.diagonal(), margin) / temperature
    negatives = (cosines / temperature).masked_fill(~others, -torch.inf)
    return (torch.cat([positive[:, None], negatives], 1).logsumexp(1) - positive).mean()


def cosine_distance(adversarial: Tensor, clean: Tensor) -> Tensor:
    """Mean of 1 - cos(theta_ii): pulls twins together and pushes nothing (table 4)."""
    return (1 - F.cosine_similarity(adversarial, clean, dim=1)).mean()


class HypersphereContrastTerm(Term):
    """Contrasts pooled features before the gate: gated ones would let the label in.

    With a clean branch the first head's clean side is the whole image's, a further head's that of its masked view; without
    one it is the network's own clean pass. The clean side is the anchor and gets no gradient unless natural_gradient asks.
    """

    def __init__(self, part: HypersphereContrast) -> None:
        super().__init__()
        self.weight, self.temperature = float(part.weight), float(part.temperature)
        self.similarity, self.margin = part.similarity, part.margin if part.similarity == "angular" else 1
        self.other_class, self.natural_gradient = part.negatives == "other-class", part.natural_gradient
        self.moves_clean = part.natural_gradient

    def loss(self, passes: Passes, crafted: Crafted, aux_weight: float) -> LossParts:
        views = passes.views
        sides = (passes.clean,) if views is None else (views.clean, *views.masked[1:])
        adversarial = pool(passes.adversarial.ungated)
        values = [self._one(adversarial, pool(side.ungated), passes.batch.labels) for side in sides]
        parts = {"shc" if number == 0 else f"shc.view{number}": value.detach() for number, value in enumerate(values)}
        return LossParts(self.weight * torch.stack(values).sum(), parts)

    def _one(self, adversarial: Tensor, clean: Tensor, y: Tensor) -> Tensor:
        clean = clean if self.natural_gradient else clean.detach()
        with torch.autocast(adversarial.device.type, enabled=False):
            adversarial, clean = precise(adversarial), precise(clean)
            if self.similarity == "cosine":
                return cosine_distance(adversarial, clean)
            everybody, labels = twins_first(whole(clean), len(y)), twins_first(whole(y), len(y))
            negative = torch.ones(len(y), len(labels), dtype=torch.bool, device=y.device)
            negative = negative & (labels[None] != y[:, None]) if self.other_class else negative.fill_diagonal_(False)
            return contrast(adversarial, everybody, negative, self.margin, self.temperature)


def twins_first(rows: Tensor, n: int) -> Tensor:
    """Rows of the whole batch, this process's n own ones moved to the front."""
    if processes() == 1:
        return rows
    return rows.roll(-torch.distributed.get_rank() * n, 0)
