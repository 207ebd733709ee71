"""Surrogates that know a gate: the same weights, seen so that a gradient finds its way (adaptive attacks: Tramer et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advcli.attacks.surrogate import Condition, Cost, Loss, Surrogate
from advcli.gates import forced, open_gate, soft, straight_through
from advcli.models import ModelOutput, Network


def _as_seen(output: ModelOutput, y: Tensor, condition: Condition) -> Tensor:
    return output.logits


@dataclass(frozen=True)
class View:
    """see: (network, x, condition) -> ModelOutput, whose logits the attack's loss reads.

    believe: (output, y, condition) -> (N, K), the logits by which the search believes itself done and asks the judge.
    """

    see: Callable[[Network, Tensor, Condition], ModelOutput]
    believe: Callable[[ModelOutput, Tensor, Condition], Tensor] = _as_seen


class ViewedSurrogate(Surrogate):
    """A network through a view. Which points fool it is the judge's to say: it judges the deployed decision."""

    def __init__(self, network: Network, view: View, cost: Cost, *, error: float = 0.0) -> None:
        super().__init__(network.trace, cost, error=error)
        self.network, self.view = network, view

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        self.cost.forwards += len(x)
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


def softened(temperature: float) -> View:
    """Gates opened by the softmax of their auxiliary logits at this temperature."""
    return View(lambda network, x, condition: network.trace(x, soft(temperature)))


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
