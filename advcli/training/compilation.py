"""A network's blocks through torch.compile, each by itself, so that gates, labels and heads stay plain Python between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advcli.models import Network

_GRAPHS = 256  # of one piece of code: blocks of a kind share theirs, and each shape, mode and precision of them is a graph


def compile_blocks(network: Network, *, undo: bool = False) -> None:
    """In place, names and state dict unchanged; graphs are made when a block is first called in a mode, which takes a while.

    undo: the blocks run as they are written again.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
    modules = dict(network.named_modules())
    for name in network.block_names:
        if name in modules and undo:
            modules[name]._compiled_call_impl = None
        elif name in modules:  # pooling and the like are functions
            modules[name].compile(dynamic=False)


@contextmanager
def called_plainly(network: nn.Module) -> Iterator[None]:
    """Inside, compiled blocks run as they are written: what is measured, and in which shapes, is no matter for a compiler."""
    compiled = [(module, module._compiled_call_impl) for module in network.modules() if module._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
