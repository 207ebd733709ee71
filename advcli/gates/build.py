"""From a recipe's gate part to the gate."""

from __future__ import annotations

from advcli.gates.attribution_span import AttributionSpan
from advcli.gates.channel_prompt import ChannelPrompt
from advcli.gates.channel_suppression import ChannelSuppression
from advcli.gates.gate import Gate
from advcli.gates.reverse_attention import ReverseAttention
from advcli.recipe import schema


def build_gate(part: schema.Gate, channels: int, num_classes: int) -> Gate:
    """A gate for a map of that many channels."""
    gate = _closing(part, channels, num_classes)
    gate.never_closes = part.open
    return gate


def _closing(part: schema.Gate, channels: int, num_classes: int) -> Gate:
    match part:
        case schema.ReverseAttention():
            return ReverseAttention()
        case schema.ChannelSuppression():
            return ChannelSuppression(channels, num_classes)
        case schema.AttributionSpan():
            return AttributionSpan(channels, num_classes, float(part.alpha), part.distinct)
        case schema.ChannelPrompt():
            numbers = float(part.momentum), float(part.temperature)
            return ChannelPrompt(channels, num_classes, float(part.alpha), part.top_k, part.prototypes, *numbers)


def needs_final_channels(part: schema.Gate) -> bool:
    """Whether W has the channels of the last map, so that the gate's site must have them too."""
    return isinstance(part, schema.ReverseAttention | schema.ChannelPrompt)
