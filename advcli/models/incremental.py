"""Answers for images that differ in one small window from images seen before, at the cost of what the window reaches.

A window of pixels reaches a window of the next map, larger by the kernel's halo, and nothing else of it. So convolutions are made
there alone, on cut-outs whose rest comes from maps that are remembered, until so much of a map is reached that whole maps are
cheaper. What comes out is what the network would have said, but for the order of a few additions.

Blocks are run as they are, on objects that stand for their maps and take torch's functions (`__torch_function__`): on whole maps
to remember them, then on windows. A block that does anything but convolve, pool, add and treat pixels alike ends the part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.models.network import ModelOutput, Network
from advcli.models.view import HeadView

Pair = tuple[int, int]
Layer = Callable[[Tensor, Pair], Tensor]
"""(map, padding) -> map: a convolution or pooling."""

_WORTH = 0.7  # share of a block's multiplications from which on whole maps are cheaper than cutting windows out
_SAVES = 0.1  # share of the network's multiplications that must be saved
_ROWS = 32  # of which one is remembered anew at a time; more of more
_ROOM = 2**31  # bytes that may be remembered


class IncrementalForward:
    """Remembers rows images (rows, C, H, W) and answers for as many looks, each one of them but for a window of side pixels.

    model: a frozen network in eval mode, float32, which nobody changes. blocks: how many of its first run on windows. spared: the
    multiplications that this saves of a pass; saved: their share. ValueError where that is too little, or takes too much memory, which
    is taken when something is remembered first.
    """

    def __init__(self, model: Network | HeadView, shape: tuple[int, int, int], side: int, rows: int) -> None:
        self.model, self.side = model, side
        self._network = model.network if isinstance(model, HeadView) else model
        example = self._network.linear.weight.new_zeros(1, *shape)
        self._axes = tuple(_Axis(torch.arange(length - side + 1, device=example.device), side) for length in shape[1:])
        self.blocks, self.spared = self._worth(example)
        self.saved = self.spared / _multiplications(self._network, example)
        if self.saved < _SAVES:
            raise ValueError(f"windows of {side} pixels save {100 * self.saved:.0f} % of the work")
        plan = _Plan()
        self._over(example, plan)
        room = rows * example.element_size() * sum((_area(kept) + _changed(kept)) * kept.shape[0] for kept in plan.maps)
        if room > _ROOM:
            raise ValueError(f"maps of {rows} images take {room / 2**30:.1f} GiB")
        self._plan, self._rows, self._example = plan, rows, example
        self._group = max(1, rows // _ROWS)  # always one size, so that what a row is remembered as does not depend on its company
        self._seen = example.new_full((rows, *shape), torch.nan)

    @cached_property
    def _memory(self) -> _Memory:
        return _Memory(self._plan, self._rows, self._example)

    def remember(self, images: Tensor, asked: Tensor) -> None:
        """Those of images (rows, C, H, W) in asked (rows,) bool will be looked at. What is remembered already costs nothing."""
        new = torch.nonzero(asked & (images != self._seen).flatten(1).any(1))[:, 0]
        for part in torch.split(new, self._group) if len(new) else ():
            group = part[torch.arange(self._group, device=part.device) % len(part)]
            self._over(images[group], _Record(self._memory, group))
            self._seen[group] = images[group]

    @torch.no_grad()
    def trace(self, looks: Tensor, owner: Tensor, top: Tensor, left: Tensor) -> ModelOutput:
        """looks (rows, C, H, W), each the remembered image of row owner (rows,) outside the window that begins at top, left (rows,)."""
        top, left = (begin.clamp(0, len(axis.begin) - 1) for begin, axis in zip((top, left), self._axes, strict=True))
        reach, look = torch.arange(self.side, device=looks.device), torch.arange(len(looks), device=looks.device)
        rows, columns = (top[:, None] + reach)[:, :, None], (left[:, None] + reach)[:, None, :]
        pixels = self._network.normalized(looks[look[:, None, None], :, rows, columns].permute(0, 3, 1, 2))
        run = _Looks(self._memory, top, left, owner)
        reached: _Window = _through(self._network, self.blocks, _Window(pixels, run))
        return self.model.trace_from(self.blocks, run.cut(reached.values))

    @torch.no_grad()
    def _over(self, images: Tensor, plan: _Plan) -> None:
        """Run the part on whole images (N, C, H, W)."""
        start = _Whole(self._network.normalized(images), self._axes, plan)
        _through(self._network, self.blocks, start).end()

    @torch.no_grad()
    def _worth(self, example: Tensor) -> tuple[int, int]:
        """How many blocks to run on windows, and the multiplications that this saves."""
        network, plan, blocks, spared = self._network, _Plan(), 0, 0
        value: Any = _Whole(network.normalized(example), self._axes, plan)
        for number, name in enumerate(network.block_names, 1):
            whole, windowed = plan.whole, plan.windowed
            try:
                value = network.run_block(name, value)
            except Exception:  # it does something else, and whatever fails there, the part ends here
                break
            if name in network.gate_sites or plan.windowed - windowed > _WORTH * (plan.whole - whole):
                break
            blocks, spared = number, plan.whole - plan.windowed
        return blocks, spared


class _Map(NamedTuple):
    """One map of the part: its shape, how far windows reach, and the padding with which they are cut out; None: they never are."""

    shape: tuple[int, int, int]
    window: Pair
    padding: int | None


class _Axis(NamedTuple):
    """Of one axis of a map, for each place (P,) of the window in the image: where the pixels in question begin; and how many they are."""

    begin: Tensor
    size: int


Axes = tuple[_Axis, ...]


class _Cut(NamedTuple):
    """A window cut out of a map, along both axes: what looks have changed of it, and what is wanted."""

    number: int
    changed: Axes
    wanted: Axes
    padding: int


class _Plan:
    """What whole maps show: which maps the part makes, in its order, and which windows are cut out of them."""

    def __init__(self) -> None:
        self.maps: list[_Map] = []
        self.cuts: list[_Cut] = []
        self.whole = self.windowed = 0  # multiplications

    def made(self, value: _Whole) -> int:
        channels, height, width = value.values.shape[1:]
        self.maps.append(_Map((channels, height, width), (value.axes[0].size, value.axes[1].size), None))
        return len(self.maps) - 1

    def cut(self, value: _Whole, wanted: Axes, padding: int) -> None:
        self.cuts.append(_Cut(value.number, value.axes, wanted, padding))
        known = self.maps[value.number]
        self.maps[value.number] = known._replace(padding=max(padding, known.padding or 0))


class _Record(_Plan):
    """Keeps the maps as they are made."""

    def __init__(self, memory: _Memory, rows: Tensor) -> None:
        super().__init__()
        self.memory, self.rows = memory, rows

    def made(self, value: _Whole) -> int:
        number = super().made(value)
        self.memory.keep(number, self.rows, value.values)
        return number


class _Memory:
    """Maps of rows images, as pixels (L, C) with zeros around each map, and behind them room for what looks have changed."""

    def __init__(self, plan: _Plan, rows: int, like: Tensor) -> None:
        self.maps, self.cuts, self.rows = plan.maps, plan.cuts, rows
        self.pixels = [like.new_zeros(rows * (_area(kept) + _changed(kept)), kept.shape[0]) for kept in plan.maps]
        self.tables = [self._tables(cut) for cut in plan.cuts]
        self.look = torch.arange(rows, device=like.device)[:, None]

    def _tables(self, cut: _Cut) -> list[Tensor]:
        """For both axes (P, 3, size): a wanted pixel's part of its number in the map, and in the window, and whether it is in that."""
        kept, tables = self.maps[cut.number], []
        pad = kept.padding or 0
        for changed, wanted, step, own in zip(cut.changed, cut.wanted, (kept.shape[2] + 2 * pad, 1), (cut.changed[1].size, 1), strict=True):
            pixel = wanted.begin[:, None] + torch.arange(wanted.size, device=wanted.begin.device)
            within = pixel - changed.begin[:, None]
            inside = (within >= 0) & (within < changed.size)
            tables.append(torch.stack([(pixel + pad) * step, within * own, inside.long()], 1))
        return tables

    def keep(self, number: int, rows: Tensor, value: Tensor) -> None:
        """Maps (R, C, H, W) of rows (R,), if windows are ever cut out of them."""
        kept = self.maps[number]
        (channels, height, width), pad = kept.shape, kept.padding
        if pad is not None:
            maps = self.pixels[number][: self.rows * _area(kept)].view(self.rows, height + 2 * pad, width + 2 * pad, channels)
            maps[rows, pad : pad + height, pad : pad + width] = value.permute(0, 2, 3, 1)

    def cut(self, turn: int, values: Tensor, run: _Looks) -> Tensor:
        """(looks, C, h, w): the owners' maps as the turn-th cut wants them, with values (looks, C, h', w'), which are what is changed."""
        number = self.cuts[turn].number
        pixels, area, own_area = self.pixels[number], _area(self.maps[number]), _changed(self.maps[number])
        behind = self.rows * area
        pixels[behind:].view(len(values), *values.shape[2:], -1).copy_(values.permute(0, 2, 3, 1))
        (y, own_y, in_y), (x, own_x, in_x) = (
            table[begin].unbind(1) for table, begin in zip(self.tables[turn], (run.top, run.left), strict=True)
        )
        theirs = (y + run.owner[:, None] * area)[:, :, None] + x[:, None, :]
        own = (own_y + (self.look * own_area + behind))[:, :, None] + own_x[:, None, :]
        inside = in_y.bool()[:, :, None] & in_x.bool()[:, None, :]
        found = pixels.index_select(0, torch.where(inside, own, theirs).flatten())
        return found.view(*inside.shape, -1).permute(0, 3, 1, 2)


