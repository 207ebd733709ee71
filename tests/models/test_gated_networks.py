"""Networks with gates: where gates stand, what they read, what is left without them, and that a file keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.data import Batch, Moment
from advcli.draws import Draws
from advcli.errors import CheckpointError, UsageError
from advcli.gates import forced, labels, open_gate, soft
from advcli.gates.channel_prompt import ChannelPrompt
from advcli.gates.fusion import hybrid_statistics
from advcli.gates.gate import pool
from advcli.models import Architecture, Network, build
from advcli.models.build import fusion_sites
from advcli.models.network import FEATURES
from advcli.objectives import build_objective
from advcli.recipe import load, schema
from advcli.runs.checkpoint import load_network, write, write_network

pytestmark = pytest.mark.usefixtures("one_thread")

K, WIDTH = 5, 0.05
PARTS = {
    "reverse-attention": schema.ReverseAttention,
    "channel-suppression": schema.ChannelSuppression,
    "attribution-span": schema.AttributionSpan,
    "channel-prompt": schema.ChannelPrompt,
}
GATES = list(PARTS)
# a site before `features` with its channels, which every gate fits; small-cnn has none
INNER = {"small-cnn": "layer2", "resnet18": "layer4.0", "preact-resnet18": "layer4.0", "wrn-28-10": "layer3.2", "vgg16-bn": "layer5.1"}
ARCHS = list(INNER)
STRIDES = {"small-cnn": 4, "resnet18": 8, "preact-resnet18": 8, "wrn-28-10": 4, "vgg16-bn": 32}


def part(name: str, *at: str, **settings: Any) -> Any:
    return PARTS[name].model_validate({"name": name, "at": at or ("features",), **settings})


def network(arch: str, *gates: Any, size: int = 32, cells: int = 1, channels: int = 3, width: float = WIDTH, seed: int = 0) -> Network:
    """In float64 and eval mode, every statistic, prototype and gate at random, so that none can be left out unnoticed."""
    made = build(Architecture(arch, width, K, channels, size, cells=cells, gates=gates), seed=seed).double()
    return stirred(made).eval()


def stirred(made: Network) -> Network:
    generator = torch.Generator().manual_seed(1)
    modules = [module for name, module in made.named_modules() if not name.startswith(("gates", "site_norms"))]
    extra = [module for name, module in made.named_modules() if name.startswith(("gates", "site_norms"))]
    for module in (*modules, *extra):
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
        if isinstance(module, ChannelPrompt) and module.kept:
            module.prototypes.copy_(torch.rand(module.prototypes.shape, generator=generator, dtype=torch.float64))
    return made


def images(n: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(n, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def classes(n: int = 3) -> Tensor:
    return torch.arange(n) % K


def assert_equal(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Sites.


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_site_has_the_channels_that_it_says(arch: str, size: int) -> None:
    """A probed gate at each block in turn, and at `features`: it fits, and its logits come out."""
    plain = build(Architecture(arch, WIDTH, K, 3, size))
    x = images(1, size=size).float()
    for name in (*plain.block_names, FEATURES):
        made = build(Architecture(arch, WIDTH, K, 3, size, gates=(part("channel-suppression", name),))).eval()
        assert made.gate_sites == (FEATURES if name == plain.block_names[-1] else name,)
        output = made.trace(x)
        assert output.logits.shape == (1, K)
        assert [tuple(aux.shape) for aux in output.aux_logits] == [(1, K)]


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("small-cnn", {"layer1": "layer1", "layer2": "layer2", "layer3": FEATURES, FEATURES: FEATURES}),
        ("resnet18", {"stem": "stem", "layer1": "layer1.1", "layer4.0": "layer4.0", "layer4": FEATURES, "layer4.1": FEATURES}),
        ("preact-resnet18", {"conv1": "conv1", "layer3": "layer3.1", "layer4": FEATURES}),
        ("wrn-28-10", {"layer1": "layer1.3", "layer3.2": "layer3.2", "layer3": FEATURES, "layer3.3": FEATURES}),
        ("vgg16-bn", {"layer4": "layer4.2", "layer5": "layer5.2", "pool": FEATURES}),
    ],
)
def test_names_stand_for_sites(arch: str, names: dict[str, str]) -> None:
    """A stage means its last block; the last block means `features`."""
    made = build(Architecture(arch, WIDTH, K, 3, 32))
    assert {name: made.site(name) for name in names} == names
    for unknown in ("layer9", "layer", "layer1.9", "", "linear", "layer1."):
        with pytest.raises(ValueError, match=f"no block '{unknown}'"):
            made.site(unknown)


@pytest.mark.parametrize("arch", ARCHS)
def test_gates_come_in_network_order_whatever_the_recipes(arch: str) -> None:
    """And each keeps its own settings and its own probe."""
    first, second = part("attribution-span", FEATURES, alpha="0.9"), part("attribution-span", INNER[arch], alpha="0.7")
    made = build(Architecture(arch, WIDTH, K, 3, 32, gates=(first, second)))
    assert made.gate_sites == (INNER[arch], FEATURES)
    assert [gate.alpha for gate in made.gates] == [0.7, 0.9]
    both = build(Architecture(arch, WIDTH, K, 3, 32, gates=(part("channel-suppression", FEATURES, INNER[arch]),)))
    assert both.gate_sites == (INNER[arch], FEATURES)
    probes = [gate.probe.weight for gate in both.gates]
    assert probes[0] is not probes[1]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"gates": (part("channel-suppression", "layer9"),)}, "model.gates.0.at", "no block 'layer9'; there are stem, layer1"),
        ({"gates": (part("channel-suppression"), part("reverse-attention", "layer4"))}, "model.gates.1.at", "two gates at features"),
        ({"gates": (part("channel-suppression", "layer4.1", "features"),)}, "model.gates.0.at", "two gates at features"),
        (
            {"gates": (part("channel-suppression", "layer3"), part("attribution-span", "layer3.1"))},
            "model.gates.1.at",
            "two gates at layer3.1",
        ),
        ({"gates": (part("reverse-attention", "layer3"),)}, "model.gates.0.at", "layer3 has 13 channels"),
        ({"gates": (part("channel-prompt", "layer1.0"),)}, "model.gates.0.at", "rows of 26 values"),
        ({"cells": 4, "size": 48}, "model.cells", "6 x 6 .* no multiple of 4 cells"),
        ({"cells": 2, "size": 8}, "model.cells", "1 x 1 .* no multiple of 2 cells"),
        ({"cells": 2, "size": 40, "arch": "wrn-28-10"}, None, ""),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], where: str | None, message: str) -> None:
    whole = {"arch": "resnet18", "width": WIDTH, "num_classes": K, "channels": 3, "size": 32, **change}
    if where is None:
        build(Architecture(**whole))
        return
    with pytest.raises(UsageError, match=message) as refused:
        build(Architecture(**whole))
    assert refused.value.where == where


@pytest.mark.parametrize("cells", [2, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_cells_are_accepted_where_the_features_divide_and_only_there(arch: str, cells: int) -> None:
    """Odd sizes too: what a network is built with it can run."""
    built = 0
    for size in range(max(STRIDES[arch], 16), 132, 7 if arch != "vgg16-bn" else 8):
        side = build(Architecture(arch, 0.01, K, 1, size)).eval().trace(torch.zeros(1, 1, size, size)).features.shape[-1]
        try:
            made = build(Architecture(arch, 0.01, K, 1, size, cells=cells)).eval()
        except UsageError:
            assert side % cells, f"{size} pixels leave {side} x {side}, a multiple of {cells}"
            continue
        assert side % cells == 0, f"{size} pixels leave {side} x {side}, no multiple of {cells}, and are accepted"
        assert made(torch.zeros(1, 1, size, size)).shape == (1, K)
        built += 1
    assert built >= 1


def test_fusion_sites_are_named_as_gates_are() -> None:
    made = build(Architecture("resnet18", WIDTH, K, 3, 32))
    assert fusion_sites(made, None) == ()
    assert fusion_sites(made, schema.HybridStatistics(name="hybrid-statistics", at=("layer2", "layer4"))) == ("layer2.1", FEATURES)
    with pytest.raises(UsageError, match="no block 'sesame'") as refused:
        fusion_sites(made, schema.HybridStatistics(name="hybrid-statistics", at=("sesame",)))
    assert refused.value.where == "model.fusion.at"


# With and without gates.


def every_gate(arch: str) -> tuple[Any, ...]:
    return tuple(part(name, FEATURES) for name in GATES)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_network_with_gates_starts_from_the_weights_of_one_without(arch: str, name: str) -> None:
    """So that methods are compared from one start. Reverse attention adds nothing but, where it needs one, a norm."""
    plain = build(Architecture(arch, WIDTH, K, 3, 32), seed=3).state_dict()
    sites = (FEATURES,) if arch == "small-cnn" else (INNER[arch], FEATURES)
    gated = build(Architecture(arch, WIDTH, K, 3, 32, gates=(part(name, *sites),)), seed=3).state_dict()
    assert plain.keys() <= gated.keys()
    assert all(torch.equal(plain[key], gated[key]) for key in plain)
    assert (plain.keys() == gated.keys()) is (name == "reverse-attention")
    assert all(key.startswith("gates.") for key in gated.keys() - plain.keys())


def test_gates_are_fixed_by_the_seed_too() -> None:
    first, second, third = (
        build(Architecture("small-cnn", WIDTH, K, 3, 32, gates=(part("attribution-span"),)), seed=seed).gates[0].probe.weight
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("arch", ARCHS)
def test_open_gates_leave_the_network_without_gates_to_the_bit(arch: str, name: str, train: bool) -> None:
    """At `features` everywhere; inside too where a block's output needs no normalisation of its own to be read."""
    inner = (
        ()
        if (arch == "small-cnn" and name in ("reverse-attention", "channel-prompt")) or arch.startswith(("preact", "wrn"))
        else (INNER[arch],)
    )
    plain, gated = network(arch, size=64).train(train), network(arch, part(name, *inner, FEATURES), size=64).train(train)
    x = images(size=64)
    expected, opened = plain.trace(x), gated.trace(x, open_gate)
    assert len(opened.aux_logits) == 1 + len(inner)
    for a, b in ((opened.logits, expected.logits), (opened.features, expected.features), (opened.ungated, expected.features)):
        assert torch.equal(a, b)
    assert not torch.allclose(gated.trace(x).logits, expected.logits), "closed it is another"


