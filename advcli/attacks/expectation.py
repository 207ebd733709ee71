"""Expectation over a network's own randomness (EOT, Athalye et al. 2018): what an attack on a random network follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from advcli.attacks.surrogate import Condition, Cost, Loss, Surrogate, gradient_of
from advcli.models import ModelOutput

DRAWS = 20
"""Forwards and backwards that are averaged, as AutoAttack's `rand` version does (Croce, Hein 2020)."""

_ROWS = 1024  # rows of one pass at most: more than fill any device, and fewer than fill its memory


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Whatever draws from torch's global generators inside starts from seed; they are put back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class ExpectedSurrogate(Surrogate):
    """Means over DRAWS answers of a random network. Costs DRAWS forwards, and as many backwards, for every image.

    apart: rows of one batch draw for themselves, so the draws of an image go through together; else one draw serves a whole batch,
    and they go one after another.
    """

    def __init__(self, trace: Callable[[Tensor], ModelOutput], cost: Cost | None = None, *, apart: bool) -> None:
        super().__init__(trace, cost, repeatable=False)
        self.apart = apart

    def __call__(self, x: Tensor, condition: Condition) -> ModelOutput:
        outputs = [_mean(super(ExpectedSurrogate, self).__call__(_repeat(x, m), condition), m) for m in self._groups(len(x))]
        return _join(outputs, self._groups(len(x)))

    def gradient(self, loss: Loss, x: Tensor, y: Tensor, condition: Condition) -> tuple[Tensor, Tensor, ModelOutput]:
        total, losses, outputs = torch.zeros_like(x), x.new_zeros(len(x)), []
        for m in self._groups(len(x)):
            many = {key: _repeat(value, m) for key, value in condition.items()}
            leaf = _repeat(x, m).detach().requires_grad_(True)
            with torch.enable_grad():
                output = super().__call__(leaf, many)
                values = loss(output, _repeat(y, m), many)
            self.cost.backwards += len(leaf)
            total += gradient_of(values, leaf).view(len(x), m, *x.shape[1:]).sum(1)
            losses += values.detach().view(len(x), m).sum(1)
            outputs.append(_mean(output.detach(), m))
        return total / DRAWS, losses / DRAWS, _join(outputs, self._groups(len(x)))

    def _groups(self, n: int) -> list[int]:
        """Sizes of the groups of draws that pass together; they sum to DRAWS."""
        together = max(1, min(DRAWS, _ROWS // max(1, n))) if self.apart else 1
        return [min(together, DRAWS - done) for done in range(0, DRAWS, together)]


def _repeat(x: Tensor, m: int) -> Tensor:
    return x.repeat_interleave(m, 0)


def _mean(output: ModelOutput, m: int) -> ModelOutput:
    """Means of the logits over groups of m rows; the maps are those of each group's first."""
    logits, *aux = (head.view(-1, m, head.shape[1]).mean(1) for head in (output.logits, *output.aux_logits))
    return ModelOutput(logits, tuple(aux), output.features[::m], output.ungated[::m])


def _join(outputs: list[ModelOutput], sizes: list[int]) -> ModelOutput:
    """The mean of group means, each weighed by its size."""
    weights = [size / sum(sizes) for size in sizes]
    heads = zip(*((output.logits, *output.aux_logits) for output in outputs), strict=True)
    logits, *aux = (torch.stack([w * head for w, head in zip(weights, parts, strict=True)]).sum(0) for parts in heads)
    return outputs[0]._replace(logits=logits, aux_logits=tuple(aux))
