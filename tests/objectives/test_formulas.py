"""Every objective against its published formula, written out plainly in float64: value, gradient, crafting and batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.data import Batch, Moment
from advcli.draws import Draws
from advcli.gates import Selection
from advcli.gates.fusion import Fusion
from advcli.models import ModelOutput, Network
from advcli.objectives import Crafted, Objective, build_objective
from advcli.objectives.mart import boosted_cross_entropy, doubt, weighted_kl
from advcli.objectives.trades import robust_regulariser
from advcli.recipe import Recipe

N, K, EPS = 12, 5, 0.1
MOMENT = Moment(seed=3, epoch=0, step=7, progress=0.0)


class Tiny(Network):
    """Two convolutions with batch norm; as many auxiliary heads as wanted, reading the first layer."""

    def __init__(self, heads: int = 0) -> None:
        super().__init__(1, K, 8)
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Softplus())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.Softplus())
        self.aux = nn.ModuleList(nn.Linear(6, K) for _ in range(heads))

    def trace(self, x: Tensor, select: Selection | None = None, fuse: Mapping[str, Fusion] | None = None) -> ModelOutput:
        low = self.first(x)
        high = self.second(low)
        aux = tuple(2 * head(low.mean((2, 3))) for head in self.aux)
        return ModelOutput(4 * self.linear(high.mean((2, 3))), aux, high, high)


def tiny(heads: int = 0) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(heads).double().train()


def example(n: int = N) -> Batch:
    """Images away from the edge of the box."""
    generator = torch.Generator().manual_seed(1)
    images = 0.02 + 0.96 * torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(K, (n,), generator=generator), torch.arange(n) * 3)


def nearby(batch: Batch) -> Tensor:
    noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (batch.images + EPS * (2 * noise - 1)).clamp(0, 1)


def objective(name: str, *, norm: str = "linf", craft: dict[str, Any] | None = None, **settings: Any) -> Objective:
    recipe: dict[str, Any] = {"name": "test", "data": {"name": "digits"}, "model": {"arch": "small-cnn"}}
    recipe |= {"threat": {"norm": norm, "eps": EPS}, "objective": {"name": name, **settings}}
    recipe |= {"optim": {"lr": 0.1}, "schedule": {"epochs": 1}}
    return build_objective(Recipe.model_validate(recipe if craft is None else {**recipe, "craft": craft}))


# The papers' formulas, one example and one probability at a time; y is the label, p and q the softmax at x and at x_adv. sure is the
# clean softmax that MART takes its doubt from: the decision's, or the first auxiliary head's, which no label has gated.


def formula_ce(z: Tensor, y: int) -> Tensor:
    return -(z.exp() / z.exp().sum())[y].log()


def formula_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))


def formula_standard(clean: Tensor, adv: Tensor, y: int, beta: float, sure: Tensor) -> Tensor:
    return formula_ce(clean, y)


def formula_pgd_at(clean: Tensor, adv: Tensor, y: int, beta: float, sure: Tensor) -> Tensor:
    return formula_ce(adv, y)


def formula_trades(clean: Tensor, adv: Tensor, y: int, beta: float, sure: Tensor) -> Tensor:
    return formula_ce(clean, y) + beta * formula_kl(clean.softmax(0), adv.softmax(0))


def formula_mart(clean: Tensor, adv: Tensor, y: int, beta: float, sure: Tensor) -> Tensor:
    p, q = clean.softmax(0), adv.softmax(0)
    runner_up = max((q[k] for k in range(len(q)) if k != y), key=Tensor.item)
    return -q[y].log() - (1 - runner_up).log() + beta * formula_kl(p, q) * (1 - sure[y])


FORMULAS = {"standard": formula_standard, "pgd-at": formula_pgd_at, "trades": formula_trades, "mart": formula_mart}
BETA = {"trades": 6.0, "mart": 5.0}
PAIRED = ["trades", "mart"]
each_objective = pytest.mark.parametrize("name", FORMULAS)


def plain_total(name: str, model: Network, batch: Batch, x_adv: Tensor, *, aux_weight: float, beta: float) -> Tensor:
    """Mean over the batch of the formula on the decision + aux_weight * the mean of the formula on auxiliary heads."""
    clean, adv = model.trace(batch.images), model.trace(x_adv)

    sure = (*clean.aux_logits, clean.logits)[0].softmax(1)

    def mean(c: Tensor, a: Tensor) -> Tensor:
        return sum(FORMULAS[name](c[i], a[i], int(batch.labels[i]), beta, sure[i]) for i in range(len(c))) / len(c)

    aux = [mean(c, a) for c, a in zip(clean.aux_logits, adv.aux_logits, strict=True)]
    total = mean(clean.logits, adv.logits)
    return total + aux_weight * sum(aux) / len(aux) if aux else total


def gradients(total: Tensor, model: Network) -> list[Tensor]:
    got = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), got, strict=True)]


def scored(made: Objective, model: Network, batch: Batch, x_adv: Tensor) -> tuple[Tensor, list[Tensor]]:
    total = made.loss(model, batch, Crafted(x_adv), MOMENT).total
    return total, gradients(total, model)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def assert_equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("heads", "aux_weight"), [(0, 1.0), (1, 0.7), (2, 1.3), (2, 0.0)])
@each_objective
def test_loss_and_gradient_are_the_papers(name: str, heads: int, aux_weight: float) -> None:
    batch, model = example(), tiny(heads)
    made = objective(name, aux_weight=aux_weight, **({"beta": BETA[name]} if name in BETA else {}))
    total, gradient = scored(made, model, batch, nearby(batch))
    twin = tiny(heads)
    expected = plain_total(name, twin, batch, nearby(batch), aux_weight=aux_weight, beta=BETA.get(name, 0.0))
    assert_equal(total, expected)
    assert_equal(gradient, gradients(expected, twin))
    assert any(bool(g.abs().max() > 1e-3) for g in gradient)


@each_objective
def test_logged_parts_add_up(name: str) -> None:
    batch, model = example(), tiny(1)
    parts = objective(name, aux_weight=0.5).loss(model, batch, Crafted(nearby(batch)), MOMENT)
    weights = {"ce": 1, "ce_adv": 1, "bce": 1, "kl": BETA.get(name), "weighted_kl": BETA.get(name)}
    shares = {key: (0.5 if "aux" in key else 1) * weights[key.partition(".")[0]] for key in parts.parts}
    assert_equal(sum(shares[key] * value for key, value in parts.parts.items()), parts.total.detach())
    assert not any(value.requires_grad for value in parts.parts.values())


def test_trades_without_beta_is_standard_training() -> None:
    batch = example()
    expected = scored(objective("standard"), tiny(1), batch, batch.images)
    assert_equal(scored(objective("trades", beta=0), tiny(1), batch, nearby(batch)), expected)


@pytest.mark.parametrize("name", PAIRED)
def test_regularisers_vanish_where_nothing_was_moved(name: str) -> None:
    """x_adv = x: TRADES is the clean CE, MART the boosted CE there, whatever beta."""
    batch = example()
    totals = [objective(name, beta=beta).loss(tiny(), batch, Crafted(batch.images), MOMENT).total for beta in (0, 50)]
    assert_equal(totals[0], totals[1])


@pytest.mark.parametrize("name", PAIRED)
def test_clean_branch_feels_the_regulariser(name: str) -> None:
    """No detach on p(x): the gradient by the clean logits is that of the formula, not zero."""
    generator = torch.Generator().manual_seed(0)
    clean, adv = (torch.randn(4, K, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.tensor([0, 1, 2, 3])
    ours = robust_regulariser(clean, adv) if name == "trades" else weighted_kl(clean, adv, doubt(clean, y))
    weight = [1 if name == "trades" else 1 - clean[i].softmax(0)[y[i]] for i in range(4)]
    plain = sum(weight[i] * formula_kl(clean[i].softmax(0), adv[i].softmax(0)) for i in range(4)) / 4
    mine, theirs = (torch.autograd.grad(value, (clean, adv)) for value in (ours, plain))
    assert_equal(mine, theirs)
    assert all(bool(g.abs().max() > 1e-3) for g in mine)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mart_stays_finite_at_extreme_logits(scale: float, dtype: torch.dtype) -> None:
    """log(1 - p_k) of a p_k that rounds to 1 is still a number, with a gradient."""
    z = torch.tensor([[1.0, 0, -1], [-1.0, 1, 0], [1.0, 1, 1], [0.0, 0, 1]], dtype=dtype).mul_(scale).requires_grad_(True)
    y = torch.tensor([0, 0, 0, 1])
    other = z.detach().flip(1)
    for value in (boosted_cross_entropy(z, y), weighted_kl(z, other, doubt(z, y)), weighted_kl(other, z, doubt(other, y))):
        (gradient,) = torch.autograd.grad(value, z, retain_graph=True)
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(gradient).all())


def test_boosted_cross_entropy_of_two_classes_is_twice_the_cross_entropy() -> None:
    """1 - p_other is p_y: -2 log p_y."""
    z = torch.tensor([[0.3, -1.2], [40.0, -40.0]], dtype=torch.float64)
    expected = -2 * z.log_softmax(1)[torch.arange(2), torch.tensor([0, 1])].mean()
    assert_equal(boosted_cross_entropy(z, torch.tensor([0, 1])), expected)


@pytest.mark.parametrize("mode", ["separate", "joint"])
@pytest.mark.parametrize("name", PAIRED)
def test_batch_norm_sees_two_batches_or_one(name: str, mode: str) -> None:
    batch, model, twin = example(), tiny(), tiny()
    x_adv = nearby(batch)
    objective(name, batch_norm=mode).loss(model, batch, Crafted(x_adv), MOMENT)
    for images in (batch.images, x_adv) if mode == "separate" else (torch.cat([batch.images, x_adv]),):
        twin(images)
    assert_equal(buffers(model), buffers(twin))
    assert int(model.first[1].num_batches_tracked) == (2 if mode == "separate" else 1)


@pytest.mark.parametrize("name", PAIRED)
def test_joint_and_separate_agree_without_batch_statistics(name: str) -> None:
    batch = example()
    separate, joint = (scored(objective(name, batch_norm=mode), tiny(2).eval(), batch, nearby(batch)) for mode in ("separate", "joint"))
    assert_equal(separate, joint)


def test_joint_is_the_formula_on_one_concatenated_pass() -> None:
    batch, model, twin = example(), tiny(), tiny()
    total = objective("trades", batch_norm="joint").loss(model, batch, Crafted(nearby(batch)), MOMENT).total
    both = twin(torch.cat([batch.images, nearby(batch)]))
    rows = [formula_trades(both[i], both[N + i], int(batch.labels[i]), 6.0, both[i]) for i in range(N)]
    assert_equal(total, sum(rows) / N)


def test_clean_pass_moves_batch_norm_and_nothing_else() -> None:
    batch, models = example(), [tiny(), tiny()]
    without, with_it = (
        scored(objective("pgd-at", clean_pass=flag), model, batch, nearby(batch)) for flag, model in zip((False, True), models, strict=True)
    )
    assert_equal(without, with_it)
    twin = tiny()
    twin(batch.images)
    twin(nearby(batch))
    assert_equal(buffers(models[1]), buffers(twin))
    assert not torch.equal(models[0].first[1].running_mean, models[1].first[1].running_mean)


@each_objective
def test_loss_is_pure(name: str) -> None:
    """Twice the same, by value and gradient, in train mode; no parameter, and nothing of the objective, moves."""
    batch, model, made = example(), tiny(1), objective(name)
    before = copy.deepcopy(list(model.parameters()))
    first, second = (scored(made, model, batch, nearby(batch)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert made.state_dict() == {}
    assert all(p.grad is None for p in model.parameters())


# Crafting.

CRAFTS = [
    ("pgd-at", {"loss": "ce", "start": "uniform"}),
    ("pgd-at", {"loss": "margin", "start": "none"}),
    ("trades", {"loss": "kl", "start": "normal"}),
    ("mart", {"loss": "ce", "start": "normal"}),
    ("trades", {"loss": "kl", "start": "uniform", "heads": "final"}),
]
each_craft = pytest.mark.parametrize(("name", "craft"), CRAFTS, ids=[f"{n}-{c['loss']}-{c['start']}" for n, c in CRAFTS])
each_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
STEPS, SIZE = 4, 0.04


def crafted(name: str, craft: dict[str, Any], model: Network, batch: Batch, moment: Moment = MOMENT, norm: str = "linf") -> Tensor:
    return objective(name, norm=norm, craft={"steps": STEPS, "step_size": SIZE, **craft}).craft(model, batch, moment).x_adv


@each_norm
@each_craft
def test_crafted_images_lie_in_ball_and_box(name: str, craft: dict[str, Any], norm: str) -> None:
    batch = example()
    edge = batch._replace(images=(2 * batch.images - 0.5).clamp(0, 1))
    for images in (batch, edge):
        x_adv = crafted(name, craft, tiny(1), images, norm=norm)
        assert bool((x_adv >= 0).all())
        assert bool((x_adv <= 1).all())
        delta = (x_adv - images.images).flatten(1)
        assert bool(((delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)) <= EPS + 1e-12).all())
        assert bool((delta != 0).any(1).all())
        assert not x_adv.requires_grad


@each_craft
def test_crafting_is_fixed_by_moment_and_example(name: str, craft: dict[str, Any]) -> None:
    batch, model = example(), tiny(1)
    whole = crafted(name, craft, model, batch)
    assert torch.equal(crafted(name, craft, model, batch), whole)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:5]):
        assert_equal(crafted(name, craft, model, Batch(*(t[rows] for t in batch))), whole[rows])
    if craft["start"] != "none":
        for other in (MOMENT._replace(step=8), MOMENT._replace(seed=4)):
            assert not torch.equal(crafted(name, craft, model, batch, other), whole)


@pytest.mark.parametrize("mode", ["eval", "train"])
@each_craft
def test_crafting_leaves_the_network_as_it_was(name: str, craft: dict[str, Any], mode: str) -> None:
    """Every flag, mixed on purpose, and no gradient. Batch norm moves where the recipe says train: once a forward, and not else."""
    model, batch = tiny(1), example()
    model.second.eval()
    model.first[0].weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    before, weights = buffers(model), copy.deepcopy(list(model.parameters()))
    crafted(name, {**craft, "batch_norm": mode}, model, batch)
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    after = buffers(model)
    if mode == "eval":
        assert all(torch.equal(before[key], after[key]) for key in before)
    else:
        assert int(after["first.1.num_batches_tracked"]) == STEPS + (craft["loss"] == "kl")
        assert not torch.equal(before["second.1.running_var"], after["second.1.running_var"])


def test_standard_training_crafts_nothing() -> None:
    batch = example()
    assert objective("standard").craft(tiny(), batch, MOMENT).x_adv is batch.images


def craft_draws(batch: Batch) -> Draws:
    return Draws(MOMENT.seed, batch.index, "craft", MOMENT.step)


def normal_noise(batch: Batch) -> Tensor:
    return 0.001 * craft_draws(batch).normal(batch.images.shape[1:])


def uniform_noise(batch: Batch) -> Tensor:
    return EPS * (2 * craft_draws(batch).uniform(batch.images.shape[1:]) - 1)


def trades_criterion(model: Network, x_adv: Tensor, batch: Batch) -> Tensor:
    """As in the authors' code: the natural prediction anew in every step, KLDivLoss with size_average=False."""
    natural = model(batch.images).softmax(1)
    return nn.KLDivLoss(reduction="sum")(model(x_adv).log_softmax(1), natural)