@pytest.mark.parametrize("arch", ["preact-resnet18", "wrn-28-10"])
def test_preactivation_gates_read_through_the_final_norm_or_one_of_their_own(arch: str) -> None:
    """ANCRA's code: norm and ReLU, gate, next block; where the channels are the final ones it is the final norm itself."""
    early = {"preact-resnet18": "layer2.1", "wrn-28-10": "layer2.3"}[arch]
    made, x = network(arch, part("channel-suppression", early, INNER[arch], FEATURES)), images()
    norms = made.site_norms
    assert isinstance(norms, nn.ModuleDict)
    assert [*norms] == [early.replace(".", "_")]
    norms[early.replace(".", "_")].weight.data.mul_(1.5)
    y, h, aux, probes = classes(), x, [], [gate.probe for gate in made.gates]
    for name in made.block_names:
        h = made.get_submodule(name)(h)
        if name == early:
            h = F.relu(norms[early.replace(".", "_")](h))
        elif name == INNER[arch] or name == made.block_names[-1]:
            h = F.relu(made.bn(h))
        else:
            continue
        aux.append(probes[len(aux)](h.mean((2, 3))))
        h = h * probes[len(aux) - 1].weight[y][:, :, None, None]
    output = made.trace(x, labels(y))
    assert_equal(torch.stack(output.aux_logits), torch.stack(aux))
    assert_equal(output.logits, made.linear(h.mean((2, 3))))


