"""A look at a network before hours are spent on it: what is broken is refused, what is odd is noted and decides which attacks run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advcli.attacks.substitute import blocking_operations
from advcli.errors import CheckpointError
from advcli.models import Network

_COPIES = 8
_SOFTMAX = 1e-5  # how far a row of probabilities may be from a sum of one, as AutoAttack's check has it


@dataclass(frozen=True)
class Traits:
    """random: it answers differently when asked twice, each `row` of a batch for itself or one draw for the whole `batch`.

    companions: an image's logits depend on the images beside it. probabilities: it returns them instead of logits. operations: names
    of those in its forward pass that block or zero the gradient, other than gates, which have attacks of their own.
    """

    random: Literal["row", "batch"] | None = None
    companions: bool = False
    probabilities: bool = False
    operations: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        few = []
        if self.random:
            few.append("the network is random: an image counts as broken where at least half of 20 fresh answers are wrong")
        if self.companions:
            few.append("an image's logits depend on the others in its batch, so no number belongs to the network alone")
        if self.probabilities:
            few.append("the network returns probabilities, not logits: losses that take logits are weak on them")
        if self.operations:
            few.append(f"operations that block the gradient: {', '.join(self.operations)}; suite adaptive passes them by a substitute")
        return few

    def to_json(self) -> dict[str, Any]:
        return {
            "random": self.random,
            "companions": self.companions,
            "probabilities": self.probabilities,
            "operations": list(self.operations),
        }


@torch.no_grad()
def inspect(model: nn.Module, images: Tensor, num_classes: int, where: str) -> Traits:
    """images (N, C, H, W) in [0, 1], a sample; model in eval mode. CheckpointError where its answers are no logits of num_classes."""
    logits, again = model(images), model(images)
    if logits.shape != (len(images), num_classes):
        raise CheckpointError(f"the network returns {tuple(logits.shape)} for {len(images)} images of {num_classes} classes", where=where)
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError("the network's outputs are not finite numbers", where=where, next="its weights are broken: train it again")
    random = None if torch.equal(logits, again) else _randomness(model, images)
    return Traits(
        random,
        random is None and _companions(model, images, logits),
        _probabilities(logits),
        () if isinstance(model, Network) and model.gate_sites else blocking_operations(model, images[:2]),
    )


def _randomness(model: nn.Module, images: Tensor) -> Literal["row", "batch"]:
    copies = model(images[:1].expand(_COPIES, *images.shape[1:]))
    return "row" if bool((copies != copies[:1]).any()) else "batch"


def _companions(model: nn.Module, images: Tensor, logits: Tensor) -> bool:
    """Whether the first half's logits move, by more than rounding, when the second half turns into something else."""
    half = (len(images) + 1) // 2
    beside = model(torch.cat([images[:half], 1 - images[half:]]))[:half]
    scale = logits.abs().amax().clamp_min(1e-12)
    return bool(((beside - logits[:half]).abs() / scale > 1e-3).any())


def _probabilities(logits: Tensor) -> bool:
    sums = logits.sum(1)
    return bool((logits >= -_SOFTMAX).all() and (logits <= 1 + _SOFTMAX).all() and ((sums - 1).abs() <= _SOFTMAX).all())
