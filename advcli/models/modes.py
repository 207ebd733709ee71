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
    """Running means and variances of the batch norm that learns them at present: (C,) each."""
    learning = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    return [statistic for m in learning for statistic in (m.running_mean, m.running_var) if statistic is not None]