@pytest.mark.parametrize("arch", ["resnet18", "vgg16-bn"])
def test_reverse_attention_on_two_blocks_is_the_authors_path(arch: str) -> None:
    """Block 1, probe, gate, block 2, probe, gate, the same classifier; the first probe sees what no gate has touched."""
    sites = {"resnet18": ("layer4.0", "layer4.1"), "vgg16-bn": ("layer5.1", "layer5.2")}[arch]
    made, plain, x, y = network(arch, part("reverse-attention", *sites)), network(arch), images(), classes()
    w, b = made.linear.weight, made.linear.bias
    for select, opened in ((labels(y), y), (None, None)):
        h, aux = x, []
        for name in made.block_names:
            h = made.run_block(name, h)
            if name in sites:
                aux.append(h.mean((2, 3)) @ w.T + b)
                k = aux[-1].argmax(1) if opened is None else opened
                h = h * w[k][:, :, None, None]
        output = made.trace(x, select)
        assert_equal(output.logits, h.mean((2, 3)) @ w.T + b)
        assert_equal(torch.stack(output.aux_logits), torch.stack(aux))
    h = x
    for name in plain.block_names[: plain.block_names.index(sites[0]) + 1]:
        h = plain.run_block(name, h)
    assert torch.equal(made.trace(x).aux_logits[0], plain.linear(h.mean((2, 3))))


