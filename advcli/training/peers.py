"""Others' training loops, written anew from their description, waste included: what a step of ours is measured beside.

Each function is one optimiser step on a network of ours, with that loop's own order of passes, its modes, the graphs that it builds
and the numbers that it reads from the device. They are for the clock alone; train with an objective. F is one forward of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.data import Batch
from advcli.gates import labels
from advcli.models import Network

Heads = tuple[Tensor, ...]  # logits (N, K): the decision's first


@dataclass(frozen=True)
class Plan:
    """What a recipe tells a loop."""

    eps: float
    step_size: float
    steps: int
    beta: float = 0.0
    aux_weight: float = 0.0
    weight: float = 0.0
    alpha: float = 1.0


class Taken(NamedTuple):
    """An optimiser step that was taken: its loss, and the images (N, C, H, W) that it was taken on."""

    loss: float
    x_adv: Tensor


Loop = Callable[[Network, torch.optim.Optimizer, Batch, Plan], Taken]
"""Takes one optimiser step."""


def backward_loop(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Taken:
    """PGD-AT as in robust_overfitting (Rice, Wong, Kolter, ICML 2020): 35 F at 10 steps, where 23 do.

    Each attack step's backward() also fills the weights' gradients, which are thrown away: 10 F. One forward looks once more
    at the crafted images, to choose among restarts of which there is one, and one at the clean images, for the log: 2 F, both
    with a graph. The attack runs in train mode, and four numbers are read from the device.
    """
    x, y = batch.images, batch.labels
    network.train()
    delta = (uniform_start(x, plan.eps) - x).requires_grad_(True)
    for _ in range(plan.steps):
        F.cross_entropy(network(x + delta), y).backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        moved = (delta.detach() + plan.step_size * delta.grad.sign()).clamp(-plan.eps, plan.eps)
        delta.data = (x + moved).clamp(0, 1) - x
        delta.grad.zero_()
    F.cross_entropy(network(x + delta), y, reduction="none")
    x_adv = (x + delta).detach()
    logits = network(x_adv)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    clean = network(x)
    for seen in (logits, clean):
        F.cross_entropy(seen, y).item()
        (seen.argmax(1) == y).sum().item()
    return Taken(loss.item(), x_adv)


def trades_loop(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Taken:
    """TRADES as its authors' code has it (Zhang et al., ICML 2019): 39 F at 10 steps, where 27 do.

    Each attack step passes the clean images again, with a graph that nobody follows: 9 F more than the one pass that is
    needed. The loss passes them twice, and both are differentiated: 3 F more.
    """
    x, y = batch.images, batch.labels
    network.eval()
    x_adv = normal_start(x)
    for _ in range(plan.steps):
        x_adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(_kl(network(x_adv), network(x)), [x_adv])
        x_adv = _moved(x_adv, plan.step_size * gradient.sign(), x, plan.eps)
    network.train()
    optimizer.zero_grad()
    natural = F.cross_entropy(network(x), y)
    robust = _kl(network(x_adv), network(x)) / len(y)
    loss = natural + plan.beta * robust
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return Taken(loss.item(), x_adv.detach())


def ancra_loop(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Taken:
    """TRADES-ANCRA as its authors' code has it (Zhou et al.): 52 F at 10 steps, where 49 do.

    Negatives are picked, and pairs contrasted, one example at a time, each waiting for the device; negatives and adversarial
    examples are crafted one after the other; every pass switches the whole network's mode; three more passes, with graphs, are
    for the log.
    """
    x, y = batch.images, batch.labels
    partner = picked_negatives(y, network.num_classes)
    y_neg = y[partner]
    x_neg = _ancra_attack(network, x[partner], y, -plan.step_size, plan)
    x_adv = _ancra_attack(network, x, y, plan.step_size, plan)
    optimizer.zero_grad()
    clean = _heads(network, x, y)
    natural = _over([F.cross_entropy(head, y) for head in clean], plan)
    robust = _over([_kl(a, c) / len(y) for a, c in zip(_heads(network, x_adv, y), clean, strict=True)], plan)
    pairs = zip(clean, _heads(network, x_neg, y_neg), strict=True)
    contrast = _over([_contrast(c.softmax(1), n.softmax(1), plan.alpha) / len(y) for c, n in pairs], plan)
    loss = natural + plan.beta * robust + plan.weight * contrast
    for images in (x, x_adv, x_neg):
        _heads(network, images, None)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return Taken(loss.item(), x_adv.detach())


def torchattacks_loop(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Taken:
    """PGD-AT with torchattacks' PGD, as MAIR trains: 23 F at 10 steps."""
    import torchattacks

    network.train()
    attack = torchattacks.PGD(network, eps=plan.eps, alpha=plan.step_size, steps=plan.steps, random_start=True)
    return _trained_on(network, optimizer, attack(batch.images, batch.labels), batch.labels)


