"""Reverse attention: channels times the classifier's own row of the selected class (ANCRA, eq. 6)."""

from __future__ import annotations

from torch import Tensor

from advcli.gates.gate import Gate, Head, linear


class ReverseAttention(Gate):
    """W is the classifier's weight, handed over at each call, so the gate has neither parameters nor buffers.

    The probe is the same classifier on the ungated map. Where the classifier pools to a grid of cells, W tells the cells
    apart too (the authors' network for 64 x 64 images: 2 x 2 cells of 4 x 4 values). Nothing is detached: the weight gets a
    gradient as classifier, as probe and as gate, as in the authors' code. The gate's values are small, about |w|, and signed.
    """

    def score(self, features: Tensor, head: Head) -> Tensor:
        return linear(features, head)

    def matrix(self, head: Head) -> Tensor:
        return head.weight

    def cells(self, head: Head) -> int:
        return head.cells