@pytest.mark.parametrize("name", GATES)
def test_forcing_the_decision_of_each_gate_is_deployment_to_the_bit(name: str) -> None:
    made, x = network("resnet18", part(name, "layer4.0", FEATURES)), images()
    output = made.trace(x)
    again = made.trace(x, forced({site: aux.argmax(1) for site, aux in zip(made.gate_sites, output.aux_logits, strict=True)}))
    assert torch.equal(output.logits, again.logits)
    assert torch.equal(made(x), output.logits)
    assert_equal(made.trace(x, soft(1e-5)).logits, output.logits)


def test_the_decision_does_not_depend_on_mode_flags_but_through_batch_norm() -> None:
    """No gate opens by labels because a network is in train mode."""
    made, x = network("resnet18", part("attribution-span", "layer4.0", FEATURES)), images()
    expected = made(x)
    made.train()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert torch.equal(made(x), expected)


def test_the_gated_algebra_of_a_linear_head() -> None:
    """s_c = sum_i w_ci w_ki z_i + b_c: a gate confirms its own class, w_k w_k z being non-negative after a ReLU."""
    made, x = network("resnet18", part("reverse-attention")), images(6)
    w, b = made.linear.weight, made.linear.bias
    for k in range(K):
        output = made.trace(x, forced(torch.full((6,), k)))
        z = output.ungated.mean((2, 3))
        expected = torch.stack(
            [torch.stack([sum(w[c, i] * w[k, i] * z[n, i] for i in range(len(w[0]))) + b[c] for c in range(K)]) for n in range(6)]
        )
        assert_equal(output.logits, expected)
        assert bool((output.logits[:, k] - b[k] >= 0).all())


# All gates at once.

FORCED = [
    *(
        (arch, name, size, cells)
        for arch in ("resnet18", "preact-resnet18", "vgg16-bn")
        for name in GATES
        for size, cells in ((32, 1), (64, 2))
    ),
    *(("wrn-28-10", name, 32, cells) for name in GATES for cells in (1, 2)),
    *(("wrn-28-10", name, 64, 2) for name in ("reverse-attention", "channel-prompt")),
    *(("small-cnn", name, 32, cells) for name in GATES for cells in (1, 2, 4)),
    ("resnet18", "reverse-attention", 32, 4),
]


@pytest.mark.parametrize(("arch", "name", "size", "cells"), FORCED)
def test_all_gate_logits_are_those_of_as_many_forced_passes(arch: str, name: str, size: int, cells: int) -> None:
    """With another gate before, deployed or as selected; and with a head over cells, whether the gate tells them apart or not."""
    inner = "channel-suppression" if arch == "small-cnn" else "reverse-attention"
    made = network(arch, part(inner, INNER[arch]), part(name), size=size, cells=cells)
    x, y = images(size=size), classes()
    every = made.all_gate_logits(made.trace(x))
    chosen = made.all_gate_logits(made.trace(x, forced({INNER[arch]: y})))
    assert every.shape == (3, K, K)
    for k in range(K):
        here = torch.full((3,), k)
        assert_equal(every[:, k], made.trace(x, forced({FEATURES: here})).logits)
        assert_equal(chosen[:, k], made.trace(x, forced({INNER[arch]: y, FEATURES: here})).logits)
    own = made.trace(x).aux_logits[-1].argmax(1)
    assert_equal(every[torch.arange(3), own], made(x))
    assert not torch.allclose(every[:, 0], every[:, 1])


