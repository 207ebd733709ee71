"""Attribution span enlargement: a label's row mixed with another's in training (AGAIN, eq. 4)."""

from __future__ import annotations

from torch import Tensor

from advcli.draws import Draws
from advcli.gates.gate import Head, Opening, ProbedGate
from advcli.gates.pairing import others, permutation
from advcli.gates.selection import labels, mixture
from advcli.gates.whole import own, whole


class AttributionSpan(ProbedGate):
    """alpha W[y] + (1 - alpha) W[y'] in training, W[argmax] when deployed (eq. 4 and the text after it).

    y' are the labels of the batch, shuffled anew at every site and pass; they may equal y, as in the authors' code, and how
    often is logged as `collisions`. distinct: shuffle among the other classes instead (ours). With alpha 1 this is CAS.
    """

    def __init__(self, channels: int, num_classes: int, alpha: float, distinct: bool = False) -> None:
        super().__init__(channels, num_classes)
        self.alpha = alpha
        self.distinct = distinct

    def opening(self, y: Tensor, num_classes: int, draws: Draws, clean: Tensor | None, head: Head) -> Opening:
        if self.alpha == 1:
            return Opening(labels(y), {})
        everybody = whole(y)
        if self.distinct:
            partner, exists = others(everybody, draws)
            fake = own(everybody[partner].where(exists, everybody))
        else:
            fake = own(everybody[permutation(draws)])
        select = mixture([(self.alpha, y), (1 - self.alpha, fake)])
        return Opening(select, {"collisions": (fake == y).float().mean()})