def madry_criterion(model: Network, x_adv: Tensor, batch: Batch) -> Tensor:
    return nn.CrossEntropyLoss(reduction="sum")(model(x_adv), batch.labels)


@pytest.mark.parametrize(
    ("name", "criterion", "noise", "mode"),
    [
        ("trades", trades_criterion, normal_noise, "eval"),
        ("mart", madry_criterion, normal_noise, "eval"),
        ("pgd-at", madry_criterion, uniform_noise, "eval"),
        ("pgd-at", madry_criterion, uniform_noise, "train"),
    ],
)
def test_crafting_is_the_authors_loop(name: str, criterion: Callable[..., Tensor], noise: Callable[[Batch], Tensor], mode: str) -> None:
    """What TRADES', MART's and Madry's code does, with the recipe's defaults for each; images away from the edge at the start."""
    batch, model, twin = example(), tiny(), tiny()
    batch = batch._replace(images=0.11 + 0.78 * batch.images)
    x_adv = crafted(name, {"batch_norm": mode}, model, batch)
    twin.train(mode == "train")
    expected = batch.images + noise(batch)
    for _ in range(STEPS):
        expected = expected.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(criterion(twin, expected, batch), expected)
        expected = expected.detach() + SIZE * gradient.sign()
        expected = torch.min(torch.max(expected, batch.images - EPS), batch.images + EPS).clamp(0, 1)
    assert_equal(x_adv, expected)


def test_joint_heads_take_part_in_crafting_and_final_ones_do_not() -> None:
    batch = example()
    joint, final = (crafted("pgd-at", {"heads": heads}, tiny(2), batch) for heads in ("joint", "final"))
    blind = tiny(2)
    for head in blind.aux:
        head.weight.data.zero_()
    assert not torch.equal(joint, final)
    assert torch.equal(crafted("pgd-at", {"heads": "final"}, blind, batch), final)
    assert_equal(crafted("pgd-at", {"heads": "joint"}, blind, batch), final)


@pytest.mark.parametrize(("name", "loss", "start"), [("pgd-at", "ce", "uniform"), ("trades", "kl", "normal"), ("mart", "ce", "normal")])
def test_recipes_default_to_the_papers_attack(name: str, loss: str, start: str) -> None:
    made = objective(name, craft={})
    assert (made.recipe.loss, made.recipe.start, made.recipe.batch_norm, made.recipe.steps) == (loss, start, "eval", 10)
    assert made.step_size == pytest.approx(EPS / 4)