def test_all_gate_logits_need_a_gate_before_pooling() -> None:
    for gates in ((), (part("channel-suppression", "layer2"),)):
        made = network("small-cnn", *gates)
        assert not made.closes_at_features
        with pytest.raises(ValueError, match="no gate that closes stands at features"):
            made.all_gate_logits(made.trace(images()))


# Fusion in a network.


@pytest.mark.parametrize("site", ["layer2", FEATURES])
def test_a_fusion_mixes_before_the_gate_and_only_where_it_is_asked_for(site: str) -> None:
    """The gate reads fused features, which `ungated` shows at `features`; other sites see what comes of it."""
    made, x, y = network("small-cnn", part("channel-suppression", "layer2", FEATURES)), images(6), classes(6)
    fuse = hybrid_statistics(Draws(0, torch.arange(6), "fusion", 1))
    h, aux = x, []
    for name in ("layer1", "layer2", "layer3"):
        h = made.run_block(name, h)
        if name in ("layer2", "layer3"):
            if name == site or (name == "layer3" and site == FEATURES):
                h = fuse(h)
            ungated, probe = h, made.gates[len(aux)].probe
            aux.append(probe(h.mean((2, 3))))
            h = h * probe.weight[y][:, :, None, None]
    output = made.trace(x, labels(y), {site: fuse})
    assert_equal(torch.stack(output.aux_logits), torch.stack(aux))
    assert_equal(output.ungated, ungated)
    assert_equal(output.logits, made.linear(h.mean((2, 3))))
    assert float((output.logits - made.trace(x, labels(y)).logits).detach().abs().max()) > 1e-7


# Labels.


