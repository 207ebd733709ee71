"""What attacks raise: pure functions of one head's logits, and how a loss spreads over a network's heads.

A head loss takes logits (N, K) first and returns (N,), one value an example; higher is closer to misclassification.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.surrogate import Condition, Loss
from advcli.models import ModelOutput


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: positive where another class wins (Carlini, Wagner 2017, without a clamp: clamping kills the gradient)."""
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(1)
    return others - logits.gather(1, y[:, None])[:, 0]


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p_reference || p): summed over classes; reference (N, K) are the clean logits (TRADES, eq. 3)."""
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)


def targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_target - z_y for target (N,): the margin towards one class."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def over_heads(fn: Callable[..., Tensor], *outputs: ModelOutput, aux_weight: float) -> Tensor:
    """fn of the decision's logits + aux_weight * mean over auxiliary heads of fn of theirs; head goes with head across outputs.

    Networks without auxiliary heads give fn of the decision alone.
    """
    decision = fn(*(output.logits for output in outputs))
    aux = [fn(*heads) for heads in zip(*(output.aux_logits for output in outputs), strict=True)]
    return decision + aux_weight * torch.stack(aux).mean(0) if aux and aux_weight else decision


def reference_of(output: ModelOutput) -> Tensor:
    """(N, 1 + heads, K): the logits of all heads, for a condition's `reference`."""
    return torch.stack([output.logits, *output.aux_logits], 1).detach()


def attack_loss(name: str, aux_weight: float = 0.0) -> Loss:
    """The loss called `ce`, `margin`, `kl` (condition: reference) or `targeted` (condition: target), over heads as over_heads does."""

    def loss(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
        if name == "kl":
            heads = condition["reference"].unbind(1)
            clean = ModelOutput(heads[0], tuple(heads[1:]), output.features)
            return over_heads(kl, output, clean, aux_weight=aux_weight)
        if name == "targeted":
            return over_heads(lambda logits: targeted(logits, y, condition["target"]), output, aux_weight=aux_weight)
        fn = {"ce": cross_entropy, "margin": margin}[name]
        return over_heads(lambda logits: fn(logits, y), output, aux_weight=aux_weight)

    return loss
