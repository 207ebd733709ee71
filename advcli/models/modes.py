"""Switching a network's modes and putting back exactly what was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen(model: nn.Module, *, train_mode: bool = False) -> Iterator[nn.Module]:
    """Eval mode (or train mode, where a paper crafts so) and no parameter gradients inside; every module's own flag restored after.

    Calling model.train() afterwards instead would un-freeze a module that somebody had put into eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(train_mode).requires_grad_(False)
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


@contextmanager
def batch_norm_state_kept(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves the running statistics and counters of batch norm as they were."""
    kept = [(buffer, buffer.clone()) for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def moving_statistics(model: nn.Module) -> list[Tensor]:
    """What norms of any kind learn at present, such as running means (C,): floating-point buffers that are called running_..."""
    learning = (named for module in model.modules() if module.training for named in module.named_buffers(recurse=False))
    return [buffer for name, buffer in learning if name.startswith("running_") and buffer.is_floating_point()]
