"""Wide residual networks (Zagoruyko, Komodakis 2016): WRN-28-10 and WRN-34-10 without dropout."""

from __future__ import annotations

import math

from torch import nn

from advcli.models.network import scaled
from advcli.models.preact_resnet import PreActNetwork


class WideResNet(PreActNetwork):
    """depth = 6 n + 4 with n blocks a stage; 16 stem channels, then 16, 32, 64 times factor (features (N, 640, H/4, W/4) at factor 10).

    Convolutions start from N(0, 2 / (k k out)), as in the authors' and in TRADES' networks.
    """

    def __init__(self, channels: int, num_classes: int, width: float = 1.0, cells: int = 1, *, depth: int, factor: int) -> None:
        widths = [scaled(c * factor, width) for c in (16, 32, 64)]
        super().__init__(channels, num_classes, scaled(16, width), widths, (depth - 4) // 6, (1, 2, 2), cells)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)))
        nn.init.zeros_(self.linear.bias)
