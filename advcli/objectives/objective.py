"""What an objective is: it crafts, it scores, and it moves its own state after the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advcli.attacks import Condition, Surrogate, Threat, ascend
from advcli.attacks.losses import attack_loss, reference_of
from advcli.data import Batch, DataSet, Moment
from advcli.draws import Draws
from advcli.gates import open_gate
from advcli.gates.gate import pool
from advcli.gates.selection import precise
from advcli.models import ModelOutput, Network, frozen
from advcli.models.build import fusion_sites
from advcli.objectives.hypersphere_contrast import HypersphereContrastTerm
from advcli.objectives.masked_view import MaskedViewTerm
from advcli.objectives.negative_contrast import NegativeContrastTerm, Negatives, towards
from advcli.objectives.parts import Crafted, LossParts, by_head
from advcli.objectives.passes import Passes
from advcli.objectives.term import Term
from advcli.recipe import schema
from advcli.recipe.schema import Recipe, step_size

__all__ = ["AdversarialObjective", "Crafted", "LossParts", "Objective", "by_head"]


@torch.no_grad()
def clean_features(model: Network, images: Tensor) -> dict[str, Tensor]:
    """{clean_features: (N, C)} of the clean images in eval mode, where a gate's training reads them; else nothing."""
    if not model.needs_clean_features:
        return {}
    with frozen(model):
        return {"clean_features": precise(pool(model.trace(images).ungated))}


