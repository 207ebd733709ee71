"""VGG-16 with batch norm for small images (Simonyan, Zisserman 2015): 13 convolutions, five poolings, one linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from advcli.models.network import Network, scaled, stage_names

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(Network):
    """64-128-256-512-512 channels (features (N, 512, H/32, W/32)); max pooling before stages 2 to 5 and, as block `pool`, the last."""

    def __init__(self, channels: int, num_classes: int, width: float = 1.0, cells: int = 1) -> None:
        super().__init__(channels, num_classes, scaled(512, width), cells)
        inputs = channels
        for s, (stage_width, convolutions) in enumerate(_STAGES):
            stage = []
            for _ in range(convolutions):
                outputs = scaled(stage_width, width)
                stage.append(nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)))
                inputs = outputs
            self.add_module(f"layer{s + 1}", nn.Sequential(*stage))
        self.block_names = (*stage_names([n for _, n in _STAGES]), "pool")

    def run_block(self, name: str, x: Tensor) -> Tensor:
        if name == "pool":
            return F.max_pool2d(x, 2)
        if name.endswith(".0") and name != "layer1.0":
            x = F.max_pool2d(x, 2)
        return super().run_block(name, x)

    def block_channels(self, name: str) -> int:
        return self.feature_channels if name == "pool" else super().block_channels(name)
