"""Others' loops do the same mathematics as ours, and cost what their descriptions say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advcli.attacks import Threat
from advcli.attacks.pgd import starting_point
from advcli.data import Batch, DataSet, Moment, Split
from advcli.draws import Draws
from advcli.gates.pairing import others
from advcli.models import Architecture, Network, build
from advcli.objectives import Crafted, build_objective
from advcli.recipe import Recipe, load
from advcli.training import peers
from advcli.training.cost import FlopMeter, forward_flops
from advcli.training.matching import PEERS, Peer, plan, same_method
from advcli.training.phases import after_craft
from advcli.training.step import Step

MOMENT = Moment(3, 0, 5, 0.0)
OWN = [peer for peer in PEERS if peer.package is None]
NO_IMAGES = Split(torch.empty(0), torch.empty(0), torch.empty(0))
each_loop = pytest.mark.parametrize("peer", OWN, ids=lambda peer: peer.name)


def example(n: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 32, 32, generator=generator).to(dtype)
    return Batch(images, torch.randint(10, (n,), generator=generator), torch.arange(n))


def network(recipe: Recipe) -> Network:
    return build(Architecture("resnet18", 0.125, 10, 3, 32, gates=recipe.model.gates), seed=0).train()


def sgd(model: Network) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def our_step(recipe: Recipe, model: Network) -> Step:
    objective = build_objective(recipe)
    objective.setup(model, DataSet(NO_IMAGES, NO_IMAGES, ()))
    return Step(model, objective, sgd(model))


@pytest.mark.parametrize(
    ("peer", "theirs", "ours"), list(zip(OWN, (35, 39, 52), (23, 27, 49), strict=True)), ids=[peer.name for peer in OWN]
)
def test_a_loop_costs_what_its_description_says(peer: Peer, theirs: int, ours: int) -> None:
    """In forwards of the batch, within 1 %: the first layer needs no gradient of the images in scoring."""
    recipe, batch = load(peer.recipe), example(4)
    model = network(recipe)
    one = forward_flops(model.eval(), batch.images)
    model.train()
    with FlopMeter() as meter:
        our_step(recipe, model)(batch, MOMENT)
    assert meter.total / one == pytest.approx(ours, rel=0.01)
    with FlopMeter() as meter:
        peer.loop(model, sgd(model), batch, plan(recipe))
    assert meter.total / one == pytest.approx(theirs, rel=0.01)


class FrozenNorm(torch.nn.BatchNorm2d):
    """Batch norm that never leaves eval mode, so that it does not matter how often and in what mode a loop passes the images."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(False)
        return self


def exact(recipe: Recipe) -> Network:
    """In float64, with frozen batch norm of uneven statistics."""
    model, generator = network(recipe).double(), torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.__class__ = FrozenNorm
            for tensor, low, width in ((module.weight, 0.5, 1.0), (module.running_mean, -0.05, 0.1), (module.running_var, 0.1, 0.2)):
                assert tensor is not None
                tensor.data = low + width * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return model.train()


def starts(recipe: Recipe, batch: Batch) -> list[Tensor]:
    """Where our crafting begins, in the order in which the loop asks: negatives first, where there are some."""
    assert recipe.craft is not None
    threat, (x, y, index) = Threat("linf", float(recipe.threat.eps)), batch
    start = recipe.craft.start
    own = starting_point(threat, start, x, Draws(MOMENT.seed, index, "craft", MOMENT.step))
    if same_method(recipe) != "ancra":
        return [own]
    late = torch.full_like(index, MOMENT.step + 2**31)
    return [starting_point(threat, start, x[partners(y, index)], Draws(MOMENT.seed, index, "craft", late)), own]


def partners(y: Tensor, index: Tensor) -> Tensor:
    return others(y, Draws(MOMENT.seed, index, "negatives", MOMENT.step))[0]


