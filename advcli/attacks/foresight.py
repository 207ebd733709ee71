"""Which of Square's proposals may raise the margin, as far as its gradient can tell: the others are not looked at, but for a sample.

A proposal d changes the margin m by g.d + r sqrt(|g|.|d|). g is the gradient where a block of proposals begins; r, by which the
network is not linear, is measured on every proposal that is looked at. Once some are known, a proposal whose g.d + b sqrt(|g|.|d|)
is not positive is not looked at, b being three root mean squares of r. 1 in 32 of these is looked at all the same; where one raises
the margin, b is twice as large for that image from the next block on. Where g tells nothing r is large, and next to all are looked at.
What errs rarely and by much is seen by the sample alone, so networks that are known to jump are not foreseen (composition.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks.sparing import SAMPLE
from advcli.attacks.state import State
from advcli.attacks.threat import Threat

_WIDTH = 3.0  # root mean squares of r
_MEMORY = 0.5  # of a block's errors in the block after it
_FEW = 8  # looks of which nothing is concluded
_FAINT = 1e-6  # the least slope of a pixel, so that a change of pixels without one is not taken for none
_GROUP = 8  # of the rows are foreseen anew at a time, or an eighth of many


def unknown(x: Tensor) -> State:
    """What fresh rows x (N, C, H, W) know: r^2 summed and counted, and the root mean squares that b is."""
    zero = x.new_zeros(len(x))
    return {"squared": zero, "counted": zero.clone(), "width": torch.full_like(zero, _WIDTH)}


class Foresight:
    """What gradients (N, C, H, W) of the rows' margins tell of proposals: squares from top, left (N, Q) of side size (N, Q) pixels,
    pushed to +eps where up (N, Q, C), else to -eps; sample (N, Q) in [0, 1) chooses those that are looked at anyway.

    worth (N, Q): whether it may raise the margin; looked (N, Q): whether it is to be looked at.
    """

    def __init__(
        self, threat: Threat, state: State, gradient: Tensor, places: tuple[Tensor, Tensor, Tensor], up: Tensor, sample: Tensor
    ) -> None:
        x, self._gradient, self._up = state["x"], gradient, up
        self._ends = [(x + sign * threat.eps).clamp(*threat.bounds) for sign in (1, -1)]
        top, left, size = places
        self._rows, self._columns = within(top, size, x.shape[2]).to(x), within(left, size, x.shape[3]).to(x)
        measured = (state["squared"] / state["counted"]).sqrt()
        told = (state["squared"] > 0) & (state["counted"] >= _FEW)  # no error at all is that of a plateau
        self._bound = (state["width"] * torch.where(told, measured, torch.inf))[:, None]
        self._sampled = sample < SAMPLE
        self._slope, self._scale = self._foresee(state["best"], torch.arange(len(up), device=up.device))
        self._square = torch.zeros_like(self._slope)
        self._seen, self._idle, self._wrong = (torch.zeros_like(self._sampled) for _ in range(3))
        self.worth, self.looked = torch.empty_like(self._sampled), torch.empty_like(self._sampled)
        self._decide(slice(None))

    def improved(self, best: Tensor, rows: Tensor) -> None:
        """Rows (M,) of best (N, C, H, W) are new."""
        size = min(len(best), max(_GROUP, len(best) // _GROUP))
        for part in torch.split(rows, size) if len(rows) else ():
            group = part[torch.arange(size, device=part.device) % len(part)]  # of one size, so that company changes no bit
            self._slope[group], self._scale[group] = self._foresee(best[group], group)
            self._decide(group)

    def note(self, rows: Tensor, queries: Tensor, change: Tensor) -> None:
        """The margin changed by change (M,) where those of the rows were looked at."""
        place = (rows, queries)
        self._square[place] = ((change - self._slope[place]) / self._scale[place]).square()
        self._seen[place] = True
        self._idle[place] = ~self.worth[place]
        self._wrong[place] = ~self.worth[place] & (change > 0)

    def learn(self, state: State, done: Tensor) -> None:
        """Take what was noted into the rows' state; done (N,) bool: those at the end of their block, who forget."""
        memory = torch.where(done, _MEMORY, 1.0)
        state["squared"] = memory * state["squared"] + self._square.sum(1)
        state["counted"] = memory * state["counted"] + self._seen.sum(1)
        state["queries_sampled"] = state["queries_sampled"] + self._idle.sum(1)
        state["queries_mistaken"] = state["queries_mistaken"] + self._wrong.sum(1)
        state["width"] = torch.where(self._wrong.any(1), 2 * state["width"], state["width"])

    def _foresee(self, best: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """g.d and sqrt(|g|.|d|), (M, Q) each, for rows (M,) whose best points are best (M, C, H, W)."""
        g = self._gradient[rows]
        changes = [end[rows] - best for end in self._ends]
        maps = torch.stack([part for d in changes for part in (g * d, (g.abs() + _FAINT) * d.abs())], 2)  # (M, C, 4, H, W)
        lines = torch.bmm(self._rows[rows], maps.permute(0, 3, 1, 2, 4).flatten(2))  # (M, Q, C * 4 * W)
        sums = (lines.view(*lines.shape[:2], *maps.shape[1:3], -1) * self._columns[rows][:, :, None, None]).sum(-1)
        up = self._up[rows]
        slope, scale = (torch.where(up, sums[..., i], sums[..., i + 2]).sum(-1) for i in (0, 1))
        return slope, scale.sqrt()

    def _decide(self, rows: Tensor | slice) -> None:
        hopeless = self._slope[rows] + self._bound[rows] * self._scale[rows] <= 0  # what is no number is not
        changing = self._scale[rows] != 0
        self.worth[rows] = changing & ~hopeless
        self.looked[rows] = self.worth[rows] | (changing & self._sampled[rows])


def within(first: Tensor, size: Tensor, length: int) -> Tensor:
    """(N, Q, length) bool: the pixels from first on, size of them."""
    place = torch.arange(length, device=first.device)
    return (place >= first[..., None]) & (place < (first + size)[..., None])
