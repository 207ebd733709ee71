"""What a class-conditional gate is: features times phi(s @ W)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from advcli.draws import Draws
from advcli.gates.selection import Selection, deployed, labels


class Head(NamedTuple):
    """The classifier of the network that a gate sits in: weight (K, C * cells**2), bias (K,), and the side of its pooling grid."""

    weight: Tensor
    bias: Tensor
    cells: int


class Opening(NamedTuple):
    """How a gate is opened for a training batch. notes: named scalars for the log, detached."""

    select: Selection
    notes: dict[str, Tensor]


def pool(features: Tensor, cells: int = 1) -> Tensor:
    """(N, C, H, W) to (N, C * cells**2): the mean over each cell of a cells x cells grid, H and W multiples of it."""
    if cells == 1:
        return features.mean((2, 3))
    n, c, h, w = features.shape
    return features.reshape(n, c, cells, h // cells, cells, w // cells).mean((3, 5)).flatten(1)


def spread(rows: Tensor, like: Tensor, cells: int = 1) -> Tensor:
    """Rows (N, C * cells**2) as a map that multiplies `like` (N, C, H, W): the inverse layout of `pool`, constant within a cell."""
    n, c, h, w = like.shape
    if cells == 1:
        return rows[:, :, None, None]
    return rows.view(n, c, cells, 1, cells, 1).expand(n, c, cells, h // cells, cells, w // cells).reshape(n, c, h, w)


class Gate(nn.Module):
    """Multiplies the channels of a map by phi(s @ W), s (N, K) from a selection and W (K, C) from the method.

    A method says where W comes from (`matrix`), how the gate decides by itself (`score`, `deployed`) and how training labels
    become s (`opening`). No gate looks at the mode flags, and labels reach one only as an explicit selection.
    """

    needs_clean_features: ClassVar[bool] = False  # whether `opening` reads features of the clean images
    never_closes: bool = False  # an auxiliary head alone, whatever is selected

    def score(self, features: Tensor, head: Head) -> Tensor:
        """Auxiliary logits (N, K) of the map (N, C, H, W)."""
        raise NotImplementedError

    def matrix(self, head: Head) -> Tensor:
        """W (K, C), or (K, C * cells**2) where `cells` is over 1."""
        raise NotImplementedError

    def cells(self, head: Head) -> int:
        """Side of the grid of cells that W tells apart."""
        return 1

    def phi(self, rows: Tensor) -> Tensor:
        return rows

    def deployed(self, site: str, aux: Tensor) -> Tensor:
        return deployed(site, aux)

    def opening(self, y: Tensor, num_classes: int, draws: Draws, clean: Tensor | None, head: Head) -> Opening:
        """How labels y (N,) open the gate while weights are trained.

        clean: features (N, C) of the clean images, where the gate needs them; draws: keyed by example, site and pass.
        """
        return Opening(labels(y), {})

    def follow(self, clean: Tensor, y: Tensor) -> None:
        """Move the gate's own state by the clean features (N, C) of a batch, after the optimiser's step."""

    def forward(self, features: Tensor, head: Head, site: str, select: Selection | None) -> tuple[Tensor, Tensor]:
        """Gated features, of the shape they came in, and auxiliary logits (N, K). select None: as deployed."""
        aux = self.score(features, head)
        s = None if self.never_closes else (self.deployed if select is None else select)(site, aux)
        if s is None:
            return features, aux
        rows = self.phi(s @ self.matrix(head))
        return features * spread(rows, features, self.cells(head)), aux


class ProbedGate(Gate):
    """A gate with a linear probe of its own on the pooled map, whose rows are W (CAS, AGAIN)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.probe = nn.Linear(channels, num_classes)

    def score(self, features: Tensor, head: Head) -> Tensor:
        aux: Tensor = self.probe(pool(features))
        return aux

    def matrix(self, head: Head) -> Tensor:
        return self.probe.weight


def linear(features: Tensor, head: Head) -> Tensor:
    """The classifier's logits (N, K) of a map (N, C, H, W)."""
    return F.linear(pool(features, head.cells), head.weight, head.bias)
