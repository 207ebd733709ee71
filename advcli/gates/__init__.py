"""Class-conditional channel gates: which class opens them (selection), what they multiply by (gate), and what mixes features before."""

from advcli.gates.gate import Gate, Head, Opening
from advcli.gates.selection import Selection, deployed, forced, labels, mixture, open_gate, soft, straight_through

__all__ = ["Gate", "Head", "Opening", "Selection", "deployed", "forced", "labels", "mixture", "open_gate", "soft", "straight_through"]
