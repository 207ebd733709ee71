"""Fast copies: folding changes no number, every way through a network is there, and low precision stays where it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.gates import forced, open_gate, soft, straight_through
from advcli.models import Architecture, FastCopy, ModelOutput, Network, build, head_of
from advcli.recipe import schema

pytestmark = pytest.mark.usefixtures("one_thread")

K, SIZE = 5, 32
BACKBONES = {"small-cnn": 0.1, "resnet18": 0.06, "preact-resnet18": 0.06, "wrn-28-10": 0.02, "wrn-34-10": 0.02, "vgg16-bn": 0.06}
GATED = {
    "resnet18": schema.ReverseAttention(name="reverse-attention", at=("layer4.0", "layer4.1")),
    "preact-resnet18": schema.AttributionSpan(name="attribution-span", at=("layer2", "layer4.0", "features")),
    "vgg16-bn": schema.ChannelPrompt(name="channel-prompt", at=("layer5.1", "features")),
    "small-cnn": schema.ChannelSuppression(name="channel-suppression", at=("layer2", "features")),
}
CASES = [(arch, ()) for arch in BACKBONES] + [(arch, (gate,)) for arch, gate in GATED.items()]
SHALLOW = [case for case in CASES if not case[0].startswith("wrn")]  # wide residual networks have preact-resnet18's blocks
each_network = pytest.mark.parametrize(
    ("arch", "gates"), SHALLOW, ids=lambda value: value if isinstance(value, str) else "gated" * bool(value)
)
WAYS: dict[str, Callable[[Network, Tensor], ModelOutput]] = {
    "deployed": lambda network, x: network.trace(x),
    "open": lambda network, x: network.trace(x, open_gate),
    "soft": lambda network, x: network.trace(x, soft(0.7)),
    "straight-through": lambda network, x: network.trace(x, straight_through(0.7)),
    "forced": lambda network, x: network.trace(x, forced(torch.arange(len(x)) % K)),
}


def network(arch: str, gates: tuple[Any, ...] = (), seed: int = 0) -> Network:
    """In eval mode, normalising, every norm's weights and statistics at random."""
    made = build(Architecture(arch, BACKBONES[arch], K, 3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), gates=gates), seed=seed)
    return stirred(made, seed).eval()


def stirred(made: Network, seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return made


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def outcome(made: Network, x: Tensor, way: str) -> tuple[Tensor, ...]:
    """All logits and their gradient, of one random direction, at the images."""
    x = x.detach().requires_grad_(True)
    output = WAYS[way](made, x)
    logits = torch.stack([output.logits, *output.aux_logits])
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).to(logits)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), x)
    return logits.detach(), gradient


@pytest.mark.parametrize(("arch", "gates"), CASES, ids=lambda value: value if isinstance(value, str) else "gated" * bool(value))
def test_folding_is_exact(arch: str, gates: tuple[Any, ...]) -> None:
    """In float64, so that what is left is no rounding of float32."""
    made, x = network(arch, gates).double(), images().double()
    fast = FastCopy(made, "folded").network
    for way in WAYS if gates else ("deployed",):
        for exact, near in zip(outcome(made, x, way), outcome(fast, x, way), strict=True):
            torch.testing.assert_close(near, exact, rtol=0, atol=1e-11 * (1 + float(exact.abs().max())))


def test_norms_that_follow_a_convolution_are_gone_and_no_others() -> None:
    def norms(made: Network) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in made.modules())

    left = {arch: norms(FastCopy(network(arch), "folded").network) for arch in ("resnet18", "small-cnn", "vgg16-bn", "preact-resnet18")}
    assert left == {"resnet18": 0, "small-cnn": 0, "vgg16-bn": 0, "preact-resnet18": 8 + 1}  # before each block, and the last


@each_network
@pytest.mark.parametrize("precision", ["folded", "bf16"])
def test_a_copy_leaves_its_original_alone_and_is_frozen(arch: str, gates: tuple[Any, ...], precision: Any) -> None:
    made = network(arch, gates).train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    fast = FastCopy(made, precision).network
    assert all(module.training for module in made.modules())
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    fast(images())
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert not {parameter.data_ptr() for parameter in made.parameters()} & {parameter.data_ptr() for parameter in fast.parameters()}


@each_network
@pytest.mark.parametrize("precision", ["folded", "bf16"])
def test_a_refreshed_copy_is_a_new_one(arch: str, gates: tuple[Any, ...], precision: Any) -> None:
    """Whatever training moves: weights, statistics, gates; to the bit."""
    made = network(arch, gates)
    copy = FastCopy(made, precision)
    fast = copy.network
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    stale, again = fast(images()), FastCopy(made, precision).network(images())
    copy.refresh()
    assert torch.equal(fast(images()), again)
    assert not torch.equal(stale, again)
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@each_network
def test_bfloat16_starts_after_the_stem_and_ends_before_the_head(arch: str, gates: tuple[Any, ...]) -> None:
    fast = FastCopy(network(arch, gates), "bf16").network
    seen: dict[str, torch.dtype] = {}
    for name, module in fast.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y.dtype}))
    output = fast.trace(images())
    first, *others = seen.values()
    assert first == torch.float32
    assert set(others) == {torch.bfloat16}
    assert len(others) > 1
    rest = {name: p.dtype for name, p in fast.named_parameters() if p.dtype != torch.float32}
    assert rest.keys() <= {f"{name}.{kind}" for name in seen for kind in ("weight", "bias")}
    for tensor in (output.logits, *output.aux_logits, output.features):
        assert tensor.dtype == torch.float32


@each_network
def test_bfloat16_is_near_in_every_way_through_the_network(arch: str, gates: tuple[Any, ...]) -> None:
    """Through gates that no rounding can flip."""
    made, x = network(arch, gates), images()
    fast = FastCopy(made, "bf16").network
    for way in ("open", "soft", "forced") if gates else ("deployed",):
        (exact, slope), (near, slant) = outcome(made, x, way), outcome(fast, x, way)
        assert float((near - exact).abs().max()) <= 0.05 * float(exact.std() + exact.abs().mean())
        assert float(torch.cosine_similarity(slope.flatten(), slant.flatten(), dim=0)) > 0.8  # max pooling routes some of it elsewhere
        assert slant.dtype == torch.float32


def test_heads_of_a_copy_are_heads() -> None:
    made = network("resnet18", (GATED["resnet18"],)).double()
    for head in ("final", "open", "aux:1"):
        exact, near = head_of(made, head)(images().double()), head_of(FastCopy(made, "folded").network, head)(images().double())
        torch.testing.assert_close(near, exact, rtol=0, atol=1e-10)
