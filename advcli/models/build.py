"""From an architecture's description, which a checkpoint's header holds, to a network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from advcli.errors import UsageError
from advcli.gates.build import build_gate, needs_final_channels
from advcli.gates.gate import Gate
from advcli.models.network import Network
from advcli.models.preact_resnet import PreActResNet18
from advcli.models.resnet import ResNet18
from advcli.models.small_cnn import SmallCNN
from advcli.models.vgg import VGG16
from advcli.models.wide_resnet import WideResNet
from advcli.models.wrapped import Wrapped, is_wrapped
from advcli.recipe import schema

# (constructor (channels, classes, width, cells) -> Network, factor by which it shrinks an image's sides)
_Backbone = tuple[Callable[[int, int, float, int], Network], int]
_BACKBONES: dict[str, _Backbone] = {
    "small-cnn": (SmallCNN, 4),
    "resnet18": (ResNet18, 8),
    "preact-resnet18": (PreActResNet18, 8),
    "wrn-28-10": (partial(WideResNet, depth=28, factor=10), 4),
    "wrn-34-10": (partial(WideResNet, depth=34, factor=10), 4),
    "vgg16-bn": (VGG16, 32),
}
# What only checkpoints of others have, and wide networks of any size.
_OTHERS: dict[str, _Backbone] = {
    "preact-resnet18-raw": (partial(PreActResNet18, raw_shortcut=True), 8),
    "preact-resnet18-no-norm": (partial(PreActResNet18, final_norm=False), 8),
    "preact-resnet18-raw-no-norm": (partial(PreActResNet18, raw_shortcut=True, final_norm=False), 8),
}
_WIDE = re.compile(r"wrn-(\d{2,3})-(\d{1,2})")


_GATES: TypeAdapter[tuple[schema.Gate, ...]] = TypeAdapter(tuple[schema.Gate, ...])


@dataclass(frozen=True)
class Architecture:
    """All that it takes to build a network. size: the side in pixels of its images; mean, std: a value a channel, or None."""

    arch: str
    width: float
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cells: int = 1
    gates: tuple[schema.Gate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "gates": [gate.model_dump(mode="json") for gate in self.gates]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Architecture:
        """The inverse of to_json; ValueError where value describes no network."""
        try:
            mean, std = (tuple(map(float, value[key])) if value[key] is not None else None for key in ("mean", "std"))
            whole = num_classes, channels, size = tuple(value[key] for key in ("num_classes", "channels", "size"))
            cells, gates = value.get("cells", 1), _GATES.validate_python(value.get("gates", ()))
            result = cls(str(value["arch"]), float(value["width"]), num_classes, channels, size, mean, std, cells, gates)
        except (KeyError, TypeError, OverflowError, ValidationError) as error:
            raise ValueError(f"not the description of a network: {error}") from None
        if not all(type(n) is int for n in (*whole, cells)):
            raise ValueError(f"not the description of a network: a size is a whole number: {result}")
        if not all(0 < n <= 1_000_000 for n in whole) or not 0 < result.width <= 100 or cells not in (1, 2, 4):
            raise ValueError(f"sizes out of range: {result}")
        values = (*(mean or ()), *(std or ()))
        if (mean is None) != (std is None) or len(values) not in (0, 2 * channels) or not all(map(math.isfinite, values)):
            raise ValueError(f"mean and std go together, a number a channel: {result}")
        if min(std or (1.0,)) <= 0:
            raise ValueError(f"std is positive: {result}")
        return result


def build(architecture: Architecture, seed: int = 0) -> Network:
    """The network on the CPU with initial weights fixed by seed. Raises UsageError where the images do not fit it."""
    a = architecture
    constructor, shrink = _backbone(a)
    if a.size < shrink:
        raise UsageError(
            f"{a.arch} shrinks images {shrink}-fold, and these have {a.size} pixels",
            where="model.arch",
            next="model.arch=small-cnn takes images from 4 pixels on",
        )
    if a.mean is not None and len(a.mean) != a.channels:
        raise UsageError(f"{len(a.mean)} values for images with {a.channels} channels", where="model.mean")
    side = a.size // shrink if constructor is VGG16 else math.ceil(a.size / shrink)  # poolings drop what is left over, strides keep it
    if side % a.cells:
        what = f"the features of {a.arch} are {side} x {side} for images of {a.size} pixels, no multiple of {a.cells} cells"
        raise UsageError(what, where="model.cells", next="model.cells=1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = constructor(a.channels, a.num_classes, a.width, a.cells)
        # Made after the network, so that one with gates starts from the same weights as one without.
        network.put_gates(_gates(network, a))
    if a.mean is not None and a.std is not None:
        network.set_normalization(a.mean, a.std)
    return network


def _backbone(a: Architecture) -> _Backbone:
    known = _BACKBONES | _OTHERS
    if a.arch in known:
        return known[a.arch]
    wide = _WIDE.fullmatch(a.arch)
    if wide and int(wide[1]) >= 10 and int(wide[1]) % 6 == 4 and int(wide[2]):
        return partial(WideResNet, depth=int(wide[1]), factor=int(wide[2])), 4
    if is_wrapped(a.arch):
        return partial(Wrapped, a.arch, a.size), 1
    names = f"{', '.join(known)}, wrn-DEPTH-FACTOR, torchvision:NAME, timm:NAME"
    raise UsageError(f"there is no network {a.arch!r}", where="--arch", next=f"known: {names}")


def _gates(network: Network, a: Architecture) -> dict[str, Gate]:
    """Gates by site, each with its own parameters; UsageError where a site is not there, is taken, or has channels that do not fit."""
    gates: dict[str, Gate] = {}
    for number, part in enumerate(a.gates):
        where = f"model.gates.{number}.at"
        for name in part.at:
            site = _site(network, name, where)
            channels = network.site_channels(site)
            if site in gates:
                raise UsageError(f"two gates at {site} ({name} is another name of it)", where=where, next="one gate a site")
            if needs_final_channels(part) and channels != network.feature_channels:
                what = f"{part.name} multiplies by rows of {network.feature_channels} values, and {name} has {channels} channels"
                raise UsageError(what, where=where, next="put it into the last stage, such as at: [features]")
            if isinstance(part, schema.ChannelPrompt) and part.top_k > a.num_classes:
                raise UsageError(f"the top {part.top_k} of {a.num_classes} classes", where=f"model.gates.{number}.top_k")
            gates[site] = build_gate(part, channels, a.num_classes)
    return gates


def _site(network: Network, name: str, where: str) -> str:
    try:
        return network.site(name)
    except ValueError as error:
        raise UsageError(str(error), where=where) from None


def fusion_sites(network: Network, part: schema.HybridStatistics | None) -> tuple[str, ...]:
    """The sites at which a recipe has features fused; UsageError where one is not there."""
    sites = tuple(_site(network, name, "model.fusion.at") for name in part.at) if part is not None else ()
    if len(set(sites)) != len(sites):
        raise UsageError("two names of one site, where features would be fused once", where="model.fusion.at", next="name each site once")
    return sites
