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


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{k != y} z_k - z_y) / (z_1st - z_3rd) (Croce, Hein 2020, eq. 6); three classes at least."""
    top = logits.topk(3, 1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_target - z_y) / (z_1st - (z_3rd + z_4th) / 2) (Croce, Hein 2020, eq. 7); four classes at least."""
    top = logits.topk(4, 1).values
    return targeted(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def conjunction(output: ModelOutput, y: Tensor, target: Tensor, cap: float = 0.5, weight: float | Tensor = 1.0) -> Tensor:
    """weight * (z_target - z_y) + sum over auxiliary heads of min(a_target - max_{k != target} a_k, cap).

    With gates forced to the target it rises towards a point at which they would choose it by themselves and the decision falls.
    cap in logits: a head that is sure enough pulls no more. weight: of the decision, a number or (N,).
    """
    heads = [(-margin(aux, target)).clamp_max(cap) for aux in output.aux_logits]
    return weight * targeted(output.logits, y, target) + torch.stack(heads).sum(0)


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


_UNTARGETED = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
_TARGETED = {"targeted": targeted, "dlr-targeted": dlr_targeted}


def attack_loss(name: str, aux_weight: float = 0.0) -> Loss:
    """The loss called `ce`, `margin`, `dlr`; `targeted` or `dlr-targeted` (condition: target); `conjunction` (target, and weight where
    given); or `kl` (reference).

    It is summed over a network's heads as over_heads does.
    """

    def loss(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
        if name == "kl":
            heads = condition["reference"].unbind(1)
            clean = output._replace(logits=heads[0], aux_logits=tuple(heads[1:]))
            return over_heads(kl, output, clean, aux_weight=aux_weight)
        if name == "conjunction":
            return conjunction(output, y, condition["target"], weight=condition.get("weight", 1.0))
        if name in _TARGETED:
            return over_heads(lambda logits: _TARGETED[name](logits, y, condition["target"]), output, aux_weight=aux_weight)
        fn = _UNTARGETED[name]
        return over_heads(lambda logits: fn(logits, y), output, aux_weight=aux_weight)

    return loss
