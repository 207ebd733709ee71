"""Pre-activation ResNet-18 with the 3x3 stem for small images (He et al. 2016b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from advcli.gates import Gate
from advcli.models.network import Network, scaled, stage_names


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution; a 1x1 shortcut, which reads the activated input, or the raw one, where the shape changes."""

    folds: ClassVar[tuple[tuple[str, str], ...]] = (("conv1", "bn2"),)

    def __init__(self, inputs: int, outputs: int, stride: int, *, raw_shortcut: bool = False) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(x if self.raw_shortcut else activated)
        return shortcut + out


class PreActNetwork(Network):
    """Stem convolution, stages of PreActBlock, then the final norm and ReLU, through which the features are read.

    Public checkpoints also come without the final norm and ReLU, and with shortcuts that read the raw input.

    A gate inside reads the sum of a block through a norm and ReLU, and hands on what it has gated. Where the channels are
    the final ones, as in the last stage, it is the final norm itself, whose statistics then mix both depths, as in ANCRA's
    code; elsewhere the site gets a norm of its own.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        stem: int,
        widths: list[int],
        blocks: int,
        strides: tuple[int, ...],
        cells: int,
        *,
        final_norm: bool = True,
        raw_shortcut: bool = False,
    ) -> None:
        super().__init__(channels, num_classes, widths[-1], cells)
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        for s, (inputs, outputs, stride) in enumerate(zip([stem, *widths], widths, strides, strict=False)):
            shapes = [(inputs, outputs, stride), *[(outputs, outputs, 1)] * (blocks - 1)]
            self.add_module(f"layer{s + 1}", nn.Sequential(*(PreActBlock(*shape, raw_shortcut=raw_shortcut) for shape in shapes)))
        self.bn = nn.BatchNorm2d(widths[-1]) if final_norm else None
        self.site_norms = nn.ModuleDict()
        self.block_names = ("conv1", *stage_names([blocks] * len(widths)))

    def put_gates(self, gates: Mapping[str, Gate]) -> None:
        super().put_gates(gates)
        own = {site: self.site_channels(site) for site in self.gate_sites if self.site_channels(site) != self.feature_channels}
        self.site_norms = nn.ModuleDict({site.replace(".", "_"): nn.BatchNorm2d(channels) for site, channels in own.items()})

    def enter(self, site: str, x: Tensor) -> Tensor:
        key = site.replace(".", "_")
        return F.relu(self.site_norms[key](x)) if key in self.site_norms else self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        return x if self.bn is None else F.relu(self.bn(x))


class PreActResNet18(PreActNetwork):
    """64-128-256-512 channels, two blocks a stage (features (N, 512, H/8, W/8) at width 1)."""

    def __init__(self, channels: int, num_classes: int, width: float = 1.0, cells: int = 1, **variant: bool) -> None:
        widths = [scaled(c, width) for c in (64, 128, 256, 512)]
        super().__init__(channels, num_classes, widths[0], widths, 2, (1, 2, 2, 2), cells, **variant)
