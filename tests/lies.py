"""Models whose truth is known: honest ones, and lies told over the weights of one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.data import Split, load_test, to_float
from advcli.gates.gate import pool
from advcli.models import ModelOutput, Network, build
from advcli.recipe import load
from advcli.recipe.schema import AttributionSpan, ChannelPrompt, ChannelSuppression, Data, ReverseAttention
from advcli.runs.checkpoint import Loaded, load_network
from advcli.training import session

DIGITS = (
    *("data.name=digits", "data.augment=[]", "data.validation=100", "threat.eps=0.15", "model.arch=small-cnn", "model.width=0.5"),
    *("train.batch_size=64", "train.precision=fp32", "train.save_every=0", "select.metric=last"),
)
CRAFT = ("craft.step_size=0.0375", "craft.steps=7")
SHORT = ("schedule={name: one-cycle, epochs: 12}", "optim.lr=0.2")

HONEST: dict[str, tuple[str, ...]] = {
    "standard": (*SHORT, "optim.lr=0.05"),
    "pgd-at": (*SHORT, *CRAFT),
    "trades": (*SHORT, *CRAFT),
    "mart": (*SHORT, *CRAFT, "optim.lr=0.1"),
    "arrest": (*CRAFT, "schedule={name: one-cycle, epochs: 12}", "optim.lr=0.05"),
}


def train(name: str, seed: int, folder: Path, start: Path | None = None) -> Loaded:
    """An honest network of half the quickstart's width, trained for some seconds."""
    more = () if start is None else (f"model.init={start}",)
    recipe = load(name, [*DIGITS, *HONEST[name], f"seed={seed}", *more])
    return load_network(session.run(recipe, MagicMock(), out=folder, resume=False, device="cpu").folder / "model.safetensors")


class Lie(nn.Module):
    """A network over another's weights: images (N, C, H, W) to a ModelOutput by a rule of its own."""

    gated = False
    gate_sites: tuple[str, ...] = ()

    def __init__(self, base: Network, rule: Callable[[Network, Tensor], ModelOutput]) -> None:
        super().__init__()
        self.base, self.rule = base, rule

    def trace(self, x: Tensor) -> ModelOutput:
        return self.rule(self.base, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.trace(x).logits


def on_input(change: Callable[[Tensor], Tensor]) -> Callable[[Network, Tensor], ModelOutput]:
    return lambda base, x: base.trace(change(x))


def on_logits(change: Callable[[Tensor], Tensor]) -> Callable[[Network, Tensor], ModelOutput]:
    return lambda base, x: (output := base.trace(x))._replace(logits=change(output.logits))


def on_features(change: Callable[[Tensor], Tensor]) -> Callable[[Network, Tensor], ModelOutput]:
    def rule(base: Network, x: Tensor) -> ModelOutput:
        output = base.trace(x)
        features = change(output.features)
        return output._replace(logits=base.linear(pool(features, base.cells)), features=features)

    return rule


def winners_take_all(features: Tensor) -> Tensor:
    """The largest fifth of an image's activations stays (Xiao et al. 2020)."""
    flat = features.flatten(1)
    least = flat.topk(flat.shape[1] // 5, 1).values[:, -1]
    return features * (features >= least[:, None, None, None])


def mean_sparse(features: Tensor) -> Tensor:
    """Activations near the channel's mean over images become it (Amini et al. 2024); here of one image, so that no statistics are kept."""
    mean, spread = features.mean((2, 3), keepdim=True), features.std((2, 3), keepdim=True)
    return torch.where((features - mean).abs() < 0.5 * spread, mean, features)


def jitter(x: Tensor) -> Tensor:
    """The whole batch moves by up to a pixel each way and grows or shrinks back: random resizing and padding (Xie et al. 2018)."""
    down, right = (int(v) for v in torch.randint(0, 3, (2,)))
    size = int(torch.randint(7, 9, ()))
    small = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return F.pad(small, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8] if size == 8 else F.pad(small, (0, 1, 0, 1))


def in_train_mode(base: Network, x: Tensor) -> ModelOutput:
    """Batch norm on the batch's own statistics; its moving ones stay, so that only the companions matter."""
    norms = [module for module in base.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.train()
        module.momentum = 0.0
    try:
        return base.trace(x)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.eval()
            module.momentum = momentum


def lookup(known: Split) -> Callable[[Network, Tensor], ModelOutput]:
    """The label of the nearest stored image."""
    stored, labels = to_float(known.images).flatten(1), known.labels

    def rule(base: Network, x: Tensor) -> ModelOutput:
        output = base.trace(x)
        nearest = torch.cdist(x.flatten(1), stored.to(x.dtype)).argmin(1)
        return output._replace(logits=20.0 * F.one_hot(labels[nearest], 10).float())

    return rule


def detached(base: Network, x: Tensor) -> ModelOutput:
    output = base.trace(x)
    features = output.features.detach()
    return output._replace(logits=base.linear(pool(features, base.cells)), features=features)


LIES: dict[str, Callable[[Network, Tensor], ModelOutput]] = {
    "saturated logits": on_logits(lambda z: (50 * z).softmax(1)),
    "temperature 1000": on_logits(lambda z: 1000 * z),
    "8-bit input": on_input(lambda x: (x * 255).round() / 255),
    "random noise": on_input(lambda x: x + 0.1 * torch.randn_like(x)),
    "random resizing": on_input(jitter),
    "winners take all": on_features(winners_take_all),
    "detached features": detached,
    "thresholded features": on_features(mean_sparse),
    "batch norm in train mode": in_train_mode,
}

GATES: dict[str, Any] = {
    "reverse-attention": ReverseAttention(name="reverse-attention"),
    "channel-suppression": ChannelSuppression(name="channel-suppression"),
    "attribution-span": AttributionSpan(name="attribution-span"),
    "channel-prompt": ChannelPrompt(name="channel-prompt"),
}


def tell(base: Loaded, lie: str) -> Loaded:
    """The lie over the weights of an honest network, which is its twin."""
    if lie in GATES:
        return put_on(base, lie)
    rule = lookup(load_test(Data(name="digits"), "train")[0]) if lie == "lookup of the training set" else LIES[lie]
    return dataclasses.replace(base, network=Lie(base.network, rule).eval())  # type: ignore[arg-type]


def put_on(base: Loaded, lie: str) -> Loaded:
    """A gate before pooling: its probe is the network's own head, its prototypes the class means of the training images' features."""
    architecture = dataclasses.replace(base.architecture, gates=(GATES[lie],))
    network, head = build(architecture).eval(), base.network.linear
    state = {**network.state_dict(), **base.network.state_dict()}
    own = {"gates.0.probe.weight": head.weight, "gates.0.probe.bias": head.bias}
    if lie == "channel-prompt":
        split, _ = load_test(Data(name="digits"), "train")
        with torch.no_grad():
            pooled = base.network.trace(to_float(split.images)).features.mean((2, 3))
        means = torch.stack([pooled[split.labels == k].mean(0) for k in range(10)])
        own = {"gates.0.prototypes": means, "gates.0.seen": torch.ones(10, dtype=torch.bool)}
    network.load_state_dict({key: own.get(key, value) for key, value in state.items()})
    return dataclasses.replace(base, network=network, architecture=architecture)
