"""ARREST: adversarial finetuning with a constraint on the features (Suzuki et al., ICCV 2023, eq. 3 to 5 and algorithm 1)."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.data import Batch, DataSet, Moment
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.gates.selection import precise
from advcli.models import ModelOutput, Network, frozen
from advcli.objectives.objective import AdversarialObjective, clean_features
from advcli.objectives.parts import Crafted, LossParts, by_head
from advcli.recipe.schema import Arrest, Recipe

_TINY = 1e-12


def angular(u: Tensor, v: Tensor) -> Tensor:
    """(N,) 1 - |u . v| / (|u| |v|) of u, v (N, ...), each flattened (section 5.2); in [0, 1], and 1 where one of them is zero."""
    u, v = precise(u).flatten(1), precise(v).flatten(1)
    lengths = torch.linalg.vector_norm(u, dim=1).clamp_min(_TINY) * torch.linalg.vector_norm(v, dim=1).clamp_min(_TINY)
    distance: Tensor = 1 - (u * v).sum(1).abs() / lengths
    return distance


def squared(u: Tensor, v: Tensor) -> Tensor:
    """(N,) mean squared difference of u, v (N, ...): over a map, or over classes of logits, by which LBGAT guides (Cui et al. 2021)."""
    return (precise(u) - precise(v)).square().flatten(1).mean(1)


def attention_map(u: Tensor, v: Tensor) -> Tensor:
    """(N,) | Q_u / |Q_u| - Q_v / |Q_v| |^2 for attention maps Q = sum_c A_c^2 (N, H, W) of A (N, C, H, W) (Zagoruyko, Komodakis 2017)."""
    a, b = (F.normalize(precise(x).square().sum(1).flatten(1), dim=1) for x in (u, v))
    return (a - b).square().sum(1)


_DISTANCES = {"angular": angular, "squared": squared, "attention-map": attention_map, "logit": squared}


def threshold(angle: float) -> float:
    """tau = 1 - cos(phi) of an angle phi in degrees (section 5.2)."""
    return 1 - math.cos(math.radians(angle))


class ArrestObjective(AdversarialObjective):
    """Mean CE(f(x + D), y) + lambda * mean d(h(x + D; student), h(x; teacher)), h the map that enters pooling (eq. 4).

    Where a gate stands before pooling, h is what enters the gate.

    D is PGD's, or noise where the student's features of the clean image have left the teacher's by more than tau (eq. 5).
    The teacher is the network as training finds it; it is part of the saved state, so that a resumed run has the same one.
    Replay measures by the angular distance whatever distillation does, since its threshold is an angle.
    """

    teacher: Network

    learns_from_clean = False

    def __init__(self, recipe: Recipe, part: Arrest) -> None:
        super().__init__(recipe)
        self.distillation = part.distillation
        self.replay = part.replay
        self.tau = threshold(float(part.replay.angle)) if part.replay else math.inf

    def setup(self, model: Network, data: DataSet) -> None:
        super().setup(model, data)
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        if self.distillation and self.distillation.name == "attention-map" and self._map_size(data) == 1:
            raise UsageError(
                "the features of this network are maps of one pixel, which have no attention to distil",
                where="objective.distillation.name",
                next="objective.distillation.name=angular, or larger images",
            )

    def _map_size(self, data: DataSet) -> int:
        """Pixels of the map that enters pooling."""
        image = self.teacher.linear.weight.new_zeros(1, *data.train.images.shape[1:])
        with torch.no_grad():
            return self.teacher.trace(image).features[0, 0].numel()

    def train(self, mode: bool = True) -> Self:
        """The teacher stays in eval mode: its batch statistics are part of what it knows."""
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        """extra: `target`, what the teacher says of the clean images; `replayed` (N,) bool, who was not attacked."""
        replaying = self.replay is not None and moment.epoch < self.replay.until
        taught = self._taught(batch.images) if self.distillation or replaying else None
        extra = clean_features(model, batch.images)
        if self.distillation and taught:
            extra["target"] = self._reading(taught)
        if self.replay:
            nobody = torch.zeros_like(batch.labels, dtype=torch.bool)
            extra["replayed"] = self._has_left(model, batch.images, taught.ungated) if replaying and taught else nobody
        x_adv = self._craft_the_others(model, batch, moment, extra["replayed"]) if replaying else self._attacked(model, batch, moment)
        return Crafted(x_adv, extra)

    def _attacked(self, model: Network, batch: Batch, moment: Moment) -> Tensor:
        with frozen(model, train_mode=self.recipe.batch_norm == "train"):
            return self._ascend(model, batch, moment, None)

    @torch.no_grad()
    def _taught(self, images: Tensor) -> ModelOutput:
        return self.teacher.trace(images)

    def _reading(self, output: ModelOutput) -> Tensor:
        """What distillation compares: the decision's logits, or the features."""
        return output.logits if self.distillation and self.distillation.name == "logit" else output.ungated

    @torch.no_grad()
    def _has_left(self, model: Network, images: Tensor, features: Tensor) -> Tensor:
        """(N,) bool: a > tau (line 5 of algorithm 1), both networks in eval mode, so that nobody's companions matter."""
        with frozen(model):
            return angular(model.trace(images).ungated, features) > self.tau

    def _craft_the_others(self, model: Network, batch: Batch, moment: Moment, replayed: Tensor) -> Tensor:
        """Replayed images with noise (or as they are), the others attacked; draws go by example, so a part of the batch suffices."""
        others = torch.nonzero(~replayed)[:, 0]
        if len(others) == len(replayed):
            return self._attacked(model, batch, moment)
        x = batch.images
        if self.replay and self.replay.input == "noise":
            x = self.threat.random_start(x, Draws(moment.seed, batch.index, "replay", moment.step))
        if not len(others):
            return x
        return x.index_copy(0, others, self._attacked(model, Batch(*(part[others] for part in batch)), moment))

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        passes = self.passes(model, batch, crafted, moment)
        output = passes.adversarial
        total, parts, _ = by_head("ce_adv", lambda logits: F.cross_entropy(logits, batch.labels), output, aux_weight=self.aux_weight)
        if self.distillation:
            distance = _DISTANCES[self.distillation.name](self._reading(output), crafted.extra["target"]).mean()
            parts["distillation"] = distance.detach()
            total = total + float(self.distillation.weight) * distance
        if self.replay:
            parts["replayed"] = crafted.extra["replayed"].float().mean()
        return LossParts(total, parts | passes.notes, passes.extra)

    def observe(self, model: Network, batch: Batch) -> dict[str, Tensor]:
        """Cosine of the clean images' features to the teacher's (table 3)."""
        own, taught = (precise(network.trace(batch.images).ungated).flatten(1) for network in (model, self.teacher))
        return {"teacher_cosine": F.cosine_similarity(own, taught)}
