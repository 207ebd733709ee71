"""State dicts of others as ours: wrappers taken off, names translated, architecture and sizes read from the shapes of tensors.

Known are the layouts of the public checkpoints for small images: ResNet-18 and PreActResNet-18 as in kuangliu's pytorch-cifar and
RobustBench, with torchvision's names too; wide residual networks as in TRADES; VGG-16 with batch norm as in pytorch-cifar; robust
checkpoints of MadryLab's `robustness`. Tensors may be on the meta device: only names and shapes are looked at, except where a
convolution's bias is folded into the norm that follows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]

_WRAPPERS = {"module", "_orig_mod", "model", "net", "network", "backbone", "0", "1"}
_COPIES = ("attacker.",)  # robustness stores the network a second time, inside the attack
_MEANS = {"mean", "mu", "_mean", "new_mean"}
_STDS = {"std", "sigma", "_std", "new_std"}
_HEADS = ("linear", "fc", "classifier", "head", "logits", "output", "last_linear", "final")
_DEAD = "sub_block1."  # TRADES' wide networks carry a stage that no image passes
_DEEPEST, _WIDEST = 100, 99  # blocks a stage, and the factor of channels, beyond which nothing is a wide residual network
_FINAL_NORMS = re.compile(r"^(?:bn1|norm|final_bn|bn_final|bn_last|batchnorm)\.")
_RENAMES = (
    (re.compile(r"^block(\d)\.(?:layer\.)?(\d+)\."), r"layer\1.\2."),
    (re.compile(r"\.(?:convShortcut|conv_shortcut|shortcut|downsample|skip)\.(weight|bias)$"), r".shortcut.0.\1"),
    (re.compile(r"\.(?:downsample|skip)\.(\d)\."), r".shortcut.\1."),
)


@dataclass(frozen=True)
class Candidate:
    """What a state dict may be: an architecture with its sizes, and the tensors under the names of that network."""

    arch: str
    width: float
    num_classes: int
    channels: int
    cells: int
    state: State = field(repr=False)


@dataclass(frozen=True)
class Normalization:
    """Mean and std in units of [0, 1] images, one value or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def unwrap(state: State) -> tuple[State, Normalization | None]:
    """The state dict without the prefixes of wrappers and without the normalisation that it may bring along, which comes apart."""
    found: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in state.items():
        place, _, last = key.rpartition(".")
        kind = "mean" if last in _MEANS else "std" if last in _STDS else None
        if kind and 0 < tensor.numel() <= 4:
            found.setdefault(place, {})[kind] = (key, tensor)
    pairs = {place: pair for place, pair in found.items() if len(pair) == 2}
    taken = {key for pair in pairs.values() for key, _ in pair.values()}
    state = _without_prefixes({key: tensor for key, tensor in state.items() if key not in taken})
    return state, next((_normalization(pair["mean"][1], pair["std"][1]) for pair in pairs.values()), None)


def _normalization(mean: Tensor, std: Tensor) -> Normalization:
    """Values over 1 are in units of [0, 255] images."""
    values = [tuple(map(float, part.flatten())) for part in (mean, std)]
    unit = 255 if max(values[0]) > 1 else 1
    return Normalization(*(tuple(value / unit for value in part) for part in values))


def _without_prefixes(state: State) -> State:
    while state:
        without_copies = {key: tensor for key, tensor in state.items() if not key.startswith(_COPIES)}
        state = without_copies or state
        first, *others = {key.partition(".")[0] for key in state}
        if others or first not in _WRAPPERS or first in state:
            return state
        state = {key.partition(".")[2]: tensor for key, tensor in state.items()}
    return state


def candidates(state: State, arch: str | None) -> Iterator[Candidate]:
    """What an unwrapped state dict is if it is of that architecture, or, for None, of each that is known; none has been checked yet."""
    common = _common(state)
    for family, pattern in _FAMILIES:
        if arch is None or re.fullmatch(pattern, arch):
            yield family(common, arch)