def foolbox_loop(network: Network, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan) -> Taken:
    """PGD-AT with foolbox's LinfPGD: 34 F at 10 steps, since its backward() fills the weights' gradients and it looks who was fooled."""
    import foolbox

    network.eval()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=plan.step_size, steps=plan.steps, random_start=True)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=batch.images.device)
    x_adv = attack(model, batch.images, batch.labels, epsilons=plan.eps)[1]
    network.train()
    return _trained_on(network, optimizer, x_adv, batch.labels)


def _trained_on(network: Network, optimizer: torch.optim.Optimizer, x_adv: Tensor, y: Tensor) -> Taken:
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x_adv.detach()), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return Taken(loss.item(), x_adv.detach())


def uniform_start(x: Tensor, eps: float) -> Tensor:
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


def normal_start(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn_like(x)


def _moved(x_adv: Tensor, step: Tensor, x: Tensor, eps: float) -> Tensor:
    return torch.min(torch.max(x_adv.detach() + step, x - eps), x + eps).clamp(0, 1)


def _kl(logits: Tensor, reference: Tensor) -> Tensor:
    """Summed over the batch."""
    return F.kl_div(logits.log_softmax(1), reference.softmax(1), reduction="sum")


def picked_negatives(y: Tensor, num_classes: int) -> list[int]:
    """For each example one of another class, drawn with Python's generator: some N (K + 1) numbers are read from the device."""
    members: dict[int, list[int]] = {k: [] for k in range(num_classes)}
    for row, label in enumerate(y):
        members[int(label)].append(row)
    classes = [[k for k in range(num_classes) if (k != label) and members[k]] for label in y]
    return [random.choice(members[random.choice(others)]) for others in classes]


def _ancra_attack(network: Network, x: Tensor, y: Tensor, step: float, plan: Plan) -> Tensor:
    """Up the loss of y, or down where step is negative."""
    x_adv = normal_start(x)
    for _ in range(plan.steps):
        x_adv.requires_grad_(True)
        loss = _over([F.cross_entropy(head, y) for head in _heads(network, x_adv, None)], plan)
        (gradient,) = torch.autograd.grad(loss, [x_adv])
        x_adv = _moved(x_adv, step * gradient.sign(), x, plan.eps)
    return x_adv


def _heads(network: Network, x: Tensor, y: Tensor | None) -> Heads:
    """In train mode through gates that labels y open, or in eval mode as deployed: the mode is set for each pass."""
    network.train(y is not None)
    output = network.trace(x, labels(y) if y is not None else None)
    return (output.logits, *output.aux_logits)


def _over(values: list[Tensor], plan: Plan) -> Tensor:
    """The decision's + aux_weight * the mean of the auxiliary heads'."""
    return values[0] + plan.aux_weight * sum(values[1:], torch.zeros_like(values[0])) / (len(values) - 1)


def _contrast(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """ANCRA's eq. 3, summed over the batch pair by pair."""
    return alpha * _looped(p.detach(), q) + (1 - alpha) * _looped(q.detach(), p)


def _looped(p: Tensor, q: Tensor) -> Tensor:
    (high, at), (other_high, other_at) = p.max(1), q.max(1)
    total = torch.zeros((), dtype=p.dtype, device=p.device)
    for row in torch.nonzero(at == other_at):
        total = total + (high[row[0]] * other_high[row[0]]) ** 0.5
    return total
