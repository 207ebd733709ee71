"""The passes of one scoring: each at most once, through gates that labels open, as the gates' papers train."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from advcli.data import Batch, Moment
from advcli.draws import Draws
from advcli.gates import Selection, open_gate
from advcli.gates.fusion import Fusion, hybrid_statistics
from advcli.gates.gate import pool
from advcli.gates.selection import joined
from advcli.models import ModelOutput, Network


class Views(NamedTuple):
    """What a clean branch, a second encoder, makes of the clean images and of each masked view of them."""

    clean: ModelOutput
    masked: tuple[ModelOutput, ...]


class Route(NamedTuple):
    """How one pass goes through the network's gates and fusions."""

    select: Selection | None
    fuse: Mapping[str, Fusion]


class Passes:
    """What terms ask for, run when first asked for. notes: scalars about the gates' openings, for the log.

    gated: whether gates and fusions are on in this step. clean_gradient: whether anything learns through the clean pass.
    views: of the clean branch, where there is one. clean_features (N, C): of the clean images, where crafting noted them.
    """

    def __init__(
        self,
        model: Network,
        batch: Batch,
        x_adv: Tensor,
        moment: Moment,
        *,
        fusion_sites: tuple[str, ...] = (),
        gated: bool = True,
        clean_gradient: bool = True,
        views: Views | None = None,
        clean_features: Tensor | None = None,
    ) -> None:
        self.model, self.batch, self.x_adv, self.moment = model, batch, x_adv, moment
        self.fusion_sites, self.gated, self.clean_gradient, self.views = fusion_sites, gated, clean_gradient, views
        self.clean_features = pool(views.clean.features).detach() if views is not None else clean_features
        self.notes: dict[str, Tensor] = {}

    @property
    def extra(self) -> dict[str, Tensor]:
        """What moves the gates' own state after the step."""
        return {} if self.clean_features is None else {"clean_features": self.clean_features}

    def route(self, name: str, labels: Tensor) -> Route:
        """Gates opened by labels (N,) and fusions drawn anew; name: of the pass, so that each has draws of its own."""
        if not self.gated:
            return Route(open_gate, {})
        draws = Draws(self.moment.seed, self.batch.index, f"pass/{name}", self.moment.step)
        fuse = {site: hybrid_statistics(draws.sub(f"fusion/{site}")) for site in self.fusion_sites}
        if not self.model.gate_sites:
            return Route(None, fuse)
        opening = self.model.opening(labels, draws.sub("gate"), self.clean_features)
        self.notes |= {f"{note}.{name}": value for note, value in opening.notes.items()}
        return Route(opening.select, fuse)

    def trace(self, name: str, images: Tensor, labels: Tensor) -> ModelOutput:
        """One pass of images (N, C, H, W) whose labels open the gates."""
        return self.model.trace(images, *self.route(name, labels))

    @cached_property
    def adversarial(self) -> ModelOutput:
        return self.trace("adversarial", self.x_adv, self.batch.labels)

    @cached_property
    def clean(self) -> ModelOutput:
        with torch.set_grad_enabled(self.clean_gradient and torch.is_grad_enabled()):
            return self.trace("clean", self.batch.images, self.batch.labels)

    def pair(self, batch_norm: str) -> tuple[ModelOutput, ModelOutput]:
        """Outputs on clean and adversarial images: `separate` passes, each with its own batch statistics, or one `joint` batch."""
        if batch_norm == "separate":
            return self.clean, self.adversarial
        n, y = len(self.batch.labels), self.batch.labels
        first, second = self.route("clean", y), self.route("adversarial", y)
        select = joined(first.select, second.select, n) if first.select is not None and second.select is not None else None
        fuse = {site: _halves(first.fuse[site], second.fuse[site], n) for site in first.fuse}
        both = self.model.trace(torch.cat([self.batch.images, self.x_adv]), select, fuse)
        self.clean, self.adversarial = both.rows(slice(n)), both.rows(slice(n, None))
        return self.clean, self.adversarial


def _halves(first: Fusion, second: Fusion, n: int) -> Fusion:
    return lambda features: torch.cat([first(features[:n]), second(features[n:])])
