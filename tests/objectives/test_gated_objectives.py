"""Objectives on gated networks: whole losses of AGAIN, ANCRA, CAS and StayFocused, their state, their ramp, and what a step costs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.attacks import Surrogate, Threat, ascend
from advcli.attacks.losses import attack_loss
from advcli.data import Batch, DataSet, Moment, Split
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.gates import forced, labels, open_gate
from advcli.gates.channel_prompt import ChannelPrompt
from advcli.models import Architecture, Network, build
from advcli.objectives import Crafted, LossParts, Objective, build_objective
from advcli.objectives.objective import AdversarialObjective
from advcli.recipe import Recipe
from advcli.training.cost import FlopMeter, forward_flops
from advcli.training.step import Step

K, EPS = 5, 0.1
MOMENT = Moment(seed=3, epoch=12, step=7, progress=0.5)
NOTHING = DataSet(*(Split(torch.empty(0), torch.empty(0), torch.empty(0)) for _ in range(2)), classes=())

RA = {"name": "reverse-attention"}
CAS = {"name": "channel-suppression"}
SPAN = {"name": "attribution-span"}
PROMPT = {"name": "channel-prompt", "momentum": 0.5}
FUSION = {"name": "hybrid-statistics"}
ANC = {"name": "negative-contrast"}
SHC = {"name": "hypersphere-contrast"}
MASKED = {"name": "masked-view", "patch": 2}
AWP = {"name": "awp", "gamma": 0.05}
TWO = ["layer2", "features"]

# model part, objective part, craft part
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "cas": ({"gates": [{**CAS, "at": TWO}]}, {"name": "pgd-at", "aux_weight": 2}, {}),
    "again": ({"gates": [SPAN], "fusion": FUSION}, {"name": "pgd-at"}, {}),
    "again-mart": ({"gates": [SPAN], "fusion": FUSION}, {"name": "mart"}, {}),
    "ancra": ({"gates": [RA]}, {"name": "trades", "aux_weight": 2, "terms": [ANC]}, {"loss": "ce"}),
    "ancra-soft": ({"gates": [RA]}, {"name": "mart", "terms": [{**ANC, "negatives": "soft", "alpha": 0.5}]}, {}),
    "stayfocused": ({"gates": [PROMPT]}, {"name": "pgd-at", "terms": [MASKED, SHC]}, {}),
    "prompt": ({"gates": [PROMPT]}, {"name": "trades", "terms": [SHC]}, {}),
    "classifier-prompt": ({"gates": [{**PROMPT, "prototypes": "classifier"}]}, {"name": "pgd-at", "terms": [ANC, SHC]}, {}),
    "everything": (
        {"gates": [{**SPAN, "at": ["layer2"]}, PROMPT], "fusion": {**FUSION, "at": ["layer1", "features"]}},
        {"name": "trades", "batch_norm": "joint", "terms": [ANC, MASKED, {**SHC, "natural_gradient": True}]},
        {},
    ),
}
each_method = pytest.mark.parametrize("method", METHODS)


def assemble(
    model_part: dict[str, Any],
    objective_part: dict[str, Any],
    craft: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    classes: int = K,
    arch: str = "small-cnn",
    width: float = 0.25,
    channels: int = 1,
    size: int = 8,
) -> tuple[Network, Any]:
    """Network in train mode and objective after setup; three steps of crafting, unless craft says otherwise."""
    recipe = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "threat": {"eps": EPS}, "craft": {"steps": 3, **(craft or {})}}
        | {"model": {"arch": arch, "width": width, **model_part}, "objective": objective_part}
        | {"optim": {"lr": 0.1}, "schedule": {"epochs": 100}}
    )
    model = build(Architecture(arch, width, classes, channels, size, gates=recipe.model.gates), seed=1).to(dtype).train()
    objective = build_objective(recipe)
    objective.setup(model, NOTHING)
    return model, objective


def method(name: str, *, wrapper: dict[str, Any] | None = None, ramp: int | None = None, **settings: Any) -> tuple[Network, Any]:
    model_part, objective_part, craft = METHODS[name]
    extra = {"ramp": {"epochs": ramp}} if ramp else {}
    return assemble(model_part, {**objective_part, "wrapper": wrapper, **extra}, craft, **settings)


def example(n: int = 15, *, classes: int = K, dtype: torch.dtype = torch.float32, seed: int = 1, channels: int = 1, size: int = 8) -> Batch:
    images = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(images.to(dtype), torch.arange(n) % classes, torch.arange(n) * 3)


def optimizer_of(model: Network, objective: Objective) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": list(model.parameters())}, *objective.parameter_groups()], lr=0.05, momentum=0.9)


def gradients(total: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    got = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, got, strict=True)]


def state(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{key}": value.clone() for i, module in enumerate(modules) for key, value in module.state_dict().items()}


def assert_bitwise(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def assert_equal(a: Any, b: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def stir_prototypes(model: Network) -> None:
    for gate in model.gates:
        if isinstance(gate, ChannelPrompt) and gate.kept:
            gate.prototypes.copy_(torch.rand(gate.prototypes.shape, generator=torch.Generator().manual_seed(0)))


# Whole losses in float64, from passes written out block by block.


def plain_ce(z: Tensor, y: Tensor) -> Tensor:
    return sum(-(z[i].exp() / z[i].exp().sum())[int(y[i])].log() for i in range(len(y))) / len(y)


def plain_kl(clean: Tensor, adv: Tensor) -> Tensor:
    p, q = clean.softmax(1), adv.softmax(1)
    return sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(len(p)) for k in range(p.shape[1])) / len(p)


def plain_anc(clean: Tensor, negative: Tensor, alpha: float) -> Tensor:
    p, q = clean.softmax(1), negative.softmax(1)
    total = clean.new_zeros(())
    for i in range(len(p)):
        h = int(p[i].argmax())
        if h == int(q[i].argmax()):
            total = total + alpha * (p[i, h].detach() * q[i, h]).sqrt() + (1 - alpha) * (p[i, h] * q[i, h].detach()).sqrt()
    return total / len(p)


def test_again_is_equation_7_through_equations_4_to_6() -> None:
    """Fusion, then the mixed gate at `features`: CE of the decision + CE of the probe at x_adv, nothing else."""
    model, objective = method("again", dtype=torch.float64)
    model.eval()
    batch = example(dtype=torch.float64)
    crafted = objective.craft(model, batch, MOMENT)
    scored = objective.loss(model, batch, crafted, MOMENT)
    passes = objective.passes(model, batch, crafted, MOMENT)
    select, fuse = passes.route("adversarial", batch.labels)
    h = crafted.x_adv
    for name in ("layer1", "layer2", "layer3"):
        h = model.get_submodule(name)(h)
    fused, probe = fuse["features"](h), model.gates[0].probe
    aux = fused.mean((2, 3)) @ probe.weight.T + probe.bias
    s = select("features", aux.detach())
    fake = (s - 0.6 * F.one_hot(batch.labels, K)).argmax(1)
    gated = torch.stack([fused[i] * (0.6 * probe.weight[batch.labels[i]] + 0.4 * probe.weight[fake[i]])[:, None, None] for i in range(15)])
    total = plain_ce(model.linear(gated.mean((2, 3))), batch.labels) + plain_ce(aux, batch.labels)
    assert_equal(scored.total, total)
    assert_equal(gradients(scored.total, model), gradients(total, model))
    assert float((fused - h).detach().abs().max()) > 1e-3
    assert bool((fake != batch.labels).any())
    assert set(scored.parts) == {"ce_adv", "ce_adv.aux0", "collisions.features.adversarial"}


@pytest.mark.parametrize("alpha", ["1", "0.4"])
def test_ancra_is_trades_and_the_contrast_through_equation_6(alpha: str) -> None:
    """Natural, adversarial and other images, each gated by its own label; aux_weight times the auxiliary head's mean everywhere."""
    terms = [{**ANC, "alpha": alpha, "negatives": "random"}]
    model, objective = assemble({"gates": [RA]}, {"name": "trades", "aux_weight": 2, "terms": terms}, {"loss": "ce"}, dtype=torch.float64)
    for p in model.parameters():
        p.data.mul_(1.5)
    model.eval()
    batch = example(dtype=torch.float64)
    crafted = objective.craft(model, batch, MOMENT)
    scored = objective.loss(model, batch, crafted, MOMENT)

    def heads(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for name in ("layer1", "layer2", "layer3"):
            x = model.get_submodule(name)(x)
        z, w = x.mean((2, 3)), model.linear.weight
        return model.linear(torch.stack([z[i] * w[y[i]] for i in range(len(y))])), model.linear(z)

    y = batch.labels
    clean, adversarial = heads(batch.images, y), heads(crafted.x_adv, y)
    other = heads(crafted.extra["negatives"], crafted.extra["negative_labels"])
    each = [
        plain_ce(clean[h], y) + 6 * plain_kl(clean[h], adversarial[h]) + 3 * plain_anc(clean[h], other[h], float(alpha)) for h in (0, 1)
    ]
    total = each[0] + 2 * each[1]
    assert_equal(scored.total, total)
    assert_equal(gradients(scored.total, model), gradients(total, model))
    assert float(scored.parts["anc_match.aux0"]) > 0.1


def test_stayfocused_is_the_sum_of_its_three_losses() -> None:
    """CPC's cross-entropy by the label's and the top prototypes (eq. 11, 13), SHC (10) and the branch's KL (3) with its cross-entropy."""
    model, objective = method("stayfocused", dtype=torch.float64)
    batch = example(dtype=torch.float64)
    for step in range(2):  # prototypes that have moved
        scored = objective.loss(model, batch, Crafted(batch.images), MOMENT._replace(step=step))
        objective.after_step(model, batch, scored, MOMENT)
    model.eval()
    objective.eval()
    encoder, rows = objective.terms[0].encoder, model.gates[0].prototypes
    crafted = objective.craft(model, batch, MOMENT)
    scored = objective.loss(model, batch, crafted, MOMENT)

    def body(network: Network, x: Tensor) -> Tensor:
        for name in ("layer1", "layer2", "layer3"):
            x = network.get_submodule(name)(x)
        return x.mean((2, 3))

    y, z, v = batch.labels, body(model, crafted.x_adv), body(encoder, batch.images)
    view = objective.terms[0].views(batch, MOMENT).masked[0].logits
    cosines = F.normalize(v.detach(), dim=1) @ F.normalize(rows, dim=1).T
    weights = rows / rows.mean(1, keepdim=True)
    mixed = []
    for i in range(15):
        top = sorted(range(K), key=lambda k: -float(cosines[i, k]))[:2]
        mixed.append(z[i] * (0.5 * weights[y[i]] + 0.5 / 2 * (weights[top[0]] + weights[top[1]])))
    aux = F.normalize(z, dim=1) @ F.normalize(rows, dim=1).T / 0.1
    cpc = plain_ce(model.linear(torch.stack(mixed)), y) + plain_ce(aux, y)
    twins = F.normalize(z, dim=1) @ F.normalize(v.detach(), dim=1).T
    shc = z.new_zeros(())
    for i in range(15):
        positive = ((2 * twins[i, i] ** 2 - 1) / 0.1).exp()
        negatives = sum((twins[i, j] / 0.1).exp() for j in range(15) if int(y[j]) != int(y[i]))
        shc = shc - (positive / (positive + negatives)).log() / 15
    clean = encoder.linear(v)
    total = cpc + shc + plain_ce(clean, y) + plain_kl(clean.detach(), view)
    assert_equal(scored.total, total)
    assert_equal(gradients(scored.total, model, encoder), gradients(total, model, encoder))


@pytest.mark.parametrize("fusion", [None, FUSION], ids=["plain", "fused"])
@pytest.mark.parametrize("base", ["pgd-at", "trades", "mart"])
def test_again_with_alpha_1_is_cas(base: str, fusion: dict[str, Any] | None) -> None:
    """To the bit from equal weights: crafting, loss, parts but for the log's collisions, gradients, and two whole steps."""
    results = []
    for gate in ({**SPAN, "alpha": 1, "at": TWO}, {**CAS, "at": TWO}):
        model, objective = assemble({"gates": [gate], "fusion": fusion}, {"name": base})
        batch = example()
        crafted = objective.craft(model, batch, MOMENT)
        scored = objective.loss(model, batch, crafted, MOMENT)
        got = {"x_adv": crafted.x_adv, "total": scored.total.detach(), **scored.parts}
        got |= {f"gradient{i}": g for i, g in enumerate(gradients(scored.total, model))}
        optimizer = optimizer_of(model, objective)
        for step in range(2):
            Step(model, objective, optimizer)(batch, MOMENT._replace(step=step))
        results.append({key: value for key, value in got.items() if "collisions" not in key} | state(model))
    assert_bitwise(*results)


def test_every_pass_site_and_use_has_draws_of_its_own() -> None:
    """Fusions of two sites and of two passes, and shuffled labels, are independent: none has another's partners or share."""
    n = 64
    part = {"gates": [{**SPAN, "at": TWO}], "fusion": {**FUSION, "at": TWO}}
    model, objective = assemble(part, {"name": "trades"})
    batch = example(n)
    passes = objective.passes(model, batch, Crafted(batch.images), MOMENT)
    routes = {name: passes.route(name, batch.labels) for name in ("clean", "adversarial", "negative")}
    x = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fused = [route.fuse[site](x) for route in routes.values() for site in TWO]
    assert all(not torch.allclose(a, b) for i, a in enumerate(fused) for b in fused[:i])
    opened = [route.select(site, torch.zeros(n, K)) for route in routes.values() for site in TWO]
    assert all(not torch.equal(a, b) for i, a in enumerate(opened) for b in opened[:i])
    assert {key.partition(".")[0] for key in passes.notes} == {"collisions"}
    assert len(passes.notes) == 6


def test_again_with_alpha_below_1_is_not() -> None:
    totals = []
    for gate in (SPAN, CAS):
        model, objective = assemble({"gates": [gate]}, {"name": "pgd-at"})
        totals.append(float(objective.loss(model, example(), Crafted(example().images), MOMENT).total.detach()))
    assert totals[0] != totals[1]


@pytest.mark.parametrize("base", ["trades", "mart"])
def test_joint_batches_give_each_half_its_own_gates_and_fusions(base: str) -> None:
    """Without batch statistics one batch of both equals two passes, in float64."""
    model_part = {"gates": [{**SPAN, "at": TWO}], "fusion": {**FUSION, "at": ["layer1", "features"]}}
    results = []
    for mode in ("separate", "joint"):
        model, objective = assemble(model_part, {"name": base, "batch_norm": mode}, dtype=torch.float64)
        model.eval()
        batch = example(dtype=torch.float64)
        scored = objective.loss(model, batch, objective.craft(model, batch, MOMENT), MOMENT)
        results.append((scored.total, scored.parts, gradients(scored.total, model)))
    assert_equal(results[0], results[1], atol=1e-9)


def test_marts_doubt_is_that_of_a_head_without_labels() -> None:
    """The decision, gated by the label, is no measure of doubt: it takes no part in the weight of the KL."""
    model, objective = assemble({"gates": [{**CAS, "at": TWO}]}, {"name": "mart"}, dtype=torch.float64)
    model.eval()
    batch = example(dtype=torch.float64)
    crafted = objective.craft(model, batch, MOMENT)
    scored = objective.loss(model, batch, crafted, MOMENT)
    clean, adversarial = (model.trace(x, labels(batch.labels)) for x in (batch.images, crafted.x_adv))
    doubt = 1 - clean.aux_logits[0].softmax(1)[torch.arange(15), batch.labels]
    for name, c, a in (
        ("weighted_kl", clean.logits, adversarial.logits),
        ("weighted_kl.aux1", clean.aux_logits[1], adversarial.aux_logits[1]),
    ):
        p, q = c.softmax(1), a.softmax(1)
        assert_equal(scored.parts[name], ((p * (p / q).log()).sum(1) * doubt).mean().detach())


# Labels.


@each_method
def test_crafting_is_an_attack_on_the_deployed_network(method: str) -> None:
    """The ascent written out on model.trace(x) alone: the gates' own decisions, whatever labels would do."""
    model, objective = globals()["method"](method)
    stir_prototypes(model)
    batch = example()
    got = objective.craft(model, batch, MOMENT).x_adv
    craft, weight = objective.recipe, objective.aux_weight
    model.eval()
    condition = {}
    if craft.loss == "kl":
        output = model.trace(batch.images)
        condition = {"reference": torch.stack([output.logits, *output.aux_logits], 1).detach()}
    draws = Draws(MOMENT.seed, batch.index, "craft", MOMENT.step)
    expected = ascend(
        Surrogate(lambda x: model.trace(x)),
        attack_loss(craft.loss, weight),
        Threat("linf", EPS),
        batch.images,
        batch.labels,
        draws,
        condition,
        steps=3,
        step_size=EPS / 4,
        start=craft.start,
    )
    if method == "ancra" or method in ("classifier-prompt", "everything"):  # in a batch with targeted negatives, equal to rounding
        assert float(((got - expected).abs() < 1e-6).float().mean()) > 0.99
    else:
        assert torch.equal(got, expected)


@each_method
def test_no_label_opens_a_gate_while_crafting(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that labels take is a trap, then a liar: neither shows in x_adv; scoring steps on it."""
    model, objective = globals()["method"](method)
    stir_prototypes(model)
    model.eval()  # batch norm as it is, whoever scores in between
    batch = example()
    honest = objective.craft(model, batch, MOMENT)

    def trap(*_: Any, **__: Any) -> Any:
        raise AssertionError("a label has opened a gate")

    with monkeypatch.context() as patched:
        patched.setattr(Network, "opening", trap)
        again = objective.craft(model, batch, MOMENT)
        with pytest.raises(AssertionError, match="opened a gate"):
            objective.loss(model, batch, honest, MOMENT)
    real, before = Network.opening, objective.loss(model, batch, honest, MOMENT).total
    with monkeypatch.context() as patched:
        patched.setattr(Network, "opening", lambda self, y, *rest: real(self, (y + 1) % K, *rest))
        liar = objective.craft(model, batch, MOMENT)
        assert not torch.equal(objective.loss(model, batch, honest, MOMENT).total, before)
    for other in (again, liar):
        assert torch.equal(honest.x_adv, other.x_adv)
        assert all(torch.equal(honest.extra[key], other.extra[key]) for key in honest.extra)


@each_method
def test_every_gated_pass_of_a_step_uses_its_own_labels(method: str) -> None:
    """y for the clean and the adversarial images, the negatives' own for negatives: changing one batch's labels changes the loss."""
    model, objective = globals()["method"](method)
    batch = example()
    crafted = objective.craft(model, batch, MOMENT)
    seen: list[Tensor] = []
    real = model.opening
    model.opening = lambda y, *rest: (seen.append(y), real(y, *rest))[1]  # type: ignore[method-assign]
    objective.loss(model, batch, crafted, MOMENT)
    expected = {tuple(batch.labels.tolist())}
    if "negatives" in crafted.extra:
        expected.add(tuple(crafted.extra["negative_labels"].tolist()))
    assert {tuple(y.tolist()) for y in seen} == expected


# Purity and state.


@pytest.mark.parametrize("wrapper", [None, AWP], ids=["plain", "awp"])
@each_method
def test_loss_is_pure(method: str, wrapper: dict[str, Any] | None) -> None:
    """Twice the same bits, value, parts and gradients, in train mode; no parameter, prototype or state moves, batch norm apart."""
    model, objective = globals()["method"](method, wrapper=wrapper)
    batch = example()
    crafted = objective.craft(model, batch, MOMENT)
    before, found = state(model, objective), []
    for _ in range(2):
        scored = objective.loss(model, batch, crafted, MOMENT)
        named = {**scored.parts} | {"total": scored.total.detach()}
        assert not any(value.requires_grad for value in scored.parts.values())
        assert not any(value.requires_grad for value in scored.extra.values())
        found.append(named | {f"gradient{i}": g for i, g in enumerate(gradients(scored.total, model, objective))})
    assert_bitwise(*found)
    after = state(model, objective)
    still = [key for key in before if not key.rpartition(".")[2].startswith(("running", "num_batches"))]
    assert any("prototypes" in key for key in still) is ("prototypes" in "".join(before))
    assert_bitwise({key: before[key] for key in still}, {key: after[key] for key in still})


def counters(module: nn.Module) -> set[int]:
    return {int(value) for name, value in module.named_buffers() if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrapper", [None, AWP], ids=["plain", "awp"])
@pytest.mark.parametrize(
    ("method", "times"), [("cas", 1), ("again", 1), ("again-mart", 2), ("ancra", 3), ("stayfocused", 1), ("prompt", 2)]
)
def test_batch_norm_counts_each_scoring_pass_once(method: str, times: int, wrapper: dict[str, Any] | None) -> None:
    """Not crafting, not AWP's probing pass: natural, adversarial, other images as the method scores them."""
    model, objective = globals()["method"](method, wrapper=wrapper)
    Step(model, objective, optimizer_of(model, objective))(example(), MOMENT)
    assert counters(model) == {times}


@pytest.mark.parametrize("method", ["stayfocused", "everything", "ancra"])
def test_awp_perturbs_the_networks_weights_alone(method: str) -> None:
    """Never the clean branch, prototypes, biases or batch norm; and takes all of it off again."""
    model, objective = globals()["method"](method, wrapper=AWP)
    batch = example()
    crafted, before = objective.craft(model, batch, MOMENT), state(model, objective)
    with objective.perturbed(model, batch, crafted, MOMENT):
        inside = state(model, objective)
    moved = {key for key in before if not torch.equal(before[key], inside[key])}
    assert moved == {f"0.{name}" for name, p in model.named_parameters() if p.dim() > 1}
    after = state(model, objective)
    assert all(torch.allclose(before[key], after[key], rtol=0, atol=1e-6) for key in before)


def test_awp_of_gated_objectives_raises_the_loss() -> None:
    for method in ("again", "ancra", "stayfocused"):
        model, objective = globals()["method"](method, wrapper=AWP, dtype=torch.float64)
        batch = example(dtype=torch.float64)
        crafted = objective.craft(model, batch, MOMENT)
        calm = objective.loss(model, batch, crafted, MOMENT).total
        with objective.perturbed(model, batch, crafted, MOMENT):
            assert objective.loss(model, batch, crafted, MOMENT).total > calm


@pytest.mark.parametrize("method", ["prompt", "stayfocused", "everything"])
def test_prototypes_move_after_the_step_and_nowhere_else(method: str) -> None:
    model, objective = globals()["method"](method)
    gate = next(gate for gate in model.gates if isinstance(gate, ChannelPrompt))
    batch = example()._replace(labels=torch.tensor([0, 0, 1, 3, 3] * 3))
    assert bool((gate.prototypes == 1).all())
    with torch.no_grad():
        model(batch.images)
        model.trace(batch.images, labels(batch.labels))
    crafted = objective.craft(model, batch, MOMENT)
    with objective.perturbed(model, batch, crafted, MOMENT):
        scored = objective.loss(model, batch, crafted, MOMENT)
        scored.total.backward()
    assert bool((gate.prototypes == 1).all())
    assert not gate.seen.any()
    objective.after_step(model, batch, scored, MOMENT)
    assert gate.seen.tolist() == [True, True, False, True, False]
    assert bool((gate.prototypes[[2, 4]] == 1).all()), "absent classes stay neutral"
    features = scored.extra["clean_features"]
    for c in (0, 1, 3):
        torch.testing.assert_close(gate.prototypes[c], features[batch.labels == c].mean(0))
    assert gate.prototypes.grad is None


def test_without_a_branch_prototypes_are_of_the_deployed_networks_clean_features() -> None:
    """In eval mode, before the gate, noted while crafting, of the clean images and not of x_adv."""
    model, objective = globals()["method"]("prompt")
    model(example(seed=9).images)
    batch = example()
    crafted = objective.craft(model, batch, MOMENT)
    h = batch.images
    model.eval()
    for name in ("layer1", "layer2", "layer3"):
        h = model.get_submodule(name)(h)
    torch.testing.assert_close(crafted.extra["clean_features"], h.mean((2, 3)).detach(), rtol=0, atol=1e-6)


@each_method
def test_training_steps_are_finite_and_repeatable(method: str) -> None:
    """Three steps from equal starts are equal to the bit, whatever the global generator holds."""
    found = []
    for seed in (0, 1):
        model, objective = globals()["method"](method)
        optimizer = optimizer_of(model, objective)
        torch.manual_seed(seed)
        for step in range(3):
            parts = Step(model, objective, optimizer)(example(seed=step), MOMENT._replace(step=step))
            assert all(bool(value.isfinite().all()) for value in parts.values())
        found.append(state(model, objective))
    assert_bitwise(*found)


@pytest.mark.parametrize("method", ["again", "ancra", "stayfocused", "everything"])
def test_a_step_in_low_precision_is_near(method: str) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model, objective = globals()["method"](method)
        parts = Step(model, objective, optimizer_of(model, objective), precision=precision, craft=precision)(example(), MOMENT)
        losses.append(float(parts["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# The ramp.


@pytest.mark.parametrize("epochs", [2, 4])
def test_the_share_of_gated_steps_grows_on_a_line(epochs: int) -> None:
    """epoch / (E - 1): none in the first epoch, all from epoch E on; 200 steps an epoch within 4 standard errors."""
    objective = method("again", ramp=epochs)[1]
    for epoch in range(epochs + 2):
        expected = min(1.0, epoch / (epochs - 1))
        share = sum(objective.gated(Moment(0, epoch, 200 * epoch + step, 0.0)) for step in range(200)) / 200
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 200) ** 0.5)


def test_without_a_ramp_every_step_is_gated() -> None:
    objective = method("again")[1]
    assert all(objective.gated(Moment(0, epoch, 7, 0.0)) for epoch in range(5))


def test_draws_of_the_ramp_are_the_steps_own() -> None:
    """Resumed or not, and in whatever process: a function of seed and step, not of the batch."""
    first, second = method("again", ramp=11)[1], method("again", ramp=11)[1]
    moments = [Moment(seed, 5, step, 0.0) for seed in (0, 1) for step in range(60)]
    drawn = [first.gated(moment) for moment in moments]
    assert drawn == [second.gated(moment) for moment in reversed(moments)][::-1]
    assert drawn[:60] != drawn[60:]


@pytest.mark.parametrize("method", ["cas", "again", "ancra", "stayfocused"])
def test_crafting_and_scoring_agree_on_whether_gates_close(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step without gates each pass of the network is open and unfused, and gates are none the wiser; else none is open."""
    model, objective = globals()["method"](method, ramp=9)
    real, batch = Network.trace, example()
    kinds = set()
    for step in range(8):
        moment = Moment(0, 4, step, 0.0)
        gated, seen = objective.gated(moment), []

        def spy(self: Network, x: Tensor, select: Any = None, fuse: Any = None, seen: list[Any] = seen) -> Any:
            if self is model:
                seen.append((select is open_gate, bool(fuse)))
            return real(self, x, select, fuse)

        monkeypatch.setattr(Network, "trace", spy)
        crafted = objective.craft(model, batch, moment)
        ascent = len(seen)
        scored = objective.loss(model, batch, crafted, moment)
        assert float(scored.parts["gated"]) == float(gated)
        assert {opened for opened, _ in seen} == {not gated}
        assert any(fused for _, fused in seen[ascent:]) is (gated and method == "again")
        assert not any(fused for _, fused in seen[:ascent]), "no fusion in an attack"
        kinds.add(gated)
    assert kinds == {True, False}


@pytest.mark.parametrize("base", ["pgd-at", "trades"])
def test_a_step_without_gates_is_the_objective_with_auxiliary_heads(base: str) -> None:
    """The first epoch of a ramp: the plain network's loss plus that of probes on it, which then can learn."""
    model_part = {"gates": [SPAN], "fusion": FUSION}
    model, objective = assemble(model_part, {"name": base, "ramp": {"epochs": 9}, "aux_weight": 0}, dtype=torch.float64)
    plain, bare = assemble({}, {"name": base}, dtype=torch.float64)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("gates")})
    moment, batch = MOMENT._replace(epoch=0), example(dtype=torch.float64)
    found, expected = (o.craft(m, batch, moment).x_adv for m, o in ((model, objective), (plain, bare)))
    assert_equal(found, expected)
    got, want = (o.loss(m, batch, Crafted(expected), moment) for m, o in ((model, objective), (plain, bare)))
    assert_equal(got.total, want.total)


# Small batches and few classes.


@pytest.mark.parametrize(("n", "classes"), [(1, K), (4, 1), (6, 2)], ids=["one-image", "one-class", "two-classes"])
@each_method
def test_small_batches_train(method: str, n: int, classes: int) -> None:
    """One image, one class in the batch, or a problem of two classes (whose top two are all)."""
    model, objective = globals()["method"](method, classes=2 if classes == 2 else K)
    batch = example(n, classes=classes)
    optimizer = optimizer_of(model, objective)
    for step in range(2):
        parts = Step(model, objective, optimizer)(batch, MOMENT._replace(step=step))
        assert all(bool(value.isfinite().all()) for value in parts.values())
    assert all(bool(value.isfinite().all()) for value in state(model, objective).values())


def test_more_prompts_than_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="the top 9 of 3 classes"):
        assemble({"gates": [{**PROMPT, "top_k": 9}]}, {"name": "pgd-at"}, classes=3)


def test_as_many_prompts_as_classes_are_all_classes() -> None:
    model, objective = assemble({"gates": [{**PROMPT, "top_k": 3}]}, {"name": "pgd-at"}, classes=3)
    batch = example(classes=3)
    passes = objective.passes(model, batch, objective.craft(model, batch, MOMENT), MOMENT)
    s = passes.route("adversarial", batch.labels).select("features", torch.zeros(15, 3))
    torch.testing.assert_close(s, 0.5 * F.one_hot(batch.labels, 3) + 0.5 / 3)
    assert float(passes.notes["prompts_with_label.features.adversarial"]) == 1


def test_one_image_on_a_map_of_one_pixel_is_torchs_to_refuse() -> None:
    """Batch norm has no statistics of one value; a second image, or frozen batch norm, and it trains."""
    model, objective = assemble({"gates": [SPAN], "fusion": FUSION}, {"name": "pgd-at"}, arch="resnet18", width=0.05)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Step(model, objective, optimizer_of(model, objective))(example(1), MOMENT)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    parts = Step(model, objective, optimizer_of(model, objective))(example(2), MOMENT)
    assert bool(parts["loss"].isfinite())
    model.eval()
    assert bool(Step(model, objective, optimizer_of(model, objective))(example(1), MOMENT)["loss"].isfinite())


def test_standard_training_opens_gates_by_labels_too() -> None:
    """CE of every head on clean images, each gate opened by the label: what a pretrained gated network is."""
    recipe = {"name": "test", "data": {"name": "digits"}, "model": {"arch": "small-cnn", "width": 0.25, "gates": [{**CAS, "at": TWO}]}}
    made = Recipe.model_validate(
        {**recipe, "objective": {"name": "standard", "aux_weight": 0.5}, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}}
    )
    model = build(Architecture("small-cnn", 0.25, K, 1, 8, gates=made.model.gates), seed=1).double().eval()
    batch = example(dtype=torch.float64)
    output = model.trace(batch.images, labels(batch.labels))
    expected = plain_ce(output.logits, batch.labels) + 0.5 * sum(plain_ce(aux, batch.labels) for aux in output.aux_logits) / 2
    total = build_objective(made).loss(model, batch, Crafted(batch.images), MOMENT).total
    assert_equal(total, expected)