@pytest.mark.parametrize("name", GATES)
def test_nothing_but_training_asks_how_labels_open_gates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `opening` a trap: the deployed network, its traces in either mode and crafting never step on it; scoring does."""
    recipe = load("quickstart", ["craft.steps=2", f"model.gates=[{{name: {name}, at: [features]}}]"])
    made = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=recipe.model.gates))
    batch = Batch(images(6, 1, 8).float(), torch.arange(6), torch.arange(6))
    objective, moment = build_objective(recipe), Moment(0, 0, 0, 0.0)

    def trap(*_: Any, **__: Any) -> Any:
        raise AssertionError("a label has opened a gate")

    monkeypatch.setattr(Network, "opening", trap)
    for mode in (True, False):
        made.train(mode)
        made(batch.images)
        made.trace(batch.images)
        made.all_gate_logits(made.trace(batch.images))
        crafted = objective.craft(made, batch, moment)
        with pytest.raises(AssertionError, match="opened a gate"):
            objective.loss(made, batch, crafted, moment)


def test_an_opening_has_draws_of_its_own_at_every_site() -> None:
    made = network("small-cnn", part("attribution-span", "layer1", "layer2", FEATURES))
    y, n = torch.arange(64) % K, 64
    opening = made.opening(y, Draws(0, torch.arange(n), "pass", 3))
    s = [opening.select(site, torch.zeros(n, K)) for site in made.gate_sites]
    assert all(not torch.equal(a, b) for a, b in ((s[0], s[1]), (s[1], s[2]), (s[0], s[2])))
    assert set(opening.notes) == {f"collisions.{site}" for site in made.gate_sites}


# Files.

KEPT = [
    ("small-cnn", 1, (part("attribution-span", "layer2", FEATURES, alpha="2/3", distinct=True),)),
    ("resnet18", 1, (part("reverse-attention", "layer4.0", "layer4.1"),)),
    ("preact-resnet18", 2, (part("channel-suppression", "layer1"), part("reverse-attention", "layer4.0", "layer4.1"))),
    ("wrn-28-10", 1, (part("channel-prompt", top_k=3, momentum="0.9", temperature="1/7", alpha="0.3"),)),
    ("vgg16-bn", 1, (part("channel-prompt", "layer5.0", prototypes="classifier"), part("channel-suppression"))),
]


@pytest.mark.parametrize(("arch", "cells", "gates"), KEPT, ids=[row[0] for row in KEPT])
def test_a_file_gives_the_gated_network_back(arch: str, cells: int, gates: tuple[Any, ...], tmp_path: Path) -> None:
    """Weights, gates at their sites, norms and prototypes of their own: the same decisions to the bit."""
    size = 64 if cells == 2 else 32
    architecture = Architecture(arch, WIDTH, K, 3, size, cells=cells, gates=gates)
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
    made = stirred(build(architecture).double()).float().eval()
    for gate in made.gates:
        if isinstance(gate, ChannelPrompt) and gate.kept:
            gate.follow(torch.rand(4, gate.prototypes.shape[1]), torch.tensor([0, 0, 1, 3]))
    header = {"classes": [str(k) for k in range(K)], "threat": {}, "data": {}}
    write_network(tmp_path / "net.safetensors", made, architecture, header)
    loaded = load_network(tmp_path / "net.safetensors")
    assert loaded.architecture == architecture
    back, x = loaded.network, images(size=size).float()
    assert back.gate_sites == made.gate_sites
    assert [type(gate) for gate in back.gates] == [type(gate) for gate in made.gates]
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in made.state_dict().items())
    for select in (None, labels(classes())):
        a, b = made.trace(x, select), back.trace(x, select)
        assert all(torch.equal(p, q) for p, q in zip((a.logits, *a.aux_logits), (b.logits, *b.aux_logits), strict=True))


def test_prototypes_are_in_the_file() -> None:
    made = build(Architecture("small-cnn", WIDTH, K, 3, 32, gates=(part("channel-prompt"),)))
    assert {"gates.0.prototypes", "gates.0.seen"} <= made.state_dict().keys()
    assert "gates.0.prototypes" not in dict(made.named_parameters()), "no optimiser moves them"


@pytest.mark.parametrize(
    "gates", [[{"name": "channel-suppression", "at": ["layer9"]}], [{"name": "reverse-attention", "at": ["layer1"]}], [{"name": "x"}]]
)
def test_a_file_whose_gates_make_no_sense_is_refused(gates: list[dict[str, Any]], tmp_path: Path) -> None:
    architecture = Architecture("small-cnn", WIDTH, K, 3, 32)
    header = {"classes": [str(k) for k in range(K)], "threat": {}, "data": {}}
    hostile = {**header, "architecture": {**architecture.to_json(), "gates": gates}}
    write(tmp_path / "net.safetensors", build(architecture).state_dict(), hostile, "model")
    with pytest.raises(CheckpointError, match="describes no known network"):
        load_network(tmp_path / "net.safetensors")


def test_weights_of_an_ungated_file_do_not_fit_a_probed_network(tmp_path: Path) -> None:
    """And fit one with reverse attention, which adds none: the post-hoc control."""
    plain = Architecture("resnet18", WIDTH, K, 3, 32)
    state = build(plain).state_dict()
    bare = build(Architecture("resnet18", WIDTH, K, 3, 32, gates=(part("reverse-attention", "layer4.0", FEATURES),)), seed=7)
    bare.load_state_dict(state)
    assert_equal(bare.trace(images().float(), open_gate).logits, build(plain)(images().float()), atol=0)
    with pytest.raises(RuntimeError, match=r"gates\.0\.probe"):
        build(Architecture("resnet18", WIDTH, K, 3, 32, gates=(part("channel-suppression"),))).load_state_dict(state)


def norms_of(made: Network) -> Iterator[nn.BatchNorm2d]:
    return (module for module in made.modules() if isinstance(module, nn.BatchNorm2d))


def test_gates_taken_off_leave_nothing_behind() -> None:
    """What a clean branch starts from: the network's weights, no gates and no norms of theirs."""
    made, plain = network("preact-resnet18", part("channel-suppression", "layer2", FEATURES)), network("preact-resnet18")
    made.put_gates({})
    assert made.gate_sites == ()
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(made(images()), plain(images()))
    assert len(list(norms_of(made))) == len(list(norms_of(plain)))


@pytest.mark.parametrize("cells", [1, 2])
def test_the_head_reads_each_cell(cells: int) -> None:
    made, x = network("resnet18", size=64, cells=cells), images(size=64)
    output = made.trace(x)
    assert made.linear.in_features == made.feature_channels * cells**2
    expected = F.adaptive_avg_pool2d(output.features, cells).flatten(1) @ made.linear.weight.T + made.linear.bias
    assert_equal(output.logits, expected)
    assert_equal(pool(output.features, cells), F.adaptive_avg_pool2d(output.features, cells).flatten(1))