def _area(kept: _Map) -> int:
    """Pixels that are kept of one image's map."""
    return 0 if kept.padding is None else (kept.shape[1] + 2 * kept.padding) * (kept.shape[2] + 2 * kept.padding)


def _changed(kept: _Map) -> int:
    """Pixels that one look may have changed of it."""
    return 0 if kept.padding is None else kept.window[0] * kept.window[1]


def _within(inner: _Axis, outer: _Axis) -> bool:
    return bool(((outer.begin <= inner.begin) & (inner.begin + inner.size <= outer.begin + outer.size)).all())


class _Looks:
    """One run on windows, which meets the plan's cuts in their order. top, left, owner (looks,): where they are, and in whose image."""

    def __init__(self, memory: _Memory, top: Tensor, left: Tensor, owner: Tensor) -> None:
        self.memory, self.top, self.left, self.owner = memory, top, left, owner
        self.turn = 0

    def cut(self, values: Tensor) -> Tensor:
        self.turn += 1
        return self.memory.cut(self.turn - 1, values, self)


class _Value:
    """What stands for a map (N, C, H, W) in a block's code."""

    values: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        way = _WAYS.get(func)
        return NotImplemented if way is None else way(*args, **(kwargs or {}))  # torch makes a TypeError of the former

    def dim(self) -> int:
        """Batch norm asks for it."""
        return 4

    def __add__(self, other: Any) -> Any:
        return self.plus(other) if isinstance(other, type(self)) else NotImplemented

    def slid(self, layer: Layer, kernel: Pair, stride: Pair, padding: Pair, cost: int) -> Any:
        """What a kernel makes of it at every place; cost: multiplications at one."""
        raise NotImplementedError

    def each(self, function: Callable[[Tensor], Tensor]) -> Any:
        """What a function makes of its pixels, each by itself."""
        raise NotImplementedError

    def plus(self, other: Any) -> Any:
        """The sum, where one is changed at most where the other is, as a shortcut is that reaches less than what it leads around."""
        raise NotImplementedError


