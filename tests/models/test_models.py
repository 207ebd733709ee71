"""The networks: published sizes, other people's implementations of the same networks, shapes, names, normalisation, seeds, headers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from advcli.errors import UsageError
from advcli.models import Architecture, Network, build
from advcli.models.build import _BACKBONES
from advcli.models.network import scaled
from advcli.recipe.schema import ARCHITECTURES, AttributionSpan, ReverseAttention
from advcli.training.cost import forward_flops

pytestmark = pytest.mark.usefixtures("one_thread")  # networks this small only lose time to threads that wait for each other

RA = ReverseAttention(name="reverse-attention", at=("layer4.0", "layer4.1"))
SPAN = AttributionSpan(name="attribution-span", at=("layer2",))

# features at width 1, factor by which the sides shrink
SHAPES = {
    "small-cnn": (128, 4),
    "resnet18": (512, 8),
    "preact-resnet18": (512, 8),
    "wrn-28-10": (640, 4),
    "wrn-34-10": (640, 4),
    "vgg16-bn": (512, 32),
}


def architecture(arch: str, *, width: float = 0.05, classes: int = 10, channels: int = 3, size: int = 32, **rest: Any) -> Architecture:
    return Architecture(arch, width, classes, channels, size, **rest)


def images(n: int = 2, channels: int = 3, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def stirred(network: Network) -> Network:
    """Float64, eval mode, and every parameter and statistic of batch norm at random, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for module in network.double().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    return network.eval()


def test_all_architectures_are_covered() -> None:
    assert set(SHAPES) == set(_BACKBONES) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("arch", "millions", "gflops"),
    [
        ("resnet18", 11.16, 1.111),
        ("preact-resnet18", 11.16, 1.111),
        ("wrn-28-10", 36.46, 10.49),
        ("wrn-34-10", 46.14, 13.32),
        ("vgg16-bn", 14.72, 0.6264),  # 313.2 million multiply-adds
    ],
)
def test_published_sizes(arch: str, millions: float, gflops: float) -> None:
    """Weights of convolutions and the linear layer, and operations (two a multiply-add) of one 32x32 image, to the printed digits."""
    with torch.device("meta"):
        network = build(architecture(arch, width=1.0)).eval()
        flops = forward_flops(network, torch.zeros(1, 3, 32, 32))
    weights = sum(p.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters())
    assert round(weights / 1e6, 2) == millions
    assert float(f"{flops / 1e9:.4g}") == pytest.approx(gflops, rel=5e-4)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", SHAPES)
