"""Random numbers by key, not by order: Philox4x32-10 over (seed, purpose, example index, counter).

A draw is a function of its key alone. The same example gets the same noise in any batch, in any order, on any device
and in any number of processes, and a resumed run saves no generator state. Integers and uniforms are exact on every
device; normals go through log and cos, whose last bit may differ between devices.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 of four 32-bit counter words (int64 tensors, shapes broadcast) under a key of two 32-bit words.

    Returns four int64 tensors of the broadcast shape with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 multiplication wraps modulo 2**64, so the bits are those of the unsigned 32 x 32 product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return list(torch.broadcast_tensors(c0, c1, c2, c3))  # type: ignore[no-untyped-call]


def purpose_word(purpose: str) -> int:
    """The 32-bit word that stands for a purpose in the counter (CRC-32 of its name)."""
    return zlib.crc32(purpose.encode())


Counter = int | Tensor
"""In [0, 2**32): one for all examples, or (N,) int64, one for each."""


def _words(key: tuple[int, str], index: Tensor, counter: Counter, size: int) -> list[Tensor]:
    """Four (N, ceil(size / 4)) word tensors for each example of index (N,) int64 in [0, 2**32)."""
    seed, purpose = key
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is in [0, 2**64): got {seed}")
    if isinstance(counter, int) and not 0 <= counter <= _WORD:
        raise ValueError(f"a counter is in [0, 2**32): got {counter}")
    block = torch.arange((size + 3) // 4, device=index.device)[None]
    time = counter[:, None] if isinstance(counter, Tensor) else _constant(counter, index)
    return philox([block, index[:, None], time, _constant(purpose_word(purpose), index)], (seed & _WORD, seed >> 32))


def _constant(value: int, index: Tensor) -> Tensor:
    return torch.full((), value, dtype=torch.int64, device=index.device)  # torch.tensor would make the host wait for the device


def uniform(key: tuple[int, str], index: Tensor, counter: Counter, shape: Sequence[int]) -> Tensor:
    """(N, *shape) float32 in [0, 1), a multiple of 2**-24; key is (seed, purpose), index (N,) int64 names the examples."""
    size = math.prod(shape)
    floats = [(word >> 8).float() for word in _words(key, index, counter, size)]
    return torch.stack(floats, -1).flatten(1)[:, :size].mul_(2.0**-24).view(len(index), *shape)


def integers(key: tuple[int, str], index: Tensor, counter: Counter, high: int, shape: Sequence[int] = ()) -> Tensor:
    """(N, *shape) int64 in [0, high), high at most 2**31; the bias of the multiply-shift is under high / 2**32."""
    if not 0 < high <= 2**31:
        raise ValueError(f"high is in [1, 2**31]: got {high}")
    size = math.prod(shape)
    words = torch.stack(_words(key, index, counter, size), -1).flatten(1)[:, :size]
    return ((words * high) >> 32).view(len(index), *shape)


def normal(key: tuple[int, str], index: Tensor, counter: Counter, shape: Sequence[int]) -> Tensor:
    """(N, *shape) float32 standard normal by Box-Muller, two per pair of words."""
    size = math.prod(shape)
    w0, w1, w2, w3 = _words(key, index, counter, size)
    pairs = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        u = ((radius_word >> 8).float() + 1.0) * 2.0**-24  # in (0, 1], so that the logarithm is finite
        angle = (angle_word >> 8).float() * (2.0**-24 * 2 * math.pi)
        radius = torch.sqrt(-2.0 * torch.log(u))
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, -1).flatten(1)[:, :size].view(len(index), *shape)


@dataclass(frozen=True)
class Draws:
    """A stream that an attack or an objective is handed: who the examples are, and what they draw for.

    seed: the run's or evaluation's seed. index: (N,) int64, the examples' names. purpose: text, one per use.
    counter: moves on with time (training step, restart). Compact it together with the examples by `select`.
    """

    seed: int
    index: Tensor
    purpose: str
    counter: Counter = 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return uniform((self.seed, self.purpose), self.index, self.counter, shape)

    def integers(self, high: int, shape: Sequence[int] = ()) -> Tensor:
        return integers((self.seed, self.purpose), self.index, self.counter, high, shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return normal((self.seed, self.purpose), self.index, self.counter, shape)

    def select(self, keep: Tensor) -> Draws:
        """The stream of the examples that keep, a mask or positions, picks."""
        counter = self.counter[keep] if isinstance(self.counter, Tensor) else self.counter
        return replace(self, index=self.index[keep], counter=counter)

    def at(self, counter: Counter) -> Draws:
        return replace(self, counter=counter)

    def sub(self, purpose: str) -> Draws:
        """A stream of the same examples for a purpose inside this one."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")
