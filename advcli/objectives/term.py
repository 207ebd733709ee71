"""What a term is: one more summand of a loss, beside whichever objective it is named with."""

from __future__ import annotations

from typing import Any

from torch import nn

from advcli.data import DataSet
from advcli.models import Network
from advcli.objectives.parts import Crafted, LossParts
from advcli.objectives.passes import Passes


class Term(nn.Module):
    """A summand. Its formula is a pure function; the class weighs it and asks for the passes that it needs."""

    moves_clean: bool = False
    """Whether weights learn through the clean images' pass; else that pass keeps no graph."""

    def setup(self, model: Network, data: DataSet) -> None:
        """Second networks; called once before training."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the term's own trainable parameters."""
        return []

    def loss(self, passes: Passes, crafted: Crafted, aux_weight: float) -> LossParts:
        """The weighted scalar, and its parts, not weighted, for the log."""
        raise NotImplementedError
