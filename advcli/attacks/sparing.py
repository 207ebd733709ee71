"""Passes that are foreseen to come to nothing: who makes them all the same, and how they are counted."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks.state import State
from advcli.attacks.surrogate import Cost
from advcli.draws import Draws

SAMPLE = 1 / 32
"""Of what is foreseen to come to nothing is done all the same, so that the foresight's mistakes are seen and counted."""


def give_up(state: State, hopeless: Tensor, left: Tensor, draws: Draws, cost: Cost) -> Tensor:
    """(N,) bool: runs of hopeless (N,) bool that end here, spared the left (N,) passes before them; a sample goes on, watched."""
    sample = draws.sub("sample").uniform(()) < SAMPLE
    hopeless = hopeless & ~state["over"] & ~state["hit"]
    state["sampled"] = state["sampled"] + (hopeless & sample & ~state["watched"]).long()
    state["watched"] = state["watched"] | (hopeless & sample)
    gives_up = hopeless & ~sample
    spared = torch.where(gives_up, left, 0)
    state["spared"] = state["spared"] + spared
    cost.spared += int(spared.sum())
    return gives_up


def book_mistakes(state: State, broken: Tensor) -> None:
    """Of runs that were given up but for the sample, those that the judge saw break their image after all, broken (N,) bool."""
    state["mistaken"] = state["mistaken"] + (state["watched"] & broken).long()
