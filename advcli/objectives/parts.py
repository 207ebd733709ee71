"""What crafting and scoring hand on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from advcli.models import ModelOutput


class Crafted(NamedTuple):
    """x_adv (N, C, H, W): what crafting made of the batch; the images themselves where an objective crafts nothing.

    extra: whatever else scoring needs, by name, such as negatives or which images were replayed; no gradients in it.
    """

    x_adv: Tensor
    extra: Mapping[str, Tensor] = MappingProxyType({})


class LossParts(NamedTuple):
    """total: the scalar to minimise. parts: named scalars for the log, detached.

    extra: tensors by name that the objective's own state moves by after the step, detached.
    """

    total: Tensor
    parts: dict[str, Tensor]
    extra: Mapping[str, Tensor] = MappingProxyType({})


def by_head(name: str, fn: Callable[..., Tensor], *outputs: ModelOutput, aux_weight: float) -> LossParts:
    """fn, a scalar of one head's logits, of the decision + aux_weight * its mean over auxiliary heads; each logged separately.

    Head goes with head across outputs: NAME is the decision's, NAME.aux0, NAME.aux1, ... the gates' in network order.
    """
    decision = fn(*(output.logits for output in outputs))
    aux = [fn(*heads) for heads in zip(*(output.aux_logits for output in outputs), strict=True)]
    parts = {name: decision.detach()} | {f"{name}.aux{number}": value.detach() for number, value in enumerate(aux)}
    return LossParts(decision + aux_weight * torch.stack(aux).mean() if aux and aux_weight else decision, parts)
