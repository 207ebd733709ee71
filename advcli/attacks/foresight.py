"""Which of Square's proposals will raise the margin, as far as its gradient can tell: those that it is sure will not need no look.

A proposal d changes the margin m by g.d + r sqrt(|g|.|d|). g is the gradient where a block of proposals begins; r, by which the
network is not linear, is measured on every proposal that is looked at. What is left of a proposal whose g.d + b sqrt(|g|.|d|) is not
positive, b being some root mean squares of r, is not looked at, but for a sample of them. Whenever the sample shows that one of these
would have raised the margin, b doubles for that image. Where gradients are masked g tells nothing, r is large and all are looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks.state import State
from advcli.attacks.threat import Threat

_WIDTH = 3.0  # root mean squares of r
_SAMPLE = 1 / 32  # of what needs no look is looked at all the same
_MEMORY = 0.5  # of a block's errors in the block after it
_FAINT = 1e-6  # the least slope of a pixel, so that a change of pixels without one is not taken for none
_GROUP = 8  # of the rows are foreseen anew at a time, or an eighth of many


def unknown(x: Tensor) -> State:
    """What fresh rows x (N, C, H, W) know: r^2 summed and counted, and root mean squares that are enough."""
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
        self._x, self._gradient, self._up = state["x"], gradient, up
        self._ends = [(self._x + sign * threat.eps).clamp(*threat.bounds) for sign in (1, -1)]
        top, left, size = places
        self._rows, self._columns = (
            _within(first, size, length).to(self._x) for first, length in zip((top, left), self._x.shape[2:], strict=True)
        )
        measured = (state["squared"] / state["counted"]).sqrt()
        self._bound = (state["width"] * torch.where(state["counted"] > 0, measured, torch.inf))[:, None]
        self._sampled = sample < _SAMPLE
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
        self._square[place] = (change - self._slope[place]).square() / self._scale[place].square()
        self._seen[place] = True
        self._idle[place] = ~self.worth[place]
        self._wrong[place] = ~self.worth[place] & (change > 0)

    def learn(self, state: State) -> None:
        """Take what was noted into the rows' state."""
        state["squared"] = _MEMORY * state["squared"] + self._square.sum(1)
        state["counted"] = _MEMORY * state["counted"] + self._seen.sum(1)
        state["sampled"] = state["sampled"] + self._idle.sum(1)
        state["mistaken"] = state["mistaken"] + self._wrong.sum(1)
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
        self.worth[rows] = self._slope[rows] + (self._bound[rows] * self._scale[rows]).nan_to_num(0.0, posinf=torch.inf) > 0
        self.looked[rows] = self.worth[rows] | (self._sampled[rows] & (self._scale[rows] > 0))


def _within(first: Tensor, size: Tensor, length: int) -> Tensor:
    """(N, Q, length) bool: the pixels from first on, size of them."""
    place = torch.arange(length, device=first.device)
    return (place >= first[..., None]) & (place < (first + size)[..., None])
