"""Passes that are foreseen to come to nothing: how a run's pace is followed, who goes on all the same, and how they are counted."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks.state import State
from advcli.attacks.surrogate import Cost
from advcli.draws import Draws

SAMPLE = 1 / 32
"""The share of what is foreseen to come to nothing that is done all the same, so that the foresight's mistakes are seen and counted."""

_RISES = 3.0  # times the last stretch's pace, at which a run must still not arrive


def unpaced(nothing: Tensor, *names: str) -> State:
    """What `too_slow` keeps of the state's numbers names, for fresh rows; nothing (N,): minus infinity."""
    kept = {f"{name}_before": nothing.clone() for name in names}
    return kept | {f"{name}_rise": -nothing for name in names}


def too_slow(state: State, name: str, way: Tensor, stretches: Tensor, ends: Tensor, least: float = 0.0) -> Tensor:
    """(N,) bool: at thrice the pace of its last stretch the state's number name does not come its way (N,) in so many stretches (N,).

    Of rows of ends (N,) bool, which are at the end of a stretch; for the others it says nothing. A run that was quicker than in the
    stretch before, or rose by less than least, may be on a plateau's end: it is not too slow.
    """
    rise = state[name] - state[f"{name}_before"]
    slow = ends & (rise >= least) & (rise <= state[f"{name}_rise"]) & (way > _RISES * rise * stretches)
    state[f"{name}_before"] = torch.where(ends, state[name], state[f"{name}_before"])
    state[f"{name}_rise"] = torch.where(ends, rise, state[f"{name}_rise"])
    return slow


def give_up(state: State, hopeless: Tensor, left: Tensor, draws: Draws, cost: Cost) -> Tensor:
    """(N,) bool: runs of hopeless (N,) bool that end here, spared the left (N,) passes before them; a sample goes on."""
    hopeless = hopeless & ~state["over"] & ~state["hit"]
    if not bool(hopeless.any()):
        return hopeless
    sample = draws.sub("sample").uniform(()) < SAMPLE
    state["sampled"] = torch.maximum(state["sampled"], (hopeless & sample).long())
    spared = torch.where(hopeless & ~sample, left, 0)
    state["spared"] = state["spared"] + spared
    cost.spared += int(spared.sum())
    return hopeless & ~sample


def book_mistakes(state: State, broken: Tensor) -> None:
    """Of runs that were given up but for the sample, those that the judge saw break their image after all, broken (N,) bool."""
    state["mistaken"] = state["sampled"] * broken.long()
