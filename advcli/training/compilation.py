"""A network's blocks through torch.compile, each by itself, so that gates, labels and heads stay plain Python between them."""

from __future__ import annotations

import torch

from advcli.models import Network

_GRAPHS = 256  # of one piece of code: blocks of a kind share theirs, and each shape, mode and precision of them is a graph


def compile_blocks(network: Network) -> None:
    """In place, names and state dict unchanged; graphs are made when a block is first called in a mode, which takes a while."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
    modules = dict(network.named_modules())
    for name in network.block_names:
        if name in modules:  # pooling and the like are functions
            modules[name].compile(dynamic=False)
