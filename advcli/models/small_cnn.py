"""Three convolutions with batch norm: trains on images of 8 to 32 pixels in seconds."""

from __future__ import annotations

from torch import nn

from advcli.models.network import Network, scaled


class SmallCNN(Network):
    """32-64-128 channels, strides 1, 2, 2 (features (N, 128, H/4, W/4) at width 1)."""

    def __init__(self, channels: int, num_classes: int, width: float = 1.0, cells: int = 1) -> None:
        widths = [scaled(c, width) for c in (32, 64, 128)]
        super().__init__(channels, num_classes, widths[-1], cells)
        self.block_names = ("layer1", "layer2", "layer3")
        for name, inputs, outputs, stride in zip(self.block_names, [channels, *widths], widths, (1, 2, 2), strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)))
