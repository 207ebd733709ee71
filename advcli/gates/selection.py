"""Which classes open a gate: the one thing that training, deployment and attacks share.

A selection is a rule, (site, aux) -> s: aux (N, K) are the gate's own auxiliary logits, s (N, K) says how much of each class's
row the gate takes; None leaves the gate open, as if it were not there. A rule and not a tensor, because the logits of the
second gate exist only in mid-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Selection = Callable[[str, Tensor], Tensor | None]


def precise(x: Tensor) -> Tensor:
    """At least float32: what is drawn, normalised or averaged in bfloat16 would lose the small differences that count."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def deployed(site: str, aux: Tensor) -> Tensor:
    """One-hot of the gate's own decision: what runs when nobody gives a label. Piecewise constant, so it hides the gradient."""
    return F.one_hot(aux.argmax(1), aux.shape[1]).to(aux.dtype)


def open_gate(site: str, aux: Tensor) -> None:
    """No gate; its auxiliary head still speaks."""


def mixture(parts: Sequence[tuple[float, Tensor]]) -> Selection:
    """Sum of weight * one_hot(classes), classes (N,) int64, or (N, M) for the mean of M classes. Labels enter here and nowhere else."""

    def select(site: str, aux: Tensor) -> Tensor:
        like = precise(aux)
        shares = [weight * _mean_one_hot(classes, like) for weight, classes in parts]
        return torch.stack(shares).sum(0).to(aux.dtype)

    return select


def _mean_one_hot(classes: Tensor, like: Tensor) -> Tensor:
    hot = F.one_hot(classes, like.shape[1]).to(like.dtype)
    return hot.mean(1) if classes.dim() == 2 else hot


def labels(y: Tensor) -> Selection:
    """The row of each example's class y (N,), as the gates' papers train. Never used for a reported number."""
    return mixture([(1.0, y)])


def soft(temperature: float | Tensor) -> Selection:
    """softmax(aux / temperature): a gate that a gradient passes; tends to `deployed` as the temperature (> 0, or (N, 1)) falls."""
    return lambda site, aux: (aux / temperature).softmax(1)


def straight_through(temperature: float) -> Selection:
    """`deployed` forward, the gradient of `soft` backward (Bengio et al. 2013)."""

    def select(site: str, aux: Tensor) -> Tensor:
        smooth = (aux / temperature).softmax(1)
        return deployed(site, aux) + (smooth - smooth.detach())  # adds an exact zero

    return select


def forced(classes: Tensor | Mapping[str, Tensor]) -> Selection:
    """The row of a class of the caller's choice: classes (N,), the same at all sites, or site -> (N,); other sites as deployed."""

    def select(site: str, aux: Tensor) -> Tensor:
        chosen = classes if isinstance(classes, Tensor) else classes.get(site)
        return deployed(site, aux) if chosen is None else F.one_hot(chosen, aux.shape[1]).to(aux.dtype)

    return select


def by_site(rules: Mapping[str, Selection]) -> Selection:
    """Each site by its own rule; one without a rule as deployed."""
    return lambda site, aux: rules.get(site, deployed)(site, aux)


def joined(first: Selection, second: Selection, n: int) -> Selection:
    """first for the leading n rows of a batch, second for the others; both open a gate or neither does."""

    def select(site: str, aux: Tensor) -> Tensor | None:
        a, b = first(site, aux[:n]), second(site, aux[n:])
        if a is None or b is None:
            if a is not b:
                raise ValueError(f"one half of the batch opens the gate at {site} and the other does not")
            return None
        return torch.cat([a, b])

    return select
