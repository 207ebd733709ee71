"""Square Attack (Andriushchenko et al., ECCV 2020): random search with squares, by the margin alone; each example its own squares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.losses import margin
from advcli.attacks.pool import PooledAttack
from advcli.attacks.state import State, fresh, given
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.attacks.threat import Threat, l2
from advcli.draws import Draws

_SHRINK_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share of pixels is halved
_BLOCK = 50  # queries whose draws are made together
_UNIT = 50  # forwards in one unit of work, at most
_TINY = 1e-12


@dataclass(frozen=True)
class Square(PooledAttack):
    """A start and then `queries` proposals: a square of one colour a channel at a random place (linf), or mass moved between two (l2).

    A proposal is kept where it raises the margin. share: of the pixels, for the first squares. The published attack draws
    one square for a whole batch; here every example has its own, by its name and query number.

    Rows that nobody needs look ahead: they ask an example's next queries at once, all made from its best point as it is. The
    first that raises the margin is kept and those after it are thrown away, to be made anew from the new best point, so that
    the example goes the way that it would have gone alone. Few queries raise the margin, so little is thrown away.

    Squares soon are small. Where the surrogate is incremental, queries whose square fits its window cost what the square reaches.
    """

    needs_float32: ClassVar[bool] = True  # it keeps what raises the margin by little, which rounding hides: it ends on lower margins
    needs_gradient: ClassVar[bool] = False

    threat: Threat
    queries: int = 5000
    share: float = 0.8

    @property
    def passes(self) -> int:
        return self.queries + 2

    def slots(self, images: int, chunk: int, *, repeatable: bool = True) -> float:
        """Rows that would idle look ahead. Query q raises about one margin in 2 sqrt(q), and with it half of the looks ahead are lost."""
        if not repeatable:
            return super().slots(images, chunk)
        return images * self.passes + (-images % chunk) * math.sqrt(self.queries) / 2

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        start = _stripes(self.threat, x, draws) if self.threat.norm == "linf" else _tiles(self.threat, x, draws)
        return {**fresh(x, y, start), "best": start.clone(), "best_margin": x.new_full((len(x),), -torch.inf)}

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        self._pass_over(state)
        look = torch.arange(len(state["y"]), device=state["y"].device)
        live = torch.nonzero(~state["hit"] & ~state["over"])[:, 0]
        if not len(live):
            return
        small = self._first_small(surrogate, min(state["x"].shape[2:]))
        low, high = (int(step) for step in torch.aminmax(state["step"][live]))
        near, end = low >= small, small if low < small else self.queries + 1  # one kind of forward at a time
        if low < small <= high:  # those with small squares wait for the others
            live = live[state["step"][live] < small]
            high = int(state["step"][live].max())
        active = live if surrogate.repeatable else look
        turn, ahead = look % len(active), look // len(active)
        owner, most = active[turn], -(-len(look) // len(active))  # whose look it is; looks of one row in one forward
        x, y, condition = state["x"][owner], state["y"][owner], {key: value[owner] for key, value in given(state).items()}
        forwards = min(_UNIT, -(-(end - high) // most))  # whoever is done makes room
        begin = state["step"][active] // _BLOCK * _BLOCK
        random = _draw(draws.sub("squares").select(active), begin, forwards * most, 5 + x.shape[1])
        sizes = self._sizes(torch.arange(self.queries + 1, device=x.device) - 1, min(x.shape[2:]))
        propose = propose_linf if self.threat.norm == "linf" else propose_l2
        for _ in range(forwards):
            query = state["step"][owner] + ahead
            best, size, numbers = state["best"][owner], sizes[query.clamp_max(self.queries)], random[turn, query - begin[turn]]
            candidate = propose(self.threat, x, best, size, numbers)
            candidate = torch.where((query > 0)[:, None, None, None], candidate, best)  # the first query is the start
            with torch.no_grad():
                if near:
                    corner = (_corner(length, size, numbers[:, axis]) for axis, length in enumerate(x.shape[2:]))
                    output = surrogate.near(state["best"], owner, candidate, *corner)
                else:
                    output = surrogate(candidate, condition)
            self._account(state, owner, query, candidate, margin(output.logits.float(), y), threshold, end)

    def phases(self, surrogate: Surrogate, side: int) -> list[tuple[int, int]]:
        small = self._first_small(surrogate, side)
        return [(0, small), (small, self.queries + 1 - small)] if small <= self.queries else [(0, small)]

    def come_to(self, state: State, step: int) -> None:
        super().come_to(state, step)
        if step:
            state["best_margin"] = torch.full_like(state["best_margin"], torch.inf)  # few queries raise it then

    def _first_small(self, surrogate: Surrogate, side: int) -> int:
        """The query from which on squares fit the surrogate's window, in images of that side; the number of all where it has none."""
        return self.queries + 1 - (self.small_queries(side, surrogate.incremental.side) if surrogate.incremental else 0)

    def small_queries(self, side: int, window: int) -> int:
        """How many queries change no more of an image of that side than a window."""
        return int((self._sizes(torch.arange(self.queries), side) <= window).sum()) if self.threat.norm == "linf" else 0

    def _sizes(self, query: Tensor, side: int) -> Tensor:
        """(N,) sides of the squares for query numbers counted from 0; odd and at least 3 for l2, whose pattern has a middle."""
        halvings = torch.stack([query > after for after in _SHRINK_AFTER]).sum(0).double()
        size = torch.round(torch.sqrt(self.share * 0.5**halvings) * side).long()
        if self.threat.norm == "l2":
            size = size.clamp_min(3)
            size = size + (size % 2 == 0).long()
        return size.clamp(1, side)

    def _pass_over(self, s: State) -> None:
        """A proposal that the judge refused was a query all the same; only a better one goes before the judge again."""
        s["step"] = s["step"] + s["excused"].long()
        s["over"] = s["over"] | (s["step"] > self.queries)
        s["excused"] = torch.zeros_like(s["excused"])

    def _account(self, s: State, owner: Tensor, query: Tensor, candidate: Tensor, now: Tensor, threshold: float, end: int) -> None:
        """Keep each row's first look that raises its margin; rows that have fooled the surrogate, or are out of queries, stand still.

        Look i was at candidate[i], with the margin now[i], for query[i] of row owner[i]; a row's queries come in their order. Queries
        from end on were not asked.
        """
        look, none = torch.arange(len(owner), device=owner.device), len(owner)
        asked = ~(s["hit"] | s["over"])[owner] & (query < end)
        raising = torch.where(asked & (now > s["best_margin"][owner]), look, none)
        first = torch.full_like(s["step"], none).scatter_reduce(0, owner, raising, "amin")
        used = asked & (look <= first[owner])
        better, first = first < none, first.clamp_max(none - 1)
        s["best"] = torch.where(better[:, None, None, None], candidate[first], s["best"])
        s["best_margin"] = torch.where(better, now[first], s["best_margin"])
        s["x_adv"] = s["best"]
        fooled = better & (now[first] >= threshold)
        queries = torch.zeros_like(s["step"]).index_add(0, owner, used.long())
        s["hit"] = s["hit"] | fooled
        s["forwards"] = s["forwards"] + queries
        s["wasted"] = s["wasted"].index_add(0, owner, (asked & ~used).long())
        s["step"] = s["step"] + queries - fooled.long()
        s["over"] = s["over"] | (~s["hit"] & (s["step"] > self.queries))


