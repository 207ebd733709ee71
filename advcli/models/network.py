"""What every network is: ordered named blocks, gates after some of them, global average pooling, one linear head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.draws import Draws
from advcli.gates import Gate, Head, Opening, Selection
from advcli.gates.fusion import Fusion
from advcli.gates.gate import pool
from advcli.gates.selection import by_site

FEATURES = "features"
"""The site at the input of global pooling, after the final normalisation of pre-activation networks."""


class ModelOutput(NamedTuple):
    """logits (N, K): the decision. aux_logits: one (N, K) a gate, in network order; empty without gates.

    features (N, C, H, W): the map that enters global pooling. ungated: the same before the gate there; the same map without one.
    """

    logits: Tensor
    aux_logits: tuple[Tensor, ...]
    features: Tensor
    ungated: Tensor

    def rows(self, part: slice) -> ModelOutput:
        """The output of some of the examples."""
        return ModelOutput(self.logits[part], tuple(aux[part] for aux in self.aux_logits), self.features[part], self.ungated[part])

    def detach(self) -> ModelOutput:
        return ModelOutput(
            self.logits.detach(), tuple(aux.detach() for aux in self.aux_logits), self.features.detach(), self.ungated.detach()
        )


class Network(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K); the deployed decision, whatever the mode flags say.

    A backbone lists its blocks by name in `block_names`, in the order of the forward pass; each maps (N, C, H, W) to
    (N, C', H', W'). A stage's name, such as layer4, means its last block; the last block's, and its stage's, mean `features`.
    Normalisation happens inside, so that eps is always measured in [0, 1]. cells: side of the grid that pooling leaves.
    """

    mean: Tensor
    std: Tensor
    block_names: tuple[str, ...]
    folds: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Names, within a module, of convolutions and of the batch norms that alone read them. Blocks declare theirs too."""

    def __init__(self, channels: int, num_classes: int, features: int, cells: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_channels = features
        self.cells = cells
        self.linear = nn.Linear(features * cells**2, num_classes)
        self.gates = nn.ModuleList()
        self.gate_sites: tuple[str, ...] = ()
        # Not persistent: the checkpoint's header holds them, and public state dicts of these networks have no such keys.
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)
        self.normalizes = False

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Per-channel mean and std in units of [0, 1] images."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        self.normalizes = True

    def site(self, name: str) -> str:
        """A block's, a stage's or `features`' name as the site it stands for; ValueError for any other."""
        inside = [block for block in self.block_names if block == name or block.startswith(f"{name}.")]
        if name != FEATURES and not inside:
            stages = dict.fromkeys(block.partition(".")[0] for block in self.block_names)
            raise ValueError(f"there is no block {name!r}; there are {', '.join(stages)} and {FEATURES}")
        return FEATURES if name == FEATURES or inside[-1] == self.block_names[-1] else inside[-1]

    def site_channels(self, site: str) -> int:
        """Channels of the map at a site."""
        return self.feature_channels if site == FEATURES else self.block_channels(site)

    def block_channels(self, name: str) -> int:
        """Output channels of a block: those of its last convolution."""
        return [module for module in self.get_submodule(name).modules() if isinstance(module, nn.Conv2d)][-1].out_channels

    def put_gates(self, gates: Mapping[str, Gate]) -> None:
        """Gates by site, in the place of those before."""
        order = (*self.block_names, FEATURES)
        self.gate_sites = tuple(sorted(gates, key=order.index))
        self.gates = nn.ModuleList(gates[site] for site in self.gate_sites)

    def head(self) -> Head:
        return Head(self.linear.weight, self.linear.bias, self.cells)

    def run_block(self, name: str, x: Tensor) -> Tensor:
        """One named block; a backbone whose stem is spread over several top-level modules overrides this for it."""
        block: Tensor = self.get_submodule(name)(x)
        return block

    def enter(self, site: str, x: Tensor) -> Tensor:
        """What a gate at an inner site reads and passes on: the block's output, normalised on pre-activation networks."""
        return x

    def finish(self, x: Tensor) -> Tensor:
        """The last block's output to the features; the final normalisation on pre-activation networks, else nothing."""
        return x

    def trace(self, x: Tensor, select: Selection | None = None, fuse: Mapping[str, Fusion] | None = None) -> ModelOutput:
        """The decision with everything that losses and attacks may look at.

        select: how gates open; None as deployed. fuse: what mixes the features at a site before its gate; training only.
        """
        if self.normalizes:
            x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        aux: list[Tensor] = []
        fuse = fuse or {}
        for name in self.block_names:
            x = self.run_block(name, x)
            read = self.enter(name, x) if name in self.gate_sites else x
            fused = fuse[name](read) if name in fuse else read
            gated = self._gated(name, fused, select, aux)
            x = x if gated is read else gated  # an open gate hands on what came, not how it read it
        x = self.finish(x)
        ungated = fuse[FEATURES](x) if FEATURES in fuse else x
        features = self._gated(FEATURES, ungated, select, aux)
        return ModelOutput(self.linear(pool(features, self.cells)), tuple(aux), features, ungated)

    def _gated(self, site: str, x: Tensor, select: Selection | None, aux: list[Tensor]) -> Tensor:
        if site not in self.gate_sites:
            return x
        x, logits = self.gates[self.gate_sites.index(site)](x, self.head(), site, select)
        aux.append(logits)
        return x

    def opening(self, y: Tensor, draws: Draws, clean: Tensor | None = None) -> Opening:
        """How labels y (N,) open the gates in one training pass; draws and clean features (N, C) as Gate.opening takes them."""
        openings = {
            site: gate.opening(y, self.num_classes, draws.sub(site), clean, self.head())
            for site, gate in zip(self.gate_sites, self._gates(), strict=True)
            if not gate.never_closes
        }
        notes = {f"{name}.{site}": value for site, opening in openings.items() for name, value in opening.notes.items()}
        return Opening(by_site({site: opening.select for site, opening in openings.items()}), notes)

    @property
    def gated(self) -> bool:
        """Whether the decision passes a gate that closes, which hides its gradient."""
        return self.gated_before(len(self.gate_sites))

    def gated_before(self, number: int) -> bool:
        """The same of the number-th gate's own logits, in network order."""
        return any(not gate.never_closes for gate in self._gates()[:number])

    def _gates(self) -> list[Gate]:
        return [gate for gate in self.gates if isinstance(gate, Gate)]

    @property
    def needs_clean_features(self) -> bool:
        """Whether a gate's training selection reads features of the clean images."""
        return any(gate.needs_clean_features for gate in self._gates())

    def follow(self, clean: Tensor, y: Tensor) -> None:
        """Move the gates' own state by the clean features (N, C) of a batch."""
        for gate in self._gates():
            gate.follow(clean, y)

    @property
    def closes_at_features(self) -> bool:
        """Whether a gate that closes stands at `features`, where gate, pooling and head are adjacent."""
        return FEATURES in self.gate_sites and not self._gates()[-1].never_closes

    def all_gate_logits(self, output: ModelOutput) -> Tensor:
        """(N, K, K): [:, k] is the decision with the gate at `features` opened by class k, from the output of any pass of `trace`.

        ValueError where no gate that closes stands there.
        """
        if not self.closes_at_features:
            raise ValueError(f"no gate that closes stands at {FEATURES}")
        gate, head = self._gates()[-1], self.head()
        rows = gate.phi(gate.matrix(head))
        if gate.cells(head) != self.cells:
            rows = rows.repeat_interleave(self.cells**2, 1)
        pooled = pool(output.ungated, self.cells)
        return F.linear(pooled[:, None] * rows, head.weight, head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x).logits


def stage_names(stages: Sequence[int]) -> tuple[str, ...]:
    """layer1.0, layer1.1, ..., layer2.0, ... for the number of blocks in each stage."""
    return tuple(f"layer{s + 1}.{b}" for s, blocks in enumerate(stages) for b in range(blocks))


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier, never under one."""
    return max(1, round(channels * width))
