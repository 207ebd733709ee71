"""Adversarial weight perturbation around any objective (Wu, Xia, Wang, NeurIPS 2020, eq. 7 to 10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advcli.data import Batch, DataSet, Moment
from advcli.gates.whole import average_
from advcli.models import Network, batch_norm_state_kept
from advcli.objectives.objective import Crafted, LossParts, Objective

_TINY = 1e-20


class Awp(Objective):
    """Scores and steps at w + gamma |w| g / |g|, g the whole batch's gradient of the inner loss by each weight tensor; then takes
    that off again.

    Convolution and linear weights alone are moved, not batch norm, biases or the objective's own parameters. The
    adversarial examples are those of the unperturbed weights. It starts after `warmup` epochs.
    """

    def __init__(self, inner: Objective, gamma: float, warmup: int) -> None:
        super().__init__()
        self.inner = inner
        self.gamma = gamma
        self.warmup = warmup

    @property
    def crafts_on_a_copy(self) -> bool:
        return self.inner.crafts_on_a_copy

    def setup(self, model: Network, data: DataSet) -> None:
        self.inner.setup(model, data)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.inner.parameter_groups()

    def craft(self, model: Network, batch: Batch, moment: Moment) -> Crafted:
        return self.inner.craft(model, batch, moment)

    def loss(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        return self.inner.loss(model, batch, crafted, moment)

    def observe(self, model: Network, batch: Batch) -> dict[str, Tensor]:
        return self.inner.observe(model, batch)

    def after_step(self, model: Network, batch: Batch, scored: LossParts, moment: Moment) -> None:
        self.inner.after_step(model, batch, scored, moment)

    @contextmanager
    def perturbed(self, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> Iterator[None]:
        if moment.epoch < self.warmup:
            with self.inner.perturbed(model, batch, crafted, moment):
                yield
            return
        weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
        shifts = self._shifts(model, weights, batch, crafted, moment)
        _add(weights, shifts, 1.0)
        try:
            with self.inner.perturbed(model, batch, crafted, moment):
                yield
        finally:
            _add(weights, shifts, -1.0)  # the same shift, so that the optimiser's step is kept

    def _shifts(self, model: Network, weights: list[nn.Parameter], batch: Batch, crafted: Crafted, moment: Moment) -> list[Tensor]:
        """The ascent direction of each weight at length gamma |w|; the probing pass leaves all batch norm as it was."""
        with batch_norm_state_kept(model), batch_norm_state_kept(self.inner):
            total = self.inner.loss(model, batch, crafted, moment).total
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        average_([gradient for gradient in gradients if gradient is not None])
        return [self._shift(w.detach(), g) for w, g in zip(weights, gradients, strict=True)]

    def _shift(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros_like(weight)
        shift: Tensor = gradient * (self.gamma * torch.linalg.vector_norm(weight) / (torch.linalg.vector_norm(gradient) + _TINY))
        return shift


@torch.no_grad()
def _add(weights: list[nn.Parameter], shifts: list[Tensor], sign: float) -> None:
    for weight, shift in zip(weights, shifts, strict=True):
        weight.add_(shift, alpha=sign)
    torch.clear_autocast_cache()  # which may hold bfloat16 copies of the weights as they were
