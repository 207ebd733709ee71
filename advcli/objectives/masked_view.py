"""StayFocused's clean branch: a second encoder that sees clean images whole and with patches masked (eq. 3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.attacks.losses import kl
from advcli.data import Batch, DataSet, Moment
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.models import Network
from advcli.objectives.parts import Crafted, LossParts
from advcli.objectives.passes import Passes, Views
from advcli.objectives.term import Term
from advcli.recipe.schema import MaskedView


def mask(images: Tensor, ratio: float, patch: int, draws: Draws) -> Tensor:
    """images (N, C, H, W) with round(ratio * patches) patches, drawn for each image, set to zero; at least one is left.

    Patches are squares of `patch` pixels from the top left; what is left over at the right and below is patches too.
    """
    n, _, height, width = images.shape
    rows, columns = -(-height // patch), -(-width // patch)
    count = min(rows * columns - 1, round(ratio * rows * columns))
    rank = draws.uniform((rows * columns,)).argsort(dim=1, stable=True).argsort(dim=1)
    kept = (rank >= count).view(n, 1, rows, columns)
    grid = kept.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[:, :, :height, :width]
    return images * grid.to(images)


class MaskedViewTerm(Term):
    """clean_weight * CE(f(x), y) + sum over views of KL(p(x) || p(Mask(x))), f the branch, p(x) not moved by the KL.

    The paper gives the KL alone, which a constant output minimises, and calls the branch one of standard training: the
    cross-entropy is added, and logged as ce_clean (ours). The branch starts as a copy of the network without gates, learns
    beside it, and stays behind when the network is deployed. Neither ratios nor patch sizes are given in the paper.
    """

    def __init__(self, part: MaskedView) -> None:
        super().__init__()
        self.weight, self.clean_weight, self.patch = float(part.weight), float(part.clean_weight), part.patch
        self.ratios = tuple(map(float, part.ratios))
        self.encoder: nn.Module = nn.Identity()

    def setup(self, model: Network, data: DataSet) -> None:
        side = data.train.images.shape[-1]
        if 0 < side <= self.patch:
            what = f"a patch of {self.patch} pixels is the whole image of {side}: nothing would be masked"
            raise UsageError(what, where="objective.terms: masked-view.patch", next=f"a patch of {max(1, side // 8)} gives 8 x 8 of them")
        encoder = copy.deepcopy(model)
        encoder.put_gates({})
        self.encoder = encoder.train()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.encoder.parameters())}]

    def views(self, batch: Batch, moment: Moment) -> Views:
        """The branch's passes of one scoring."""
        draws = Draws(moment.seed, batch.index, "mask", moment.step)
        assert isinstance(self.encoder, Network), "setup comes first"
        images = [mask(batch.images, ratio, self.patch, draws.sub(str(number))) for number, ratio in enumerate(self.ratios)]
        return Views(self.encoder.trace(batch.images), tuple(self.encoder.trace(view) for view in images))

    def loss(self, passes: Passes, crafted: Crafted, aux_weight: float) -> LossParts:
        views = passes.views
        assert views is not None, "the objective runs the branch"
        clean = F.cross_entropy(views.clean.logits, passes.batch.labels)
        apart = [kl(view.logits, views.clean.logits.detach()).mean() for view in views.masked]
        parts = {"ce_clean": clean.detach()} | {f"kl_view{number}": value.detach() for number, value in enumerate(apart)}
        return LossParts(self.weight * (self.clean_weight * clean + torch.stack(apart).sum()), parts)