def test_a_forced_class_is_not_what_training_uses() -> None:
    """Training's selection is by label: forcing labels everywhere gives the same pass for gates that mix nothing."""
    model, objective = method("cas", dtype=torch.float64)
    model.eval()
    batch = example(dtype=torch.float64)
    passes = objective.passes(model, batch, Crafted(batch.images), MOMENT)
    assert_equal(passes.adversarial.logits, model.trace(batch.images, forced(batch.labels)).logits)
    assert not torch.allclose(passes.adversarial.logits, model(batch.images))


# What a step costs.

WIDE = {"arch": "resnet18", "width": 0.125, "channels": 3, "size": 32, "classes": 10}
LAYER4 = ["layer4.0", "layer4.1"]


def heads_of(h: int) -> list[dict[str, Any]]:
    return [{"name": "masked-view", "ratios": [0.25, 0.5, 0.75][: h - 1]}, SHC]


# A forward is 1, a backward to the input 1, one to input and weights 2: ten steps 20, a scored pass 3.
COSTS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], int]] = [
    ("pgd-at", {}, {"name": "pgd-at"}, {}, 20 + 3),
    ("cas", {"gates": [{**CAS, "at": LAYER4}]}, {"name": "pgd-at"}, {}, 20 + 3),
    ("again", {"gates": [SPAN], "fusion": FUSION}, {"name": "pgd-at"}, {}, 20 + 3),
    ("again+awp", {"gates": [SPAN], "fusion": FUSION}, {"name": "pgd-at", "wrapper": AWP}, {}, 20 + 3 + 3),
    ("ancra", {"gates": [{**RA, "at": LAYER4}]}, {"name": "trades", "terms": [ANC]}, {"loss": "ce"}, 40 + 9),
    ("ancra-kl", {"gates": [RA]}, {"name": "trades", "terms": [ANC]}, {"loss": "kl"}, 1 + 40 + 9),
    ("ancra-random", {"gates": [RA]}, {"name": "trades", "terms": [{**ANC, "negatives": "random"}]}, {"loss": "ce"}, 20 + 9),
    ("ancra-soft", {"gates": [RA]}, {"name": "trades", "terms": [{**ANC, "negatives": "soft"}]}, {"loss": "ce"}, 1 + 20 + 9),
    ("pgd-at-ancra", {"gates": [RA]}, {"name": "pgd-at", "terms": [ANC]}, {}, 40 + 3 + 3 + 1),  # the clean pass without a backward
    ("stayfocused-2", {"gates": [PROMPT]}, {"name": "pgd-at", "terms": heads_of(2)}, {}, 20 + 3 + 2 * 3),
    ("stayfocused-3", {"gates": [PROMPT]}, {"name": "pgd-at", "terms": heads_of(3)}, {}, 20 + 3 + 3 * 3),
    ("stayfocused-4", {"gates": [PROMPT]}, {"name": "pgd-at", "terms": heads_of(4)}, {}, 20 + 3 + 4 * 3),
    ("prompt", {"gates": [PROMPT]}, {"name": "pgd-at"}, {}, 1 + 20 + 3),  # clean features from one forward
    ("stayfocused+awp", {"gates": [PROMPT]}, {"name": "pgd-at", "terms": heads_of(2), "wrapper": AWP}, {}, 20 + 2 * 3 + 2 * 3 + 2),
]


