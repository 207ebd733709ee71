"""The active test (Zimmermann et al., NeurIPS 2022): does an attack find an adversarial point that is known to be there?

For each image a new binary head is put on the network's features, which tells random points well inside the ball from one
point on its surface. So an adversarial point exists, known to us and not to the attack. An attack that does not find one on
a network whose gradients are in order has no business to call anything robust.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from advcli.attacks import Apgd, Cost, Surrogate, Threat
from advcli.attacks.state import pick
from advcli.draws import Draws
from advcli.gates.gate import pool
from advcli.models import ModelOutput

IMAGES = 32
"""Images at most: each takes POINTS forwards and an attack."""

POINTS = 100
_INSIDE = 0.95  # radius of the inner points, in eps
_STEPS = 100


def active_test(
    trace: Callable[[Tensor], ModelOutput], threat: Threat, images: Tensor, draws: Draws, cost: Cost, *, repeatable: bool = True
) -> tuple[Tensor, Tensor]:
    """Pair (N,) bool: an adversarial point was planted for the image; Auto-PGD found one. Both False for images not tested.

    images (N, C, H, W) in [0, 1]. An image whose points no linear head tells apart is not tested.
    repeatable: the network answers alike in whatever company, so images that have been found are let go.
    """
    planted, found = (torch.zeros(len(images), dtype=torch.bool, device=images.device) for _ in range(2))
    x, some = images[:IMAGES], draws.select(torch.arange(min(IMAGES, len(images)), device=images.device))
    heads = [_head(trace, threat, x[i : i + 1], some.select(torch.tensor([i], device=x.device)), cost) for i in range(len(x))]
    rows = torch.tensor([i for i, head in enumerate(heads) if head is not None], dtype=torch.int64, device=x.device)
    if not len(rows):
        return planted, found
    weight, bias = (torch.stack(parts) for parts in zip(*(head for head in heads if head is not None), strict=True))
    planted[rows] = True
    see = partial(_seen, trace, weight, bias)
    found[rows] = _attack(see, threat, x[rows], some.select(rows), cost, repeatable=repeatable)
    return planted, found


def _features(output: ModelOutput) -> Tensor:
    """(N, D) what the network's own head reads: pooled, where it is a map."""
    return output.features if output.features.dim() == 2 else pool(output.features, 1)


@torch.no_grad()
def _head(trace: Callable[[Tensor], ModelOutput], threat: Threat, x: Tensor, draws: Draws, cost: Cost) -> tuple[Tensor, Tensor] | None:
    """(weight (D,), bias ()) of a head over 0 at the planted point and under 0 at the image and inner points; None where there is none."""
    inner = Threat(threat.norm, _INSIDE * threat.eps, threat.bounds)
    points = [x, *(inner.random_start(x, draws.sub("inner").at(number)) for number in range(POINTS - 1))]
    points.append(threat.surface_start(x, draws.sub("planted")))
    cost.forwards += len(points)
    features = _features(trace(torch.cat(points))).double()
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-12)
    standard = ((features - mean) / scale).cpu().numpy()
    side = [0] * POINTS + [1]
    if not bool(torch.isfinite(features).all()) or float(features.std(0).max()) < 1e-12:
        return None
    weight = torch.from_numpy(LogisticRegression(C=1e4, class_weight="balanced", max_iter=200).fit(standard, side).coef_[0])
    weight = weight.to(features) / scale
    scores = (features - mean) @ weight
    highest = scores[:-1].max()
    if scores[-1] <= highest:
        return None
    threshold = (scores[-1] + highest) / 2
    sharp = 2 / (scores[-1] - highest)  # logits of one at the planted point, whatever the features' scale
    return (sharp * weight).float(), (-sharp * (threshold + mean @ weight)).float()


def _attack(
    see: Callable[[Tensor, Tensor], ModelOutput], threat: Threat, x: Tensor, draws: Draws, cost: Cost, *, repeatable: bool
) -> Tensor:
    """(N,) bool: Auto-PGD reached the other side of its image's head. see: numbers of images, and a point of each, to an output."""
    attack, y = Apgd(threat, "ce", steps=_STEPS, spares=False), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    state = attack.begin(x, y, draws.sub("start"), {}, y) | {"row": torch.arange(len(x), device=x.device)}
    reached = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(_STEPS):
        if bool(reached.all()):
            break
        attack.advance(Surrogate(partial(see, state["row"]), cost), state, 0.0, draws)
        reached[state["row"]] |= state["hit"]
        state = pick(state, ~state["hit"]) if repeatable else state
    return reached


def _seen(trace: Callable[[Tensor], ModelOutput], weight: Tensor, bias: Tensor, rows: Tensor, points: Tensor) -> ModelOutput:
    """The network with the heads (n, D) and (n,) of images rows (N,)."""
    output = trace(points)
    score = (_features(output).float() * weight[rows]).sum(1) + bias[rows]
    return output._replace(logits=torch.stack([-score / 2, score / 2], 1), aux_logits=())