def test_trace_shapes(arch: str, channels: int, size: int) -> None:
    features, shrink = SHAPES[arch]
    network = build(architecture(arch, channels=channels, size=size, classes=7)).eval()
    x = images(2, channels, size)
    output = network.trace(x)
    assert output.logits.shape == (2, 7)
    assert output.aux_logits == ()
    assert output.features.shape == (2, scaled(features, 0.05), size // shrink, size // shrink)
    assert torch.equal(network(x), output.logits)
    pooled = F.adaptive_avg_pool2d(output.features, 1).flatten(1)
    torch.testing.assert_close(output.logits, network.linear(pooled), msg="the features are what pooling and the linear layer read")
    assert network.num_classes == 7


@pytest.mark.parametrize(
    ("arch", "size"), [("small-cnn", 8), ("small-cnn", 4), ("small-cnn", 9), ("resnet18", 8), ("vgg16-bn", 32), ("wrn-28-10", 5)]
)
def test_small_and_odd_images_fit(arch: str, size: int) -> None:
    assert build(architecture(arch, channels=1, size=size)).eval()(images(2, 1, size)).shape == (2, 10)


@pytest.mark.parametrize("width", [0.001, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("arch", SHAPES)
def test_width_multiplies_every_stage(arch: str, width: float) -> None:
    """Each convolution's channels are those at width 1 times width, rounded, never none."""
    with torch.device("meta"):
        networks = [build(architecture(arch, width=w)) for w in (1.0, width)]
    one, other = ({n: m.out_channels for n, m in network.named_modules() if isinstance(m, nn.Conv2d)} for network in networks)
    assert other == {name: max(1, round(channels * width)) for name, channels in one.items() if name in other}
    assert all("shortcut" in name for name in one.keys() - other.keys()), "between stages of one channel each no projection is needed"
    assert networks[1].linear.in_features == scaled(SHAPES[arch][0], width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet19"}, "no network 'resnet19'"),
        ({"arch": "small-cnn", "size": 3}, "shrinks images 4-fold, and these have 3 pixels"),
        ({"arch": "resnet18", "size": 7}, "shrinks images 8-fold"),
        ({"arch": "preact-resnet18", "size": 7}, "shrinks images 8-fold"),
        ({"arch": "wrn-28-10", "size": 3}, "shrinks images 4-fold"),
        ({"arch": "vgg16-bn", "size": 31}, "shrinks images 32-fold"),
        ({"arch": "small-cnn", "mean": (0.5,), "std": (0.5,)}, "1 values for images with 3 channels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(architecture(**change))


@pytest.mark.parametrize("arch", SHAPES)
def test_blocks_run_in_the_order_of_their_names_and_are_the_network(arch: str) -> None:
    network = stirred(build(architecture(arch)))
    x, ran = images(size=32 if arch == "vgg16-bn" else 8, dtype=torch.float64), []
    modules = {name: network.get_submodule(name) for name in network.block_names if name not in ("stem", "pool")}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    expected = network.trace(x)
    assert ran == list(modules), "each once, in order"
    for name in network.block_names:
        x = network.run_block(name, x)
    assert torch.equal(network.finish(x), expected.features)
    assert torch.equal(network.linear(expected.features.mean((2, 3))), expected.logits)


@pytest.mark.parametrize("arch", SHAPES)
def test_every_parameter_takes_part(arch: str) -> None:
    network = build(architecture(arch)).double().train()
    network(images(4, size=32 if arch == "vgg16-bn" else 8, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("small-cnn", {"layer1.0.weight", "layer3.1.bias", "linear.weight", "linear.bias"}),
        (
            "resnet18",
            {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.1.bn2.running_mean", "layer2.0.shortcut.0.weight"}
            | {"layer2.0.shortcut.1.running_var", "layer4.1.conv2.weight", "linear.weight", "linear.bias"},
        ),
        (
            "preact-resnet18",
            {"conv1.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.conv2.weight"}
            | {"bn.weight", "linear.weight"},
        ),
        ("wrn-28-10", {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.shortcut.0.weight", "layer3.3.conv2.weight", "linear.weight"}),
        ("wrn-34-10", {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.weight", "layer3.4.conv2.weight", "linear.weight"}),
    ],
)
def test_names_of_public_checkpoints(arch: str, names: set[str]) -> None:
    with torch.device("meta"):
        keys = set(build(architecture(arch)).state_dict())
    assert names <= keys
    assert not keys & {"mean", "std"}, "the header holds the normalisation; public state dicts have no such keys"
    assert not any(key.startswith(("layer1.0.shortcut", "bn1")) for key in keys if arch.startswith("preact"))


@pytest.mark.parametrize(
    ("arch", "blocks"), [("resnet18", 9), ("preact-resnet18", 9), ("wrn-28-10", 13), ("wrn-34-10", 16), ("vgg16-bn", 14)]
)
def test_block_names(arch: str, blocks: int) -> None:
    with torch.device("meta"):
        names = build(architecture(arch)).block_names
    assert len(set(names)) == len(names) == blocks
    stages = [name.split(".")[0] for name in names if name.startswith("layer")]
    assert stages == sorted(stages)


def test_resnet18_is_torchvisions_with_the_small_stem() -> None:
    """The same weights under torchvision's names give the same logits, in float64."""
    network = stirred(build(architecture("resnet18", width=1.0)))
    with torch.device("meta"):
        other = torchvision.models.resnet18(num_classes=10).eval()
        other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    state = {key.replace("shortcut", "downsample").replace("linear", "fc"): value for key, value in network.state_dict().items()}
    other.load_state_dict(state, assign=True)
    x = images(size=8, dtype=torch.float64)
    torch.testing.assert_close(network(x), other(x), rtol=1e-9, atol=0)


def test_vgg16_is_torchvisions_features_and_one_linear_layer() -> None:
    """Layer by layer in their order; torchvision's convolutions have a bias, which batch norm swallows and is 0 here."""
    network = stirred(build(architecture("vgg16-bn", width=1.0)))
    with torch.device("meta"):
        other = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True).double().eval()
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    pairs = zip(*([m for m in n.modules() if isinstance(m, kinds)] for n in (network, other)), strict=True)
    for mine, theirs in pairs:
        bias = {"bias": torch.zeros(mine.out_channels).double()} if isinstance(mine, nn.Conv2d) else {}
        theirs.load_state_dict(mine.state_dict() | bias, assign=True)
    x = images(dtype=torch.float64)
    torch.testing.assert_close(network(x), network.linear(other(x).mean((2, 3))), rtol=1e-9, atol=0)


def preactivation(state: dict[str, Tensor], x: Tensor, blocks: int, strides: tuple[int, ...]) -> Tensor:
    """A pre-activation network as He et al. (2016b) and Zagoruyko and Komodakis write it, read from a state dict."""

    def activated(x: Tensor, bn: str) -> Tensor:
        mean, var, weight, bias = (state[f"{bn}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for s, first in enumerate(strides):
        for b in range(blocks):
            name, stride = f"layer{s + 1}.{b}", first if b == 0 else 1
            a = activated(x, f"{name}.bn1")
            shortcut = F.conv2d(a, state[f"{name}.shortcut.0.weight"], stride=stride) if f"{name}.shortcut.0.weight" in state else x
            inner = activated(F.conv2d(a, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn2")
            x = shortcut + F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1)
    return activated(x, "bn").mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(
    ("arch", "blocks", "strides"), [("preact-resnet18", 2, (1, 2, 2, 2)), ("wrn-28-10", 4, (1, 2, 2)), ("wrn-34-10", 5, (1, 2, 2))]
)
def test_preactivation_networks_are_the_papers(arch: str, blocks: int, strides: tuple[int, ...]) -> None:
    network = stirred(build(architecture(arch)))
    x = images(size=8, dtype=torch.float64)
    torch.testing.assert_close(network(x), preactivation(network.state_dict(), x, blocks, strides), rtol=1e-9, atol=0)


def test_wide_networks_start_from_the_authors_distribution() -> None:
    """N(0, 2 / (k k out)): the sample's standard deviation within five standard errors, the linear bias zero."""
    network = build(architecture("wrn-28-10", width=0.2))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * module.weight.numel()))
    assert not network.linear.bias.any()


@pytest.mark.parametrize("arch", ["small-cnn", "resnet18", "preact-resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_inside_is_normalisation_outside(arch: str, channels: int) -> None:
    """Values that float32 holds exactly, so that float64 can compare."""
    mean, std = (0.5, 0.4375, 0.375)[:channels], (0.25, 0.125, 0.5)[:channels]
    inside = stirred(build(architecture(arch, channels=channels, mean=mean, std=std)))
    plain = stirred(build(architecture(arch, channels=channels)))
    x = images(channels=channels, size=8, dtype=torch.float64)
    outside = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(channels)], 1)
    torch.testing.assert_close(inside(x), plain(outside), rtol=1e-12, atol=0)
    assert not torch.allclose(inside(x), plain(x)), "it does something"


@pytest.mark.parametrize("arch", ["small-cnn", "wrn-28-10"])
def test_build_is_fixed_by_its_seed_and_leaves_the_global_generator_alone(arch: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(architecture(arch), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, third = build(architecture(arch), seed=3).state_dict(), build(architecture(arch), seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["linear.weight"], third["linear.weight"])
    assert next(iter(first.values())).device.type == "cpu"


@pytest.mark.parametrize(
    "value",
    [
        Architecture("resnet18", 1.0, 10, 3, 32),
        Architecture("wrn-34-10", 0.1, 200, 1, 64, (0.1,), (0.3,)),
        Architecture("preact-resnet18", 1.0, 200, 3, 64, cells=2, gates=(RA, SPAN)),
        Architecture("small-cnn", 1 / 3, 2, 3, 8, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ],
)
def test_a_header_gives_the_architecture_back(value: Architecture) -> None:
    assert Architecture.from_json(json.loads(json.dumps(value.to_json()))) == value


def test_a_header_from_before_gates_is_one_without() -> None:
    value = Architecture("small-cnn", 1.0, 10, 1, 8)
    assert Architecture.from_json({k: v for k, v in value.to_json().items() if k not in ("cells", "gates")}) == value


GOOD = Architecture("small-cnn", 0.25, 10, 1, 8, (0.5,), (0.5,)).to_json()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        3,
        {},
        {**GOOD, "size": None},
        {**GOOD, "gates": [{"name": "sesame"}]},
        *({k: v for k, v in GOOD.items() if k != key} for key in GOOD if key not in ("cells", "gates")),
    ],
)
def test_what_describes_no_network_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="not the description of a network"):
        Architecture.from_json(value)


HOSTILE: dict[str, list[Any]] = {
    **{key: [0, -1, 10**9, 3.7, "ten", [10], math.inf, math.nan] for key in ("num_classes", "channels", "size")},
    "width": [0, -1, 101, "wide", [1], math.inf, math.nan, 10**400],
    "mean": [5, ["x"], [[1]], [math.nan], None],
    "std": [0.5, None, [0.0], [-1.0], [math.inf], [0.5, 0.5]],
}


@pytest.mark.parametrize(
    ("key", "value"), [pytest.param(key, value, id=f"{key}={value!r:.9}") for key, values in HOSTILE.items() for value in values]
)
def test_hostile_headers_are_value_errors(key: str, value: Any) -> None:
    """JSON files may say Infinity and NaN; no value may crash, build another network, or divide by zero."""
    with pytest.raises(ValueError):  # noqa: PT011
        Architecture.from_json({**GOOD, key: value})


def test_an_unknown_network_in_a_header_is_refused_when_built() -> None:
    with pytest.raises(UsageError, match="no network"):
        build(Architecture.from_json({**GOOD, "arch": "__import__"}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_images_logits_do_not_depend_on_its_batch_or_layout(layout: torch.memory_format) -> None:
    network = stirred(build(architecture("resnet18")))
    x = images(5, size=8, dtype=torch.float64)
    torch.testing.assert_close(network(x.to(memory_format=layout)), torch.cat([network(row) for row in x.split(1)]), rtol=1e-10, atol=1e-10)
