"""What an objective is: it crafts, it scores, and it moves its own state after the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advcli.attacks import Condition, Surrogate, Threat, ascend
from advcli.attacks.losses import attack_loss, reference_of
from advcli.data import Batch, DataSet, Moment
from advcli.draws import Draws
from advcli.models import ModelOutput, Network, frozen
from advcli.recipe.schema import Craft


class Crafted(NamedTuple):
    """x_adv (N, C, H, W): what crafting made of the batch; the images themselves where an objective crafts nothing.

    extra: whatever else scoring needs, by name, such as negatives or which images were replayed; no gradients in it.
    """

    x_adv: Tensor
    extra: Mapping[str, Tensor] = MappingProxyType({})


class LossParts(NamedTuple):
    """total: the scalar to minimise. parts: named scalars for the log, detached."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """Craft, then score. `loss` is pure: it moves no state of the objective and may be called twice with equal draws.

    Batch-norm statistics of the network move in `loss` alone (and in `craft` where a recipe crafts in train mode).
    """

    def setup(self, model: Network, data: DataSet) -> None:
        """Frozen teachers, second networks, tables; called once before training."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the objective's own trainable parameters."""
        return []

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        return Crafted(batch.images)

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

    def after_step(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> None:
        """Prototypes, moving targets, averages: the only place where the objective's state moves."""


class AdversarialObjective(Objective):
    """An objective that crafts by projected ascent, as the recipe's craft part says.

    step_size: resolved. aux_weight: of the mean loss over auxiliary heads, in crafting (heads: joint) as in scoring.
    """

    def __init__(self, threat: Threat, craft: Craft, step_size: float, aux_weight: float) -> None:
        super().__init__()
        self.threat = threat
        self.recipe = craft
        self.step_size = step_size
        self.aux_weight = aux_weight
        self.attack_loss = attack_loss(craft.loss, aux_weight if craft.heads == "joint" else 0.0)

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        """Adversarial examples against the deployed network, without parameter gradients; every flag restored."""
        draws = Draws(moment.seed, batch.index, "craft", moment.step)
        with frozen(model, train_mode=self.recipe.batch_norm == "train"):
            condition: Condition = {}
            if self.recipe.loss == "kl":  # the clean prediction does not change during the ascent: one forward, kept
                with torch.no_grad():
                    condition = {"reference": reference_of(model.trace(batch.images))}
            x_adv = ascend(
                Surrogate(model.trace),
                self.attack_loss,
                self.threat,
                batch.images,
                batch.labels,
                draws,
                condition,
                steps=self.recipe.steps,
                step_size=self.step_size,
                start=self.recipe.start,
            )
        return Crafted(x_adv)


def trace_pair(model: Network, clean: Tensor, adversarial: Tensor, batch_norm: str) -> tuple[ModelOutput, ModelOutput]:
    """Outputs on clean and adversarial images: `separate` passes, each with its own batch statistics, or one `joint` batch."""
    if batch_norm == "separate":
        return model.trace(clean), model.trace(adversarial)
    n = len(clean)
    both = model.trace(torch.cat([clean, adversarial]))
    first, second = (
        ModelOutput(both.logits[s], tuple(aux[s] for aux in both.aux_logits), both.features[s]) for s in (slice(n), slice(n, None))
    )
    return first, second
