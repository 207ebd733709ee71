"""Channel-adapted prompting calibration: channels times class prototypes (StayFocused, eq. 11 and 12)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.draws import Draws
from advcli.gates.gate import Gate, Head, Opening, pool
from advcli.gates.selection import mixture, precise
from advcli.gates.whole import whole


class ChannelPrompt(Gate):
    """alpha W[y] + (1 - alpha) / K * sum over the top K classes of W[k] in training, W[argmax] when deployed.

    The top classes are those whose prototypes are likest, by cosine, to the features of the clean twin; y is not left out
    (with K = 1 and a good network the gate is the label's own row, as the paper says). The gate's own decision is the
    largest cosine of the features that it sees. How prototypes are kept is not said in the paper:

    - `mean`: moving means of clean features a class, scaled to mean 1, so that the gate keeps the features' size (ours).
    - `classifier`: the rows of the network's classifier, as class activation maps have them and as eq. 13 suggests. With a
      clean branch its features are compared with these rows, which only the contrast between the two makes alike (ours).

    temperature turns cosines into logits; the paper has no loss on them, and without one the gate's decision is untrained.
    """

    needs_clean_features: ClassVar[bool] = True
    prototypes: Tensor
    seen: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        alpha: float,
        top_k: int,
        prototypes: Literal["mean", "classifier"],
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.alpha, self.top_k, self.momentum, self.temperature = alpha, top_k, momentum, temperature
        self.kept = prototypes == "mean"
        if self.kept:
            # Ones until a class has been seen: such a gate changes nothing.
            self.register_buffer("prototypes", torch.ones(num_classes, channels))
            self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    def _rows(self, head: Head) -> Tensor:
        return self.prototypes if self.kept else head.weight

    def similarity(self, pooled: Tensor, head: Head) -> Tensor:
        """Cosines (N, K) of pooled features (N, C) with the prototypes."""
        rows = self._rows(head)
        return F.normalize(pooled.to(rows.dtype), dim=1) @ F.normalize(rows, dim=1).T

    def score(self, features: Tensor, head: Head) -> Tensor:
        return self.similarity(pool(features), head) / self.temperature

    def matrix(self, head: Head) -> Tensor:
        rows = self._rows(head)
        return rows / rows.mean(1, keepdim=True).clamp_min(1e-6) if self.kept else rows

    @torch.no_grad()
    def opening(self, y: Tensor, num_classes: int, draws: Draws, clean: Tensor | None, head: Head) -> Opening:
        if clean is None:
            raise ValueError("channel-prompt needs the features of the clean images")
        with torch.autocast(clean.device.type, enabled=False):
            likest = self.similarity(clean, head).topk(min(self.top_k, num_classes), 1).indices
        notes = {"prompts_with_label": (likest == y[:, None]).any(1).float().mean()}
        return Opening(mixture([(self.alpha, y), (1 - self.alpha, likest)]), notes)

    @torch.no_grad()
    def follow(self, clean: Tensor, y: Tensor) -> None:
        """P[c] <- momentum P[c] + (1 - momentum) * mean of class c's features in the batch; the first mean is taken as it is."""
        if not self.kept:
            return
        clean, y = whole(precise(clean)), whole(y)
        hot = F.one_hot(y, len(self.prototypes)).to(clean)
        count = hot.sum(0)
        with torch.autocast(clean.device.type, enabled=False):
            mean = (hot.T @ clean) / count.clamp_min(1)[:, None]
        moved = torch.where(self.seen[:, None], self.prototypes.lerp(mean, 1 - self.momentum), mean)
        self.prototypes.copy_(torch.where((count > 0)[:, None], moved, self.prototypes))
        self.seen.logical_or_(count > 0)
