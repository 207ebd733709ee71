"""CAS, channel-wise activation suppressing: channels times the row of a probe of the gate's own (Bai et al., ICLR 2021)."""

from __future__ import annotations

from advcli.gates.gate import ProbedGate


class ChannelSuppression(ProbedGate):
    """The true label's row in training, the probe's argmax when deployed; both are what every gate does, so nothing is added."""
