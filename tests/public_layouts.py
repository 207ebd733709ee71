"""Independent networks with the parameter names of public code bases, to compare ours with: plain torch.nn, written for the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)


class Basic(nn.Module):
    """conv1, bn1, conv2, bn2 and a projection under the name of the code base: shortcut or downsample."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: str) -> None:
        super().__init__()
        self.projection = projection
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        if stride > 1 or inputs != outputs:
            self.add_module(projection, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        way = getattr(self, self.projection)(x) if hasattr(self, self.projection) else x
        return F.relu(way + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class PreAct(nn.Module):
    """kuangliu's block reads the shortcut after the activation, RobustBench's before it; their names are the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        on = torch.relu(self.bn1(x))
        way = self.shortcut(x if self.raw else on) if hasattr(self, "shortcut") else x
        return way + self.conv2(torch.relu(self.bn2(self.conv1(on))))


def stages(block, widths, **kinds):  # type: ignore[no-untyped-def]
    inputs = widths[0]
    for number, outputs in enumerate(widths):
        stride = 1 if number == 0 else 2
        yield nn.Sequential(block(inputs, outputs, stride, **kinds), block(outputs, outputs, 1, **kinds))
        inputs = outputs


class ResNet(nn.Module):
    def __init__(self, width: int, classes: int, *, projection: str = "shortcut", head: str = "linear", channels: int = 3) -> None:
        super().__init__()
        widths, self.head = [width, 2 * width, 4 * width, 8 * width], head
        self.conv1, self.bn1 = conv(channels, width, 3), nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(Basic, widths, projection=projection)
        self.add_module(head, nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return getattr(self, self.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActResNet(nn.Module):
    def __init__(self, width: int, classes: int, *, raw: bool, norm: bool, cells: int = 1) -> None:
        super().__init__()
        widths, self.cells = [width, 2 * width, 4 * width, 8 * width], cells
        self.conv1 = conv(3, width, 3)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(PreAct, widths, raw=raw)
        if norm:
            self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1] * cells**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = torch.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(F.avg_pool2d(x, x.shape[-1] // self.cells).flatten(1))


class WideBlock(nn.Module):
    """TRADES: where the channels change, the activated input goes both ways."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.equal = inputs == outputs
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None if self.equal else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        on = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(on))))
        return out + (x if self.convShortcut is None else self.convShortcut(on))


class WideGroup(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """dead: the stage that no image passes. bias: of the last layer."""

    def __init__(self, blocks: int, factor: int, classes: int, *, dead: bool = False, bias: bool = True) -> None:
        super().__init__()
        widths = [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideGroup(blocks, 16, widths[0], 1)
        if dead:
            self.sub_block1 = WideGroup(blocks, 16, widths[0], 1)
        self.block2, self.block3 = WideGroup(blocks, widths[0], widths[1], 2), WideGroup(blocks, widths[1], widths[2], 2)
        self.bn1, self.fc = nn.BatchNorm2d(widths[2]), nn.Linear(widths[2], classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class VGG(nn.Module):
    """kuangliu's VGG16: convolutions with bias, each followed by a norm; `classifier` is one layer."""

    def __init__(self, scale: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for part in (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M"):
            if isinstance(part, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [conv(inputs, part * scale, 3, bias=True), nn.BatchNorm2d(part * scale), nn.ReLU()]
                inputs = part * scale
        self.features, self.classifier = nn.Sequential(*layers, nn.AvgPool2d(1)), nn.Linear(8 * scale, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Normalize(nn.Module):
    """The normalising layer of RobustBench and others: mean and std as buffers."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@torch.no_grad()
def worn(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode as if trained: random statistics and affine parts in every norm, random biases."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.normal_(0, 0.5)
    return network.eval()