def _common(state: State) -> State:
    """Names that all families share: the head is `linear`, and every norm counts its batches, as older ones did not."""
    head = head_name(state)

    def ours(key: str) -> str:
        place, _, last = key.rpartition(".")
        if head is not None and place == head:
            return f"linear.{last}"
        for pattern, to in _RENAMES:
            key = pattern.sub(to, key)
        return key

    result = _renamed(state, ours)
    if "linear.weight" in result and "linear.bias" not in result:
        result["linear.bias"] = torch.zeros(result["linear.weight"].shape[0])
    for key in [key for key in result if key.endswith(".running_mean")]:
        result.setdefault(f"{key.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return result


def _renamed(state: State, rename: Callable[[str], str]) -> State:
    """Every tensor under its new name, or under its own where that name is taken, so that none is lost unseen."""
    result: State = {}
    for key, tensor in state.items():
        name = rename(key)
        result[key if name in result or (name != key and name in state) else name] = tensor
    return result


def _final_norm(key: str) -> str:
    return _FINAL_NORMS.sub("bn.", key)


def head_name(state: State) -> str | None:
    """The one linear layer, else the one with a common name; None where there is none or several."""
    matrices = [key.removesuffix(".weight") for key, tensor in state.items() if key.endswith(".weight") and tensor.dim() == 2]
    named = [name for name in matrices if name in _HEADS]
    return matrices[0] if len(matrices) == 1 else named[0] if len(named) == 1 else None


def _size(state: State, key: str, axis: int, default: int) -> int:
    """An extent of a tensor, or the default where there is no such tensor or axis."""
    shape = state[key].shape if key in state else ()
    return max(1, shape[axis]) if axis < len(shape) else default


def _candidate(state: State, arch: str, width: float, stem: str, last: int) -> Candidate:
    """stem: the first convolution; last: channels that enter pooling, from which the head's length tells the cells."""
    classes, channels = _size(state, "linear.weight", 0, 10), _size(state, stem, 1, 3)
    cells = math.isqrt(_size(state, "linear.weight", 1, last) // last)
    return Candidate(arch, width, classes, channels, cells if cells in (1, 2, 4) else 1, state)


def _resnet(state: State, arch: str | None) -> Candidate:
    last = _size(state, "layer4.1.conv2.weight", 0, 512)
    return _candidate(state, arch or "resnet18", last / 512, "conv1.weight", last)


def _preact_resnet(state: State, arch: str | None) -> Candidate:
    state = _renamed(state, _final_norm)
    last = _size(state, "layer4.1.conv2.weight", 0, 512)
    found = "preact-resnet18" if "bn.weight" in state else "preact-resnet18-no-norm"
    return _candidate(state, arch or found, last / 512, "conv1.weight", last)


def _wide_resnet(state: State, arch: str | None) -> Candidate:
    state = _renamed({key: tensor for key, tensor in state.items() if not key.startswith(_DEAD)}, _final_norm)
    blocks = min(_DEEPEST, max(1, sum(re.fullmatch(r"layer1\.\d+\.conv1\.weight", key) is not None for key in state)))
    stem, first = _size(state, "conv1.weight", 0, 16), _size(state, "layer1.0.conv1.weight", 0, 160)
    last = _size(state, "layer3.0.conv1.weight", 0, 4 * first)
    return _candidate(state, arch or f"wrn-{6 * blocks + 4}-{min(_WIDEST, max(1, round(first / stem)))}", stem / 16, "conv1.weight", last)


def _vgg(state: State, arch: str | None) -> Candidate:
    state = _unrolled(state)
    last = _size(state, "layer5.2.0.weight", 0, 512)
    return _candidate(state, arch or "vgg16-bn", last / 512, "layer1.0.0.weight", last)


def _small_cnn(state: State, arch: str | None) -> Candidate:
    last = _size(state, "layer3.0.weight", 0, 128)
    return _candidate(state, arch or "small-cnn", last / 128, "layer1.0.weight", last)


def _unrolled(state: State) -> State:
    """`features.N` as stages of (convolution, norm); a convolution's bias, which the norm after it takes off again, moves into its mean."""
    places = sorted(int(match[1]) for key, t in state.items() if (match := re.fullmatch(r"features\.(\d+)\.weight", key)) and t.dim() == 4)
    blocks = [f"layer{s}.{c}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(n)]
    if len(places) != len(blocks):
        return state
    result = dict(state)
    names: dict[str, str] = {}
    for place, block in zip(places, blocks, strict=True):
        bias, mean = result.pop(f"features.{place}.bias", None), f"features.{place + 1}.running_mean"
        if bias is not None and mean in result and bias.shape == result[mean].shape:
            result[mean] = (result[mean].double() - bias.double()).to(result[mean].dtype)
        names |= {f"features.{place}": f"{block}.0", f"features.{place + 1}": f"{block}.1"}

    def ours(key: str) -> str:
        place, _, last = key.rpartition(".")
        return f"{names[place]}.{last}" if place in names else key

    return _renamed(result, ours)


_FAMILIES: tuple[tuple[Callable[[State, str | None], Candidate], str], ...] = (
    (_resnet, "resnet18"),
    (_preact_resnet, "preact-resnet18.*"),
    (_wide_resnet, "wrn-.*"),
    (_vgg, "vgg16-bn"),
    (_small_cnn, "small-cnn"),
)