@pytest.mark.parametrize(("model_part", "objective_part", "craft", "floor"), [row[1:] for row in COSTS], ids=[row[0] for row in COSTS])
def test_a_step_costs_its_floor(model_part: dict[str, Any], objective_part: dict[str, Any], craft: dict[str, Any], floor: int) -> None:
    """Within 3 %: gates and contrasts are nearly free, and no pass is made twice. AWP's probing pass runs the clean branch too,
    forward but not backward, as the branch's weights are not perturbed."""
    model, objective = assemble(model_part, objective_part, {**craft, "steps": 10}, **WIDE)
    batch = example(4, classes=10, channels=3, size=32)
    optimizer = optimizer_of(model, objective)
    one = forward_flops(copy.deepcopy(model), batch.images)
    with FlopMeter() as meter:
        Step(model, objective, optimizer)(batch, MOMENT)
    assert meter.total / one == pytest.approx(floor, rel=0.03)


def test_a_subclass_gives_the_base_and_gets_the_rest() -> None:
    """An objective of one's own: gates, terms and state come with it."""

    class Own(AdversarialObjective):
        def base(self, passes: Any) -> LossParts:
            return LossParts(passes.adversarial.logits.square().mean(), {})

    recipe = method("prompt")[1]
    assert isinstance(recipe, AdversarialObjective)
    made = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "model": {"arch": "small-cnn", "gates": [PROMPT]}, "craft": {"steps": 1}}
        | {"objective": {"name": "pgd-at", "terms": [SHC]}, "optim": {"lr": 0.1}, "schedule": {"epochs": 1}}
    )
    model = build(Architecture("small-cnn", 1.0, K, 1, 8, gates=made.model.gates))
    objective: Callable[..., Any] = Own(made)
    scored = objective.loss(model, example(), objective.craft(model, example(), MOMENT), MOMENT)  # type: ignore[attr-defined]
    assert "shc" in scored.parts
    assert "clean_features" in scored.extra
