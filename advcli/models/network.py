"""What every network is: ordered named blocks, global average pooling, one linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ModelOutput(NamedTuple):
    """logits (N, K): the decision. aux_logits: one (N, K) a gate, in network order; empty without gates.

    features (N, C, H, W): the map that enters global pooling.
    """

    logits: Tensor
    aux_logits: tuple[Tensor, ...]
    features: Tensor


class Network(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K); the deployed decision, whatever the mode flags say.

    A backbone lists its blocks by name in `block_names`, in the order of the forward pass; each maps (N, C, H, W) to
    (N, C', H', W'). A stage's name, such as layer4, means its last block. Normalisation happens inside, so that eps is
    always measured in [0, 1].
    """

    mean: Tensor
    std: Tensor
    block_names: tuple[str, ...]

    def __init__(self, channels: int, num_classes: int, features: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(features, num_classes)
        # Not persistent: the checkpoint's header holds them, and public state dicts of these networks have no such keys.
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)
        self.normalizes = False

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Per-channel mean and std in units of [0, 1] images."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        self.normalizes = True

    def run_block(self, name: str, x: Tensor) -> Tensor:
        """One named block; a backbone whose stem is spread over several top-level modules overrides this for it."""
        block: Tensor = self.get_submodule(name)(x)
        return block

    def finish(self, x: Tensor) -> Tensor:
        """The last block's output to the features; the final normalisation on pre-activation networks, else nothing."""
        return x

    def trace(self, x: Tensor) -> ModelOutput:
        """The decision with everything that losses and attacks may look at."""
        if self.normalizes:
            x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        for name in self.block_names:
            x = self.run_block(name, x)
        features = self.finish(x)
        return ModelOutput(self.linear(features.mean((2, 3))), (), features)

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x).logits


def stage_names(stages: Sequence[int]) -> tuple[str, ...]:
    """layer1.0, layer1.1, ..., layer2.0, ... for the number of blocks in each stage."""
    return tuple(f"layer{s + 1}.{b}" for s, blocks in enumerate(stages) for b in range(blocks))


def scaled(channels: int, width: float) -> int:
    """Channels under a width multiplier, never under one."""
    return max(1, round(channels * width))
