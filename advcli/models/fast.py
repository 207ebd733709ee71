"""Fast copies of a network for crafting and search: batch norm folded into the convolutions, channels last, bfloat16 where asked,
and, where nobody asks for a gradient, compiled whole.

A copy is itself a Network with the same names, so every selection, view and head of the original works on it. It is frozen and
in eval mode. It follows gradients and never decides a verdict.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from advcli.models.network import ModelOutput, Network
from advcli.models.view import HeadView

_GRAPHS = 256  # torch counts those of all copies together and would give up at eight

Fast = Literal["folded", "bf16"]
"""`folded`: float32. `bf16`: bfloat16 from the second block on; the stem, gates, pooling and head stay float32."""


class FastCopy:
    """network: the copy, on the device of the original, which is left as it is. A step of training refreshes it once."""

    def __init__(self, original: Network, precision: Fast) -> None:
        self.network = fast = copy.deepcopy(original)
        self._folded: list[tuple[nn.Conv2d, nn.Module, nn.Module]] = []
        for convolution, norm in _folds(original):
            own = _with_bias(fast.get_submodule(convolution))
            _put(fast, norm, nn.Identity())
            self._folded.append((own, original.get_submodule(convolution), original.get_submodule(norm)))
        if precision == "bf16":
            _lower(fast)
        fast.to(memory_format=torch.channels_last)
        fast.eval().requires_grad_(False)
        done, sources = {id(tensor) for own, _, _ in self._folded for tensor in own.parameters()}, dict(_tensors(original))
        self._plain = [(tensor, sources[name]) for name, tensor in _tensors(fast) if id(tensor) not in done]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the copy the weights, statistics and tables that the original has now."""
        for own, convolution, norm in self._folded:
            weight, bias = _folded(convolution, norm)
            own.weight.copy_(weight)
            assert own.bias is not None
            own.bias.copy_(bias)
        for tensor, source in self._plain:
            tensor.copy_(source)


class CompiledForward:
    """A frozen copy's answers from one compiled graph, with convolutions and what follows them in one; for calls without gradients.

    The weights are built into the graph, so it is for a copy that is not refreshed. The first call compiles, once for each shape,
    and raises whatever the compiler does.
    """

    def __init__(self, model: Network | HeadView) -> None:
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
        self.trace: Callable[[Tensor], ModelOutput] = torch.compile(model.trace, dynamic=False, options={"freezing": True})


def _tensors(network: Network) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _folds(network: Network) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that alone read them: as blocks declare them, and neighbours in a Sequential."""
    pairs = []
    for prefix, module in network.named_modules():
        inside = getattr(module, "folds", ())
        if isinstance(module, nn.Sequential):
            rows = list(module.named_children())
            inside = [(a, b) for (a, one), (b, two) in pairwise(rows) if _is_pair(one, two)]
        pairs += [(f"{prefix}.{a}".lstrip("."), f"{prefix}.{b}".lstrip(".")) for a, b in inside]
    return pairs


def _is_pair(one: nn.Module, two: nn.Module) -> bool:
    return isinstance(one, nn.Conv2d) and isinstance(two, nn.BatchNorm2d)


def _folded(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (O, I, h, w) and bias (O,) of the one convolution that does what both do in eval mode."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    return convolution.weight * scale[:, None, None, None], shift


def _with_bias(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    if module.bias is None:
        module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    return module


def _put(network: Network, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _lower(network: Network) -> None:
    """Convolutions in bfloat16 from the second block on; norms keep float32 weights, and whoever reads a map after a block gets float32."""
    blocks = [name for name in network.block_names[1:] if _is_module(network, name)]
    for name in blocks:
        block = network.get_submodule(name)
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.to(torch.bfloat16)
        block.register_forward_pre_hook(_enter)
        if name in network.gate_sites or name == blocks[-1]:
            block.register_forward_hook(_leave)


def _is_module(network: Network, name: str) -> bool:
    """Whether a block is a module of that name, and not a function such as pooling."""
    return name in dict(network.named_modules())


def _enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(torch.bfloat16) for x in inputs)


def _leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.float()