def _draw(draws: Draws, begin: Tensor, queries: int, numbers: int) -> Tensor:
    """(N, Q, numbers) in [0, 1) for queries from begin (N,), a block's first, on; Q is enough for as many from anywhere in that block."""
    block = torch.arange((queries + _BLOCK - 2) // _BLOCK + 1, device=begin.device)
    every = draws.select(torch.arange(len(begin), device=begin.device).repeat_interleave(len(block)))
    counter = (begin[:, None] // _BLOCK + block).flatten()
    return every.at(counter).uniform((_BLOCK, numbers)).view(len(begin), -1, numbers)


def _stripes(threat: Threat, x: Tensor, draws: Draws) -> Tensor:
    """The linf start: vertical stripes one pixel wide, +eps or -eps each."""
    signs = 2 * (draws.uniform((x.shape[1], 1, x.shape[3])) < 0.5).float() - 1
    return (x + threat.eps * signs).clamp(*threat.bounds)


def propose_linf(threat: Threat, x: Tensor, best: Tensor, size: Tensor, random: Tensor) -> Tensor:
    """best (N, C, H, W) with a square of side size (N,) pushed to +eps or -eps, a sign a channel; random (N, 5 + C) in [0, 1)."""
    signs = 2 * (random[:, 5:] < 0.5).float() - 1
    square = _window(x, size, random[:, 0], random[:, 1])
    return threat.project(best + 2 * threat.eps * signs[:, :, None, None] * square, x)


def _window(x: Tensor, size: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(N, 1, H, W) float masks of squares of side size (N,) whose places are drawn by u and v (N,) in [0, 1)."""
    top, left = _corner(x.shape[2], size, u), _corner(x.shape[3], size, v)
    return (_offsets(x.shape[2], top, size)[:, :, None] & _offsets(x.shape[3], left, size)[:, None, :]).float()[:, None]


def _corner(length: int, size: Tensor, u: Tensor) -> Tensor:
    """(N,) first pixel of a square, uniform over every place where it fits."""
    return (u * (length - size + 1)).long().clamp_max(length - 1)


def _offsets(length: int, first: Tensor, size: Tensor) -> Tensor:
    """(N, length) bool: the pixels from first on, size of them."""
    place = torch.arange(length, device=first.device)[None]
    return (place >= first[:, None]) & (place < (first + size)[:, None])


def _pattern(side: int, device: torch.device) -> Tensor:
    """(side, side) of norm 1: two opposite bumps, upper and lower half, each falling off in concentric squares (section 3.3)."""
    if side == 1:
        return torch.ones(1, 1, device=device)
    upper, lower = _bump(side // 2, side, device), _bump(side - side // 2, side, device)
    both = torch.cat([upper, -lower])
    return _normalised(both)


def _bump(height: int, width: int, device: torch.device) -> Tensor:
    """(height, width) of norm 1: at Chebyshev distance d from the middle, the sum of 1 / (k + 1)^2 for k from d on."""
    rows = (torch.arange(height, device=device) - height // 2).abs()
    columns = (torch.arange(width, device=device) - width // 2).abs()
    last = max(height, width) // 2 + 1
    terms = 1.0 / torch.arange(1, last + 1, device=device).float() ** 2
    tail = F.pad(terms.flip(0).cumsum(0).flip(0), (0, 1))
    bump: Tensor = tail[torch.maximum(rows[:, None], columns[None, :]).clamp_max(last)]
    return _normalised(bump)


def _normalised(pattern: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(pattern)
    return pattern / norm


def _tiles(threat: Threat, x: Tensor, draws: Draws) -> Tensor:
    """The l2 start: a grid of patterns, each turned and signed at random, at distance eps."""
    n, channels, height, _ = x.shape
    side = max(1, height // 5)
    count = height // side
    pattern = _pattern(side, x.device)
    turned = draws.sub("turned").uniform((count, count)) < 0.5
    signs = 2 * (draws.sub("signs").uniform((channels, count, count)) < 0.5).float() - 1
    tiles = torch.where(turned[..., None, None], pattern.T, pattern)[:, None] * signs[..., None, None]  # (N, C, rows, columns, side, side)
    grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, count * side, count * side)
    before, after = (height - count * side) // 2, height - count * side - (height - count * side) // 2
    delta = F.pad(grid, (before, after, before, after))
    return (x + threat.eps * delta / l2(delta).clamp_min(_TINY)).clamp(*threat.bounds)


def propose_l2(threat: Threat, x: Tensor, best: Tensor, size: Tensor, random: Tensor) -> Tensor:
    """best with the mass of one random square moved into a pattern in another (algorithm 3); random (N, 5 + C) in [0, 1)."""
    delta = best - x
    channels = x.shape[1]
    signs = (2 * (random[:, 5:] < 0.5).float() - 1)[:, :, None, None]
    here, there = _window(x, size, random[:, 0], random[:, 1]), _window(x, size, random[:, 2], random[:, 3])
    pattern = _placed_patterns(x, size, random)
    budget = (threat.eps**2 - l2(delta) ** 2).clamp_min(0.0) / channels
    mass = (budget + (delta * torch.maximum(here, there)).square().sum((2, 3), keepdim=True)).sqrt()
    own = delta * here
    fresh_mass = signs * pattern + own / (_channel_norm(own) + _TINY)
    fresh_mass = fresh_mass / (_channel_norm(fresh_mass) + _TINY) * mass
    moved = torch.where(here > 0, fresh_mass, delta * (1 - there))
    return (x + threat.eps * moved / l2(moved).clamp_min(_TINY)).clamp(*threat.bounds)


def _channel_norm(delta: Tensor) -> Tensor:
    """(N, C, 1, 1) Euclidean norm of each channel."""
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def _placed_patterns(x: Tensor, size: Tensor, random: Tensor) -> Tensor:
    """(N, 1, H, W): each row's pattern of side size in its first square, zero elsewhere, half of them turned."""
    result = x.new_zeros(len(x), 1, *x.shape[2:])
    top, left = _corner(x.shape[2], size, random[:, 0]), _corner(x.shape[3], size, random[:, 1])
    for side in torch.unique(size).tolist():  # rows of one age have one size, so there are few
        rows = torch.nonzero(size == side)[:, 0]
        pattern = _pattern(side, x.device).to(x)
        turned = torch.where((random[rows, 4] < 0.5)[:, None, None], pattern.T, pattern)
        reach = torch.arange(side, device=x.device)
        result[rows[:, None, None], 0, (top[rows, None] + reach)[:, :, None], (left[rows, None] + reach)[:, None, :]] = turned
    return result
