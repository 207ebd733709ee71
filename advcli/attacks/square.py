"""Square Attack (Andriushchenko et al., ECCV 2020): random search with squares, by the margin alone; each example its own squares."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.attacks.foresight import Foresight, unknown, within
from advcli.attacks.losses import attack_loss, margin
from advcli.attacks.pool import PooledAttack
from advcli.attacks.sparing import book_mistakes, give_up, too_slow, unpaced
from advcli.attacks.state import State, fresh, given
from advcli.attacks.surrogate import Condition, Surrogate
from advcli.attacks.threat import Threat, l2
from advcli.draws import Draws

_SHRINK_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share of pixels is halved
_BLOCK = 100  # queries in a unit of work, whose draws are made together
_LOOKED = 0.45  # share of many queries that is looked at, about, where the rest is foreseen (small residual networks, photographs)
_STRETCH = 1000  # queries after which it is asked whether a search can still come to something, from the second time on
_KEPT = 0.6  # share of many queries that is not given up, about: 0.5 of photographs, 0.7 of digits
_TIMED = 20  # queries by which an attack's clock is set
_TINY = 1e-12


@dataclass(frozen=True)
class Square(PooledAttack):
    """A start and then `queries` proposals: a square of one colour a channel at a random place (linf), or mass moved between two (l2).

    A proposal is kept where it raises the margin. share: of the pixels, for the first squares. The published attack draws
    one square for a whole batch; here every example has its own, by its name and query number.

    spares: of squares of one colour that will lower the margin, as far as its gradient can tell, only a sample is looked at
    (Foresight). And a search that after 2,000 queries or more is short of its boundary by over three times what the queries that are
    left would bring at the pace of the last thousand, no quicker than that of the thousand before, is given up, but for a sample.

    Rows that nobody needs look ahead: they ask an example's next queries at once, all made from its best point as it is. The
    first that raises the margin is kept and those after it are thrown away, to be made anew from the new best point, so that
    the example goes the way that it would have gone alone. Few queries raise the margin, so little is thrown away.
    """

    needs_float32: ClassVar[bool] = True  # it keeps what raises the margin by little, which rounding hides: it ends on lower margins
    follows_gradient: ClassVar[bool] = False

    threat: Threat
    queries: int = 5000
    share: float = 0.8
    spares: bool = True

    @property
    def passes(self) -> int:
        return self.queries + 2 + 2 * self._gradients

    @property
    def _may_foresee(self) -> bool:
        return self.spares and self.threat.norm == "linf"

    @property
    def _gradients(self) -> int:
        return self.queries // _BLOCK + 1 if self._may_foresee else 0

    def slots(self, images: int, chunk: int, *, repeatable: bool = True) -> float:
        """Rows that would idle look ahead. Query q raises about one margin in 2 sqrt(q), and with it half of the looks ahead are lost."""
        if not repeatable:
            return super().slots(images, chunk)
        return images * self.passes + (-images % chunk) * (math.sqrt(self.queries) / 2 + 2 * self._gradients)

    def timed(self, *, repeatable: bool) -> tuple[PooledAttack, float]:
        foreseen = self._may_foresee and repeatable and self.queries >= _BLOCK
        long = self.spares and repeatable and self.queries > 2 * _STRETCH
        share = (_LOOKED if foreseen else 1.0) * (max(_KEPT, 2 * _STRETCH / self.queries) if long else 1.0)
        return replace(self, queries=min(self.queries, _TIMED)), share

    def begin(self, x: Tensor, y: Tensor, draws: Draws, condition: Condition, run: Tensor) -> State:
        start = _stripes(self.threat, x, draws) if self.threat.norm == "linf" else _tiles(self.threat, x, draws)
        nothing = x.new_full((len(x),), -torch.inf)
        return {**fresh(x, y, start), "best": start.clone(), "best_margin": nothing, **unpaced(nothing, "best_margin"), **unknown(x)}

    def advance(self, surrogate: Surrogate, state: State, threshold: float, draws: Draws) -> None:
        self._pass_over(state)
        live, block = ~(state["hit"] | state["over"]), state["step"] // _BLOCK
        if not bool(live.any()):
            return
        squares = _Squares(self, state, draws.sub("squares").at(block).uniform((_BLOCK, 5 + state["x"].shape[1])), block)
        foresight, spared = self._foresight(surrogate, state, squares, live), state["spared"]
        while True:
            open_ = (squares.query >= state["step"][:, None]) & (squares.query <= self.queries) & ~(state["hit"] | state["over"])[:, None]
            wanted = open_ if foresight is None else open_ & (foresight.looked | (squares.query == 0))
            self._come_to(state, torch.where(wanted, squares.query, state["step"][:, None] + open_.sum(1, keepdim=True)).amin(1), 0)
            if not bool(wanted.any()):
                break
            owner, column, asked = _ahead(wanted) if surrogate.repeatable else _own(wanted)
            query, condition = squares.query[owner, column], {key: value[owner] for key, value in given(state).items()}
            candidate = squares.propose(state["best"], owner, column)
            with torch.no_grad():
                now = margin(surrogate(candidate, condition).logits.float(), state["y"][owner])
            before = state["best_margin"][owner]
            used, better = self._account(state, owner, query, candidate, now, asked, threshold)
            if foresight is not None:
                known = torch.nonzero(used & before.isfinite() & now.isfinite())[:, 0]  # what is no number teaches nothing
                foresight.note(owner[known], column[known], (now - before)[known])
                foresight.improved(state["best"], torch.nonzero(better & ~state["hit"])[:, 0])
        if foresight is not None:
            foresight.learn(state, state["step"] % _BLOCK == 0)
        surrogate.cost.spared += int((state["spared"] - spared).sum())
        if self.spares and surrogate.repeatable:
            left = self.queries + 1 - state["step"] + 2 * (self._gradients - state["step"] // _BLOCK if foresight is not None else 0)
            state["over"] = state["over"] | give_up(state, self._hopeless(state, threshold), left, draws, surrogate.cost)

    def judged(self, state: State, broken: Tensor) -> None:
        book_mistakes(state, broken)

    def _hopeless(self, s: State, threshold: float) -> Tensor:
        """(N,) bool: rows that will hardly come to anything. What rounding moves a margin by is no gain, and where nothing is gained
        nothing is concluded; the first stretch begins where the first block ends."""
        ends = ~s["hit"] & ((s["step"] % _STRETCH == 0) | (s["step"] == _BLOCK))
        left = ((self.queries - s["step"]) / _STRETCH).clamp_min(1.0)
        slow = too_slow(s, "best_margin", threshold - s["best_margin"], left, ends, least=max(_TINY, -threshold))
        return slow & (s["step"] >= 2 * _STRETCH) & (s["step"] < self.queries)

    def _foresight(self, surrogate: Surrogate, state: State, squares: _Squares, live: Tensor) -> Foresight | None:
        """What the margins' gradients at the best points tell of a block; a forward and a backward for each live row (N,)."""
        if not (self._may_foresee and surrogate.repeatable):
            return None
        gradient, _, _ = surrogate.gradient(attack_loss("margin"), state["best"], state["y"], given(state))
        for count in ("forwards", "backwards"):
            state[count] = state[count] + live.long()
        return Foresight(self.threat, state, gradient, squares.places, squares.up, squares.random[..., 4])

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

    def _account(
        self, s: State, owner: Tensor, query: Tensor, candidate: Tensor, now: Tensor, asked: Tensor, threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Keep each row's first look that raises its margin; rows that have fooled the surrogate, or are out of queries, stand still.

        Look i was at candidate[i], with the margin now[i], for query[i] of row owner[i], if asked[i]; a row's queries come in their
        order. Returns which looks count, and (N,) bool which rows are better.
        """
        look, none = torch.arange(len(owner), device=owner.device), len(owner)
        raising = torch.where(asked & (now > s["best_margin"][owner]), look, none)
        first = torch.full_like(s["step"], none).scatter_reduce(0, owner, raising, "amin")
        used = asked & (look <= first[owner])
        better, first = first < none, first.clamp_max(none - 1)
        s["best"] = torch.where(better[:, None, None, None], candidate[first], s["best"])
        s["best_margin"] = torch.where(better, now[first], s["best_margin"])
        s["x_adv"] = s["best"]
        fooled = better & (now[first] >= threshold)
        s["hit"] = s["hit"] | fooled
        looks = torch.zeros_like(s["step"]).index_add(0, owner, used.long())
        s["forwards"] = s["forwards"] + looks
        s["wasted"] = s["wasted"].index_add(0, owner, (asked & ~used).long())
        self._come_to(s, s["step"].scatter_reduce(0, owner, torch.where(used, query + 1, 0), "amax"), looks)
        s["step"] = s["step"] - fooled.long()
        return used, better

    def _come_to(self, s: State, step: Tensor, looks: Tensor | int) -> None:
        """Rows come to their queries step (N,); what was passed beside looks is spared."""
        s["spared"] = s["spared"] + (step - s["step"]) - looks
        s["step"] = step
        s["over"] = s["over"] | (~s["hit"] & (step > self.queries))


class _Squares:
    """A block's proposals for every row, and numbers from which they are drawn: random (N, Q, 5 + C) in [0, 1).

    query (N, Q): their numbers; places: top, left and side, (N, Q) each; up (N, Q, C): pushed to +eps.
    """

    def __init__(self, attack: Square, state: State, random: Tensor, block: Tensor) -> None:
        self.threat, self.x, self.random = attack.threat, state["x"], random
        self.query = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=block.device)
        height, width = self.x.shape[2:]
        size = attack._sizes((self.query - 1).flatten(), min(height, width)).view_as(self.query)
        self.places = (_corner(height, size, random[..., 0]), _corner(width, size, random[..., 1]), size)
        self.up = random[..., 5:] < 0.5

    def propose(self, best: Tensor, owner: Tensor, column: Tensor) -> Tensor:
        """(M, C, H, W): proposals in those columns, each from its owner's best point; the first query is the start itself."""
        propose = propose_linf if self.threat.norm == "linf" else propose_l2
        start = best[owner]
        moved = propose(self.threat, self.x[owner], start, self.places[2][owner, column], self.random[owner, column])
        return torch.where((self.query[owner, column] > 0)[:, None, None, None], moved, start)


def _ahead(wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """N looks for wanted (N, Q) bool: (row, column, whether anything), everybody's first before anybody's second."""
    rows, columns = wanted.shape
    row, column = torch.arange(rows, device=wanted.device)[:, None], torch.arange(columns, device=wanted.device)
    turn = torch.where(wanted, wanted.cumsum(1), columns + 1)
    order = ((turn * rows + row) * columns + column).flatten()
    first = order.topk(rows, largest=False).values
    return first // columns % rows, first % columns, first // columns // rows <= columns


def _own(wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where each row looks for itself."""
    return torch.arange(len(wanted), device=wanted.device), wanted.int().argmax(1), wanted.any(1)


def _stripes(threat: Threat, x: Tensor, draws: Draws) -> Tensor:
    """The linf start: vertical stripes one pixel wide, +eps or -eps each."""
    signs = 2 * (draws.uniform((x.shape[1], 1, x.shape[3])) < 0.5).float() - 1
    return (x + threat.eps * signs).clamp(*threat.bounds)


def propose_linf(threat: Threat, x: Tensor, best: Tensor, size: Tensor, random: Tensor) -> Tensor:
    """best (N, C, H, W) with a square of side size (N,) pushed to +eps or -eps, a sign a channel; random (N, 5 + C) in [0, 1)."""
    signs = 2 * (random[:, 5:] < 0.5).float() - 1
    square = _window(x, size, random[:, 0], random[:, 1]) > 0
    return torch.where(square, (x + threat.eps * signs[:, :, None, None]).clamp(*threat.bounds), best)


def _window(x: Tensor, size: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(N, 1, H, W) float masks of squares of side size (N,) whose places are drawn by u and v (N,) in [0, 1)."""
    top, left = _corner(x.shape[2], size, u), _corner(x.shape[3], size, v)
    return (within(top, size, x.shape[2])[:, :, None] & within(left, size, x.shape[3])[:, None, :]).float()[:, None]


def _corner(length: int, size: Tensor, u: Tensor) -> Tensor:
    """(N,) first pixel of a square, uniform over every place where it fits."""
    return (u * (length - size + 1)).long().clamp_max(length - 1)


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
