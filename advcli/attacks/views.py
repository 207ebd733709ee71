"""Surrogates that know a gate: the same weights, seen so that a gradient finds its way (adaptive attacks: Tramer et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advcli.attacks.losses import margin
from advcli.attacks.surrogate import Condition, Cost, Loss, Surrogate
from advcli.gates import forced, open_gate, soft, straight_through
from advcli.models import ModelOutput, Network


def _as_seen(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
    return output.logits


@dataclass(frozen=True)
class View:
    """see: (network, x, condition) -> ModelOutput, whose logits the attack's loss reads. The condition has the `label` (N,) too.

    believe: (output, y, condition) -> (N, K), the logits by which the search believes itself done and asks the judge.
    passes: forwards that one look costs.
    """

    see: Callable[[Network, Tensor, Condition], ModelOutput]
    believe: Callable[[ModelOutput, Tensor, Condition], Tensor] = _as_seen
    passes: int = 1


class ViewedSurrogate(Surrogate):
    """A network through a view. Which points fool it is the judge's to say: it judges the deployed decision."""

    def __init__(self, network: Network, view: View, cost: Cost, *, error: float = 0.0, repeatable: bool = True) -> None:
        super().__init__(network.trace, cost, error=error, repeatable=repeatable)
        self.network, self.view = network, view

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        self.cost.forwards += len(x) * self.view.passes
        return self.view.see(self.network, x, condition)

    def gradient(self, loss: Loss, x: Tensor, y: Tensor, condition: Condition) -> tuple[Tensor, Tensor, ModelOutput]:
        gradient, losses, seen = super().gradient(loss, x, y, condition)
        return gradient, losses, seen._replace(logits=self.view.believe(seen, y, condition))


def _agreed(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
    """The logits where every auxiliary head says the target, so that the gates would open as forced; elsewhere the label's raised."""
    says = torch.stack([aux.argmax(1) == condition["target"] for aux in output.aux_logits]).all(0)
    raised = output.logits.scatter(1, y[:, None], output.logits.amax(1, keepdim=True) + 1)
    return torch.where(says[:, None], output.logits, raised)


OPEN = View(lambda network, x, condition: network.trace(x, open_gate))
"""All gates open: the same weights as an ordinary network."""

FORCED = View(lambda network, x, condition: network.trace(x, forced(condition["target"])), _agreed)
"""All gates opened by the attack's target class; for the loss `conjunction`, which makes the gates choose it too."""


KEPT = View(lambda network, x, condition: network.trace(x, forced(condition["label"])))
"""All gates opened by the label, as they are until one flips: the way to the images that fall without."""

ANNEALED = View(lambda network, x, condition: network.trace(x, soft(condition["temperature"][:, None])))
"""Gates softened at each row's own `temperature`, a stage's number."""


def softened(temperature: float) -> View:
    """Gates opened by the softmax of their auxiliary logits at this temperature."""
    return View(lambda network, x, condition: network.trace(x, soft(temperature)))


def _bypassed(network: Network, x: Tensor, condition: Condition) -> ModelOutput:
    deployed, opened = network.trace(x), network.trace(x, open_gate)
    return deployed._replace(logits=opened.logits + (deployed.logits - opened.logits).detach())


BYPASSED = View(_bypassed, passes=2)
"""Gates as deployed forward; backward as if they were not there (BPDA with the identity)."""


def _enumerated(network: Network, x: Tensor, condition: Condition) -> ModelOutput:
    output = network.trace(x, straight_through(0.3))
    y, aux = condition["label"], output.aux_logits[-1]
    every = network.all_gate_logits(output)  # (N, K, K)
    classes = torch.arange(aux.shape[1], device=aux.device)
    chosen = torch.stack([-margin(aux, classes[k].expand(len(aux))) for k in classes], 1) / _spread(aux)
    fallen = torch.stack([margin(every[:, k], y) for k in classes], 1) / _spread(every)
    both = torch.minimum(chosen, fallen)
    own = both.gather(1, y[:, None])
    return output._replace(logits=torch.cat([both.scatter(1, y[:, None], 0.0), own], 1))


def _spread(logits: Tensor) -> Tensor:
    """(N,) or (N, K): from the first to the third logit, by which margins are made comparable, as in the DLR loss.

    Of two classes it is 1: there is no third, and a margin over itself would be 1 everywhere.
    """
    top = logits.topk(min(3, logits.shape[-1]), -1).values
    spread = (top[..., 0] - top[..., -1]).clamp_min(1e-12) if logits.shape[-1] > 2 else torch.ones_like(top[..., 0])
    return spread[:, None] if logits.dim() == 2 else spread


ENUMERATED = View(_enumerated)
"""The exact condition of success at a gate before pooling, for all classes in one pass: for some k, the gate chooses k and, opened
by k, the decision is not the label. Its logits (N, K + 1) are min(how surely the gate chooses k, how far the decision has fallen
under k), 0 at the label and, last, the label's own: their margin is over 0 where, and only where, the network is fooled, and it
rises where the deployed margin is flat. Gates before the last pass a softened gradient.
"""


def straight(temperature: float) -> View:
    """Gates as deployed forward, softened backward."""
    return View(lambda network, x, condition: network.trace(x, straight_through(temperature)))


def auxiliary(number: int) -> View:
    """The number-th gate's own logits, in network order, in the place of the decision; the gates before it softened.

    The first precedes every gate, so it is an ordinary network.
    """

    def see(network: Network, x: Tensor, condition: Condition) -> ModelOutput:
        output = network.trace(x, soft(1.0) if number else None)
        return output._replace(logits=output.aux_logits[number], aux_logits=())

    return View(see)
