"""In which order a targeted attack tries the other classes, when likelihood is not a good guess of what is near."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advcli.attacks.judge import pad
from advcli.attacks.losses import attack_loss
from advcli.attacks.pool import Task
from advcli.attacks.surrogate import Surrogate
from advcli.attacks.threat import Threat

CANDIDATES = 30
"""Only so many of the likeliest classes are ranked: each costs a forward and a backward an image."""


def other_classes(condition: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """(N, K - 1) classes other than y, likeliest first by the clean logits: the targets of AutoAttack's targeted attacks.

    The condition's `order` (N, M), where it is given, instead.
    """
    if "order" in condition:
        return condition["order"]
    masked = condition["logits"].scatter(1, y[:, None], -torch.inf)
    return masked.argsort(dim=1, descending=True, stable=True)[:, :-1]


def by_distance(surrogate: Surrogate, threat: Threat, task: Task, chunk: int) -> Tensor:
    """(n, M) the M <= CANDIDATES likeliest classes other than the label, nearest first to first order at the clean image.

    The boundary towards class t lies about (z_y - z_t) / ||grad (z_y - z_t)|| away, in the dual of the threat's norm (Moosavi-Dezfooli
    et al. 2016, eq. 8; as an order of targets: Melamed, Hein 2024, MALT). task.condition has `logits`. M forwards and backwards an image.
    """
    if not len(task.labels):
        return task.labels.new_zeros(0, 0)
    positions = torch.arange(len(task.labels), device=task.labels.device)
    return torch.cat([_rank(surrogate, threat, task, part, chunk) for part in torch.split(positions, chunk)])


def _rank(surrogate: Surrogate, threat: Threat, task: Task, part: Tensor, chunk: int) -> Tensor:
    positions, size = pad(part, chunk)  # one shape of batch, so that an image's ranks do not depend on its companions
    x, y = task.images(positions), task.labels[positions]
    condition = {key: value[positions] for key, value in task.condition.items()}
    likely = other_classes(condition, y)[:, :CANDIDATES]
    distances = torch.stack([_distance(surrogate, threat, x, y, condition, target) for target in likely.unbind(1)], 1)
    return likely.gather(1, distances.argsort(dim=1, stable=True))[:size]


def _distance(surrogate: Surrogate, threat: Threat, x: Tensor, y: Tensor, condition: dict[str, Tensor], target: Tensor) -> Tensor:
    """(N,) estimated distances to the boundary between y and target, each (N,)."""
    gradient, difference, _ = surrogate.gradient(attack_loss("targeted"), x, y, {**condition, "target": target})
    slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=1 if threat.norm == "linf" else 2, dim=1)
    return -difference / slope.clamp_min(1e-12)
