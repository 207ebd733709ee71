"""Networks of torchvision and timm as ours: normalisation inside, and the vector that enters their last linear layer as features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advcli.errors import ResourceError, UsageError
from advcli.models.network import Network

_CHANGE_THEIR_INPUT = ("googlenet", "inception_v3")  # torchvision's pretrained ones rescale images by a rule of their own


def is_wrapped(arch: str) -> bool:
    """Whether arch names a network of another library: torchvision:NAME or timm:NAME."""
    return arch.startswith(("torchvision:", "timm:"))


class Wrapped(Network):
    """The one block `body` is the network up to its last linear layer, and its vector the features, as a map (N, C, 1, 1).

    head_name: what the library calls that layer. Raises UsageError where there is no such network, where it does not take images
    of that size, or where no linear layer makes its logits; ResourceError where the library is not installed.
    """

    def __init__(self, arch: str, size: int, channels: int, num_classes: int, width: float = 1.0, cells: int = 1) -> None:
        if width != 1 or cells != 1:
            raise UsageError(f"{arch} has no width and no cells to choose", where="model.width, model.cells")
        body = _make(arch, channels, num_classes).eval()
        name, head = _last_linear(body, arch, torch.zeros(1, channels, size, size))
        super().__init__(channels, num_classes, head.in_features)
        body.set_submodule(name, nn.Identity())
        self.body, self.head_name = body, name
        self.block_names = ("body",)

    def run_block(self, name: str, x: Tensor) -> Tensor:
        vector: Tensor = self.body(x)
        return vector[:, :, None, None]

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the library's as one of this network."""
        head = f"{self.head_name}."
        return {f"linear.{key.removeprefix(head)}" if key.startswith(head) else f"body.{key}": value for key, value in state.items()}


def _make(arch: str, channels: int, num_classes: int) -> nn.Module:
    library, _, name = arch.partition(":")
    make = _torchvision if library == "torchvision" else _timm
    try:
        made: nn.Module = make(name, channels, num_classes)
    except NotImplementedError:  # on the meta device, from networks that read numbers off tensors while they are built
        with torch.device("cpu"):
            made = make(name, channels, num_classes)
        made = made.to(torch.get_default_device())
    return made


def _torchvision(name: str, channels: int, num_classes: int) -> Any:
    from torchvision import models

    if name not in models.list_models(module=models) or name in _CHANGE_THEIR_INPUT:
        why = "scales images by a rule of its own" if name in _CHANGE_THEIR_INPUT else "is none of its classifiers"
        raise UsageError(f"torchvision's {name!r} {why}", where="torchvision:NAME", next="such as torchvision:resnet50@IMAGENET1K_V2")
    if channels != 3:
        raise UsageError(f"torchvision's networks take images of 3 channels, and these have {channels}", where=f"torchvision:{name}")
    return models.get_model(name, weights=None, num_classes=num_classes)


def _timm(name: str, channels: int, num_classes: int) -> Any:
    timm = import_extra("timm", "timm")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"timm has no network {name!r}", where="timm:NAME", next="timm.list_models() names them")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)


def import_extra(module: str, extra: str) -> Any:
    """An optional library; ResourceError with the line that installs it where it is not there."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ResourceError(f"{module} is not installed", next=f"pip install 'advcli[{extra}]'") from None


def _last_linear(body: nn.Module, arch: str, image: Tensor) -> tuple[str, nn.Linear]:
    """(name, layer) of the linear layer whose output is what the network returns; found by one forward of a black image."""
    outputs: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(lambda _, __, out, name=name: outputs.append((name, out))))
    try:
        with torch.no_grad():
            result = body(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        side = image.shape[-1]
        raise UsageError(
            f"{arch} does not take images of {side} x {side} pixels: {error}", next="--size resizes a folder of images"
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    for name, out in outputs:
        if out is result and out.dim() == 2:
            head = body.get_submodule(name)
            assert isinstance(head, nn.Linear)
            return name, head
    raise UsageError(f"no linear layer makes the logits of {arch}, and gates and features need one", where="--arch")