class _Whole(_Value):
    """A whole map, with the windows that are reached in it."""

    def __init__(self, values: Tensor, axes: Axes, plan: _Plan) -> None:
        self.values, self.axes, self.plan = values, axes, plan
        self.number = plan.made(self)

    def slid(self, layer: Layer, kernel: Pair, stride: Pair, padding: Pair, cost: int) -> _Whole:
        values = layer(self.values, padding)
        reached, wanted = [], []
        for axis, k, s, p, limit in zip(self.axes, kernel, stride, padding, values.shape[2:], strict=True):
            size = min(limit, (axis.size + k - 2) // s + 1)  # of places whose kernel meets the window, at most
            first = (-((k - 1 - p - axis.begin) // s)).clamp(0, limit - size)
            reached.append(_Axis(first, size))
            wanted.append(_Axis(first * s - p, (size - 1) * s + k))
        self.plan.cut(self, tuple(wanted), max(padding))
        self.plan.whole += cost * values.shape[2] * values.shape[3]
        self.plan.windowed += cost * reached[0].size * reached[1].size
        return _Whole(values, tuple(reached), self.plan)

    def each(self, function: Callable[[Tensor], Tensor]) -> _Whole:
        return _Whole(function(self.values), self.axes, self.plan)

    def plus(self, other: _Whole) -> _Whole:
        far, near = (other, self) if other.reached > self.reached else (self, other)
        if not all(_within(inner, outer) for inner, outer in zip(near.axes, far.axes, strict=True)):
            raise NotImplementedError("neither of two windows holds the other")
        self.plan.cut(near, far.axes, 0)
        return _Whole(self.values + other.values, far.axes, self.plan)

    @property
    def reached(self) -> int:
        """Pixels that are."""
        return self.axes[0].size * self.axes[1].size

    def end(self) -> None:
        """From here on all of it is wanted."""
        wanted = [_Axis(torch.zeros_like(axis.begin), side) for axis, side in zip(self.axes, self.values.shape[2:], strict=True)]
        self.plan.cut(self, tuple(wanted), 0)


class _Window(_Value):
    """values (looks, C, h, w): all that looks have changed of a map. Beyond it, it is as it was."""

    def __init__(self, values: Tensor, run: _Looks) -> None:
        self.values, self.run = values, run

    def slid(self, layer: Layer, kernel: Pair, stride: Pair, padding: Pair, cost: int) -> _Window:
        return _Window(layer(self.run.cut(self.values), (0, 0)), self.run)

    def each(self, function: Callable[[Tensor], Tensor]) -> _Window:
        return _Window(function(self.values), self.run)

    def plus(self, other: _Window) -> _Window:
        far, near = (other, self) if other.values[0, 0].numel() > self.values[0, 0].numel() else (self, other)
        return _Window(far.values + self.run.cut(near.values), self.run)


def _convolve(
    x: Any, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    if not isinstance(x, _Value) or isinstance(padding, str):
        return NotImplemented
    step, pads, wide = _pair(stride), _pair(padding), _pair(dilation)
    kernel = (weight.shape[2] - 1) * wide[0] + 1, (weight.shape[3] - 1) * wide[1] + 1
    return x.slid(lambda values, pad: F.conv2d(values, weight, bias, step, pad, wide, groups), kernel, step, pads, weight.numel())


def _pool(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False, **more: Any) -> Any:
    if _pair(padding) != (0, 0) or _pair(dilation) != (1, 1) or ceil_mode or any(more.values()):
        return NotImplemented  # what is around a map is zero here, which is no padding for a maximum
    kernel, step = _pair(kernel_size), _pair(kernel_size if stride is None else stride)
    return x.slid(lambda values, pad: F.max_pool2d(values, kernel, step), kernel, step, (0, 0), 0)


def _relu(x: Any, inplace: bool = False) -> Any:
    return x.each(torch.relu)


def _normalise(x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, *more: Any, **named: Any) -> Any:
    return NotImplemented if training else x.each(lambda values: F.batch_norm(values, mean, var, weight, bias, False, *more, **named))


def _pair(value: Any) -> Pair:
    return value if isinstance(value, tuple) else (value, value)


_WAYS: dict[Any, Callable[..., Any]] = {
    torch.conv2d: _convolve,
    F.max_pool2d: _pool,
    F.relu: _relu,
    torch.relu: _relu,
    F.batch_norm: _normalise,
    torch.add: lambda one, two: one + two,
}


def _through(network: Network, blocks: int, value: Any) -> Any:
    for name in network.block_names[:blocks]:
        value = network.run_block(name, value)
    return value


@torch.no_grad()
def _multiplications(network: Network, example: Tensor) -> int:
    """Of a pass of the example (1, C, H, W), in convolutions and linear layers."""
    count = 0

    def counted(module: Any, inputs: Any, output: Tensor) -> None:
        nonlocal count
        count += module.weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(counted) for layer in layers]
    try:
        network.trace(example)
    finally:
        for handle in handles:
            handle.remove()
    return count
