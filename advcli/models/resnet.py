"""ResNet-18 with the 3x3 stem for small images (He et al. 2016), named as the public robust checkpoints name it."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from advcli.models.network import Network, scaled, stage_names


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, ReLU after the sum."""

    folds: ClassVar[tuple[tuple[str, str], ...]] = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(Network):
    """64-128-256-512 channels, two blocks a stage (features (N, 512, H/8, W/8) at width 1)."""

    folds = (("conv1", "bn1"),)

    def __init__(self, channels: int, num_classes: int, width: float = 1.0, cells: int = 1) -> None:
        widths = [scaled(c, width) for c in (64, 128, 256, 512)]
        super().__init__(channels, num_classes, widths[-1], cells)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for s, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            blocks = [BasicBlock(inputs, outputs, 1 if s == 0 else 2), BasicBlock(outputs, outputs, 1)]
            self.add_module(f"layer{s + 1}", nn.Sequential(*blocks))
        self.block_names = ("stem", *stage_names((2, 2, 2, 2)))

    def run_block(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x))) if name == "stem" else super().run_block(name, x)

    def block_channels(self, name: str) -> int:
        return self.conv1.out_channels if name == "stem" else super().block_channels(name)