@each_loop
def test_a_loop_makes_the_step_that_ours_makes(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From equal starts, in float64, with batch norm frozen: equal gradients of every weight, and equal weights after the step."""
    recipe, batch = load(peer.recipe), example(6, torch.float64)
    mine, theirs, before = exact(recipe), exact(recipe), exact(recipe)
    step, crafted = our_step(recipe, mine), list[Crafted]()
    with after_craft(step.objective, crafted.append):
        loss = step(batch, MOMENT)["loss"]
    given = iter(starts(recipe, batch))
    monkeypatch.setattr(peers, "uniform_start", lambda x, eps: next(given))
    monkeypatch.setattr(peers, "normal_start", lambda x: next(given))
    monkeypatch.setattr(peers, "picked_negatives", lambda y, k: partners(y, batch.index).tolist())
    told = peer.loop(theirs, sgd(theirs), batch, plan(recipe))
    assert told.loss == pytest.approx(float(loss), rel=1e-9)
    torch.testing.assert_close(told.x_adv, crafted[0].x_adv, rtol=0, atol=1e-12)
    assert next(given, None) is None
    for (name, a), b, first in zip(mine.named_parameters(), theirs.parameters(), before.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10, msg=name)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)
        assert float(a.grad.abs().max()) > 1e-6, name
        assert not torch.equal(a, first), name


@pytest.mark.parametrize(("peer", "moves"), list(zip(OWN, (13, 3, 3), strict=True)), ids=[peer.name for peer in OWN])
def test_how_often_a_loop_moves_batch_statistics(peer: Peer, moves: int) -> None:
    """The .backward() loop in every pass, the others in scoring alone."""
    recipe = load(peer.recipe)
    model = network(recipe)
    peer.loop(model, sgd(model), example(4), plan(recipe))
    counts = {int(module.num_batches_tracked) for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert counts == {moves}


def test_negatives_are_of_another_class() -> None:
    y = torch.tensor([0, 0, 1, 2, 2, 2])
    rows = [peers.picked_negatives(y, 10) for _ in range(50)]
    assert all(int(y[partner]) != int(label) for picked in rows for partner, label in zip(picked, y, strict=True))
    assert {picked[2] for picked in rows} == {0, 1, 3, 4, 5}


METHODS: list[tuple[str, list[str], str | None]] = [
    ("pgd-at", [], "pgd-at"),
    ("quickstart", [], "pgd-at"),
    ("trades", ["model.arch=wrn-34-10"], "trades"),
    ("ancra", ["data.name=cifar100"], "ancra"),
    ("pgd-at", ["threat={norm: l2, eps: 0.5}"], None),
    ("pgd-at", ["objective.wrapper.name=awp"], None),
    ("pgd-at", ["objective.clean_pass=true"], None),
    ("pgd-at", ["craft.batch_norm=train"], None),
    ("pgd-at", ["craft.loss=margin"], None),
    ("pgd-at", ["train.ema=0.99"], None),
    ("trades", ["craft.loss=ce"], None),
    ("ancra", ["objective.terms=[]"], None),
    ("ancra", ["objective.terms.0.negatives=random"], None),
    ("ancra", ["model.gates=[]"], None),
    ("mart", [], None),
    ("again", [], None),
    ("cas", [], None),
    ("standard", [], None),
]


@pytest.mark.parametrize(("name", "overrides", "method"), METHODS, ids=lambda value: str(value))
def test_who_has_peers(name: str, overrides: list[str], method: str | None) -> None:
    assert same_method(load(name, overrides)) == method


def test_a_plan_is_the_recipe_s() -> None:
    made = plan(load("ancra"))
    assert (made.eps, made.step_size, made.steps) == (8 / 255, 0.007, 10)
    assert (made.beta, made.aux_weight, made.weight, made.alpha) == (6.0, 2.0, 3.0, 1.0)
    assert plan(load("pgd-at")) == peers.Plan(8 / 255, 2 / 255, 10)


def test_packages_are_called_as_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that move nothing: the step that follows is a step on the images, in train mode."""
    import sys
    from types import ModuleType, SimpleNamespace

    seen: dict[str, Any] = {}

    def attack(**settings: Any) -> Any:
        seen.update(settings)
        return lambda model, x, y, epsilons: (x, x, None)

    def pgd(model: Network, **settings: Any) -> Any:
        seen.update(settings)
        return lambda x, y: x

    for name, content in (
        ("torchattacks", {"PGD": pgd}),
        ("foolbox", {"attacks": SimpleNamespace(LinfPGD=attack), "PyTorchModel": lambda model, **rest: model}),
    ):
        package = ModuleType(name)
        package.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, package)
    recipe, batch = load("pgd-at"), example(8)
    for peer in PEERS:
        if peer.package:
            mine, theirs = network(recipe), network(recipe)
            theirs_loss = peer.loop(theirs, sgd(theirs), batch, plan(recipe)).loss
            loss = torch.nn.functional.cross_entropy(mine(batch.images), batch.labels)
            assert theirs_loss == pytest.approx(loss.item())
            assert seen["steps"] == 10
            assert seen.get("eps", 8 / 255) == 8 / 255
