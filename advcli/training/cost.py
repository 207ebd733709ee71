"""What a step costs, counted on the running network and not taken from a formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from advcli.attacks import Cost

FLOOR = 1e7
"""FLOP of a forward below which `auto` does not look for a quicker precision: such networks are all overhead."""


class FlopMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating-point operations of convolutions and matrix products inside the block, backward included, in `total`.

    torch's FlopCounterMode tracks modules by hooks that autograd.grad refuses, and every attack here uses autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


@contextmanager
def passes(*models: nn.Module) -> Iterator[Cost]:
    """Images that go through the first convolution of the models, forward and backward, inside the block."""
    cost = Cost()

    def forward_hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        cost.forwards += len(output)
        if output.requires_grad:
            output.register_hook(backward_hook)  # type: ignore[no-untyped-call]

    def backward_hook(gradient: Tensor) -> None:
        cost.backwards += len(gradient)

    first = [next(module for module in model.modules() if isinstance(module, nn.Conv2d)) for model in models]
    handles = [convolution.register_forward_hook(forward_hook) for convolution in first]
    try:
        yield cost
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def forward_flops(model: nn.Module, images: Tensor) -> int:
    """FLOPs of one forward of these images in the model's present mode."""
    with FlopMeter() as meter:
        model(images)
    total: int = meter.total
    return total
