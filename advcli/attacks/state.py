"""The state of an attack: rows of live examples, and how they are begun, looked at, taken apart and put together."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks.losses import margin
from advcli.attacks.surrogate import Condition

State = dict[str, Tensor]
"""Rows of live examples, first axis everywhere. Every attack keeps `x`, `y`, `x_adv` (the candidate), `step` (iterations so
far), `hit` (the surrogate is fooled at x_adv), `over` (no iterations left; x_adv was not looked at yet), `excused` (the judge
was not fooled at x_adv: go on), `forwards` and `backwards` (passes spent), `wasted` (passes beside them, thrown away), `spared`
(passes foreseen to come to nothing, and not made), `sampled` (1: the run would have been given up, and goes on to see what comes of
it), `mistaken` (1: it broke its image), `queries_sampled` (proposals looked at that were foreseen to lower the margin),
`queries_mistaken` (those of them that raised it); `best` (the best point by the surrogate) where that need not be
x_adv. The pool adds `judged` (times the judge was asked), `position` (-1: a free row, which comes to the attack as `over`), `run`,
`index` and the condition's tensors as `given.NAME`. Empty where there are no rows."""


SPARING = ("spared", "sampled", "mistaken", "queries_sampled", "queries_mistaken")


def fresh(x: Tensor, y: Tensor, x_adv: Tensor) -> State:
    """The entries that every attack's state has."""
    zeros, no = torch.zeros_like(y), torch.zeros_like(y, dtype=torch.bool)
    counts = {name: zeros.clone() for name in ("step", "forwards", "backwards", "wasted", *SPARING)}
    return {"x": x, "y": y, "x_adv": x_adv, **counts, "hit": no, "over": no.clone(), "excused": no.clone()}


def note_hits(state: State, logits: Tensor, threshold: float) -> Tensor:
    """Set `hit` (N,) where x_adv's logits (N, K) reach threshold, but for a row that the judge has just refused at this point."""
    state["hit"] = (margin(logits.float(), state["y"]) >= threshold) & ~state["excused"]
    state["excused"] = torch.zeros_like(state["excused"])
    return state["hit"]


def given(state: State) -> Condition:
    """The condition of the rows of a state."""
    return {key.removeprefix("given."): value for key, value in state.items() if key.startswith("given.")}


def size(state: State) -> int:
    """How many rows it has."""
    return len(next(iter(state.values()))) if state else 0


def pick(state: State, rows: Tensor | slice) -> State:
    """The rows that positions, a mask (N,) or a slice tell."""
    return {key: value[rows] for key, value in state.items()}


def join(first: State, second: State) -> State:
    """The rows of both."""
    if not size(first) or not size(second):
        return first if size(first) else second
    return {key: torch.cat([first[key], second[key]]) for key in second}