class Objective(nn.Module):
    """Craft, then score. `loss` is pure: it moves no state of the objective and may be called twice with equal draws.

    Batch-norm statistics of the network move in `loss` alone (and in `craft` where a recipe crafts in train mode).
    """

    @property
    def crafts_on_a_copy(self) -> bool:
        """Whether `craft` attacks the network as it is in eval mode, so that a frozen, faster copy of it may be given instead."""
        return False

    def setup(self, model: Network, data: DataSet) -> None:
        """Frozen teachers, second networks, tables; called once before training."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the objective's own trainable parameters."""
        return []

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        return Crafted(batch.images, clean_features(model, batch.images))

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        raise NotImplementedError

    @contextmanager
    def perturbed(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> Iterator[None]:
        """Around scoring, backward and the optimiser's step: where a wrapper moves the weights and puts them back."""
        yield

    def observe(self, model: Network, batch: Batch) -> dict[str, Tensor]:
        """Named values (N,) of clean images that are worth watching, such as the likeness to a teacher.

        Their means over the measured images are logged after each epoch. The model is in eval mode and gradients are off.
        """
        return {}

    def after_step(self, model: Network, batch: Batch, scored: LossParts, moment: Moment) -> None:
        """Prototypes, moving targets, averages: the only place where the objective's state moves, and that of the gates."""
        if "clean_features" in scored.extra:
            model.follow(scored.extra["clean_features"], batch.labels)


class AdversarialObjective(Objective):
    """An objective that crafts by projected ascent, as the recipe's craft part says, and adds up terms.

    A subclass gives `base`; the terms of the recipe, the gates' openings, the ramp and the state of the gates come with it.
    """

    learns_from_clean: bool = True
    """Whether the objective itself learns through its clean pass."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        part = recipe.objective
        self.threat = Threat(recipe.threat.norm, float(recipe.threat.eps))
        self.recipe = recipe.craft or schema.Craft()
        self.step_size = step_size(recipe)
        self.aux_weight = float(part.aux_weight)
        self.attack_loss = attack_loss(self.recipe.loss, self._attacked_weight)
        self.fusion = recipe.model.fusion
        self.fusion_sites: tuple[str, ...] = ()
        self.ramp: schema.Ramp | None = getattr(part, "ramp", None)
        self.terms = nn.ModuleList(build_term(term) for term in getattr(part, "terms", ()))  # arrest has none

    @property
    def crafts_on_a_copy(self) -> bool:
        return self.recipe.batch_norm == "eval"

    @property
    def _attacked_weight(self) -> float:
        return self.aux_weight if self.recipe.heads == "joint" else 0.0

    def _terms(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term, Term)]

    def _contrast(self) -> NegativeContrastTerm | None:
        return next((term for term in self.terms if isinstance(term, NegativeContrastTerm)), None)

    def _branch(self) -> MaskedViewTerm | None:
        return next((term for term in self.terms if isinstance(term, MaskedViewTerm)), None)

    def setup(self, model: Network, data: DataSet) -> None:
        self.fusion_sites = fusion_sites(model, self.fusion)
        for term in self._terms():
            term.setup(model, data)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [group for term in self._terms() for group in term.parameter_groups()]

    def gated(self, moment: Moment) -> bool:
        """Whether gates and fusions are on in this step: always, but for a ramp, which lets them in ever more often.

        The probability grows from 0 in the first epoch to 1 in epoch `ramp.epochs`, a draw a step. AGAIN's paper says that the
        share grows and not how, and its code has no trace of it: the line is ours.
        """
        if self.ramp is None:
            return True
        drawn = Draws(moment.seed, torch.zeros(1, dtype=torch.int64), "ramp", moment.step).uniform(())
        return bool(float(drawn) < moment.epoch / (self.ramp.epochs - 1))

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        """Adversarial examples against the deployed network, without parameter gradients; every flag restored.

        Gates open by their own decision, never by labels: such an attack would be far too weak. Targeted negatives, where a
        term wants them, are crafted in the same ascent.
        """
        extra = clean_features(model, batch.images) if self._branch() is None else {}
        contrast = self._contrast()
        with frozen(model):
            negatives = contrast.negatives(self._trace_now(model, moment), batch, moment) if contrast is not None else None
        with frozen(model, train_mode=self.recipe.batch_norm == "train"):
            if negatives is not None and contrast is not None and contrast.targeted:
                x_adv, images = self._ascend(model, batch, moment, negatives).chunk(2)
                negatives = negatives._replace(images=images)
            else:
                x_adv = self._ascend(model, batch, moment, None)
        if negatives is not None:
            extra |= {"negatives": negatives.images, "negative_labels": negatives.labels, "negative_exists": negatives.exists}
        return Crafted(x_adv, extra)

    def _trace_now(self, model: Network, moment: Moment) -> Callable[[Tensor], ModelOutput]:
        """The network as it stands in this step: deployed, or with its gates open."""
        return model.trace if self.gated(moment) else partial(model.trace, select=open_gate)

    def _ascend(self, model: Network, batch: Batch, moment: Moment, negatives: Negatives | None) -> Tensor:
        """(N, C, H, W) adversarial examples, then as many negatives that are taken for the images' labels, where there are any."""
        trace = self._trace_now(model, moment)
        images, y, loss = batch.images, batch.labels, self.attack_loss
        draws, condition = Draws(moment.seed, batch.index, "craft", moment.step), dict[str, Tensor]()
        if self.recipe.loss == "kl":  # the clean prediction does not change during the ascent: one forward, kept
            with torch.no_grad():
                condition["reference"] = reference_of(trace(images))
        if negatives is not None:
            images, y = torch.cat([images, negatives.images]), y.repeat(2)
            condition = {name: torch.cat([value, value]) for name, value in condition.items()}
            condition["towards"] = torch.arange(len(y), device=y.device) >= len(batch.labels)
            loss = towards(loss, attack_loss("ce", self._attacked_weight))
            step = torch.full_like(batch.index, moment.step)
            draws = Draws(moment.seed, batch.index.repeat(2), "craft", torch.cat([step, step + 2**31]))
        return self._perturb(Surrogate(trace), loss, images, y, draws, condition)

    def _perturb(self, surrogate: Surrogate, loss: Any, images: Tensor, y: Tensor, draws: Draws, condition: Condition) -> Tensor:
        recipe = self.recipe
        return ascend(
            surrogate,
            loss,
            self.threat,
            images,
            y,
            draws,
            condition,
            steps=recipe.steps,
            step_size=self.step_size,
            start=recipe.start,
        )

    def passes(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> Passes:
        """The passes of this scoring, the clean branch's among them."""
        branch = self._branch()
        return Passes(
            model,
            batch,
            crafted.x_adv,
            moment,
            fusion_sites=self.fusion_sites,
            gated=self.gated(moment),
            clean_gradient=self.learns_from_clean or any(term.moves_clean for term in self._terms()),
            views=branch.views(batch, moment) if branch is not None else None,
            clean_features=crafted.extra.get("clean_features"),
        )

    def base(self, passes: Passes) -> LossParts:
        """The objective without its terms."""
        raise NotImplementedError

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        passes = self.passes(model, batch, crafted, moment)
        total, parts, _ = self.base(passes)
        for term in self._terms():
            value, named, _ = term.loss(passes, crafted, self.aux_weight)
            total, parts = total + value, parts | named
        if self.ramp is not None:
            parts["gated"] = torch.full((), float(passes.gated), device=total.device)
        return LossParts(total, parts | passes.notes, passes.extra)


def build_term(part: schema.Term) -> Term:
    match part:
        case schema.NegativeContrast():
            return NegativeContrastTerm(part)
        case schema.HypersphereContrast():
            return HypersphereContrastTerm(part)
        case schema.MaskedView():
            return MaskedViewTerm(part)
