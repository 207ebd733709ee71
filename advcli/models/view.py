"""A network seen through one of its heads: what is judged and attacked in the place of its decision, as a control."""

from __future__ import annotations

import dataclasses
import re

from torch import Tensor, nn

from advcli.errors import UsageError
from advcli.gates import open_gate
from advcli.models.build import Architecture, build
from advcli.models.network import ModelOutput, Network
from advcli.recipe.schema import Gate

HEADS = "final, open, aux:0, aux:1, ..."


class HeadView(nn.Module):
    """`open`: the decision with all gates open; `aux:i`: the i-th gate's own decision, in network order. Images to logits (N, K)."""

    def __init__(self, network: Network, head: str) -> None:
        super().__init__()
        self.network = network
        self.select = open_gate if head == "open" else None
        self.number = None if head == "open" else int(head.removeprefix("aux:"))

    def trace(self, x: Tensor) -> ModelOutput:
        output = self.network.trace(x, self.select)
        logits = output.logits if self.number is None else output.aux_logits[self.number]
        return output._replace(logits=logits, aux_logits=())

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x).logits


def head_of(network: Network, head: str) -> Network | HeadView:
    """The network itself for `final`, else a view; UsageError where it has no such head."""
    if head == "final":
        return network
    known = ["final", "open", *(f"aux:{number}" for number in range(len(network.gate_sites)))]
    if not network.gate_sites:
        raise UsageError(f"the network has no gates, so its only head is final, not {head!r}", where="--head")
    if head not in known or not re.fullmatch(r"open|aux:\d+", head):
        raise UsageError(f"there is no head {head!r}", where="--head", next=f"this network has {', '.join(known)}")
    return HeadView(network, head)


def with_gate(network: Network, architecture: Architecture, gate: Gate) -> tuple[Network, Architecture]:
    """The same weights with a gate put on afterwards; UsageError where the network has gates, or the gate weights of its own."""
    if architecture.gates:
        raise UsageError("the network has gates already", where="--gate")
    gated = dataclasses.replace(architecture, gates=(gate,))
    result = build(gated)
    missing = result.state_dict().keys() - network.state_dict().keys()
    if missing:
        raise UsageError(
            f"{gate.name} has weights of its own, which a trained network lacks", where="--gate", next="--gate reverse-attention"
        )
    result.load_state_dict(network.state_dict())
    return result.eval(), gated
