"""One optimiser step: it learns, it logs, and low precision stays out of the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from advcli.data import Batch, DataSet, Moment, Split
from advcli.models import Architecture, Network, build
from advcli.objectives import Objective, build_objective
from advcli.recipe import Recipe, load
from advcli.training.step import Step

OBJECTIVES: dict[str, dict[str, Any]] = {
    "standard": {"name": "standard"},
    "pgd-at": {"name": "pgd-at"},
    "trades": {"name": "trades"},
    "mart": {"name": "mart"},
    "arrest": {"name": "arrest", "distillation": {"name": "angular", "weight": 5}, "replay": {"until": 1}},
    "pgd-at+awp": {"name": "pgd-at", "wrapper": {"name": "awp", "gamma": 0.005}},
    "trades+awp": {"name": "trades", "wrapper": {"name": "awp", "gamma": 0.005}},
}
PARTS = {"standard": {"ce"}, "pgd-at": {"ce_adv"}, "trades": {"ce", "kl"}, "mart": {"bce", "weighted_kl"}}
PARTS["arrest"] = {"ce_adv", "distillation", "replayed"}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def objective(name: str, model: Network) -> Objective:
    recipe: dict[str, Any] = {"name": "test", "data": {"name": "digits"}, "threat": {"eps": 0.1}, "model": {"arch": "small-cnn"}}
    recipe |= {"objective": OBJECTIVES[name], "optim": {"lr": 0.1}, "schedule": {"epochs": 1}}
    made = build_objective(Recipe.model_validate(recipe if name == "standard" else {**recipe, "craft": {"steps": 2}}))
    none = Split(torch.empty(0), torch.empty(0), torch.empty(0))
    made.setup(model, DataSet(none, none, ()))
    return made


def network() -> Network:
    return build(Architecture("small-cnn", 0.25, 4, 1, 8), seed=0).train()


def example() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(32, 1, 8, 8, generator=generator), torch.randint(4, (32,), generator=generator), torch.arange(32))


def run(name: str, model: Network, steps: int, precision: str = "fp32") -> list[dict[str, torch.Tensor]]:
    made, batch, optimizer = objective(name, model), example(), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return [Step(model, made, optimizer, precision=precision, craft=precision)(batch, Moment(0, 0, step, 0.0)) for step in range(steps)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@each_objective
def test_steps_on_a_fixed_batch_lower_the_loss(name: str, precision: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    losses = [float(scalars["loss"]) for scalars in run(name, model, 20, precision)]
    assert sum(losses[-3:]) / 3 < 0.95 * losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@each_objective
def test_scalars_are_logged_detached_in_float32(name: str, precision: str) -> None:
    (scalars,) = run(name, network(), 1, precision)
    assert set(scalars) == {"loss"} | PARTS[name.split("+")[0]]
    for value in scalars.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value))


@each_objective
def test_bf16_rounds_activations_and_not_weights(name: str) -> None:
    """Weights, gradients and momentum stay float32; the convolutions do run in bfloat16; the step goes nearly the same way."""
    exact, low = network(), network()
    seen: list[torch.dtype] = []
    block = low.get_submodule("layer2.0")  # a teacher, being a copy, has the hook too
    block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype) if module is block else None)
    run(name, exact, 1)
    made, optimizer = objective(name, low), torch.optim.SGD(low.parameters(), lr=0.05, momentum=0.9)
    Step(low, made, optimizer, precision="bf16", craft="bf16")(example(), Moment(0, 0, 0, 0.0))
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in low.parameters())
    assert all(state["momentum_buffer"].dtype == torch.float32 for state in optimizer.state.values())
    assert all(b.dtype in (torch.float32, torch.int64) for b in low.buffers())
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    moves = [torch.cat([p.detach().flatten() for p in model.parameters()]) - start for model in (exact, low)]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.9


class Recorder(Objective):
    """Writes down in which order a step calls an objective, and what the weights are at each call."""

    def __init__(self, inner: Objective) -> None:
        super().__init__()
        self.inner, self.calls, self.weights = inner, [], []

    def _note(self, name: str, model: Network) -> None:
        self.calls.append(name)
        self.weights.append(model.linear.weight.detach().clone())

    def craft(self, model: Network, *args: Any) -> Any:
        self._note("craft", model)
        return self.inner.craft(model, *args)

    def loss(self, model: Network, *args: Any) -> Any:
        self._note("loss", model)
        return self.inner.loss(model, *args)

    def after_step(self, model: Network, *args: Any) -> None:
        self._note("after_step", model)


def test_craft_score_step_then_state() -> None:
    """The weights move after scoring and before the objective's own state."""
    model, batch = network(), example()
    made = Recorder(objective("pgd-at", model))
    Step(model, made, torch.optim.SGD(model.parameters(), lr=0.1))(batch, Moment(0, 0, 0, 0.0))
    assert made.calls == ["craft", "loss", "after_step"]
    before, scored, after = made.weights
    assert torch.equal(before, scored)
    assert not torch.equal(scored, after)
    torch.testing.assert_close(after, before - 0.1 * model.linear.weight.grad, rtol=0, atol=1e-7)


@each_objective
def test_crafting_on_the_copy_is_crafting_on_the_network(name: str) -> None:
    """In float64, for every step: the copy has the weights, statistics and state of the present step and not of an earlier one."""
    model, batch = network().double(), example()
    batch = batch._replace(images=batch.images.double())
    made = objective(name, model).double()
    step, seen = Step(model, made, torch.optim.SGD(model.parameters(), lr=0.5)), []
    real = made.craft

    def craft(attacked: Network, *rest: Any) -> Any:
        seen.append((real(attacked, *rest).x_adv, real(model, *rest).x_adv, attacked is model))
        return real(attacked, *rest)

    made.craft = craft  # type: ignore[method-assign]
    for number in range(3):
        step(batch, Moment(0, 0, number, 0.0))
    for near, exact, same in seen:
        torch.testing.assert_close(near, exact, rtol=0, atol=1e-9)
        assert same == (name == "standard")
    if name != "standard":
        assert not torch.equal(seen[0][1], seen[2][1])


@pytest.mark.parametrize("method", ["again", "ancra", "cas", "stayfocused"])
def test_gates_of_the_copy_stand_as_those_of_the_network(method: str) -> None:
    """Probes, prototypes and classifier rows of the present step, in float64, gates before pooling and inside where they may be."""
    site = "[layer2,features]" if method in ("again", "cas") else "[features]"
    small = ["model.arch=small-cnn", "data={name: digits}", "threat.eps=0.1", "craft.steps=2", f"model.gates.0.at={site}"]
    recipe = load(method, [*small, *(["objective.terms.0.patch=2"] if method == "stayfocused" else [])])
    model = build(Architecture("small-cnn", 0.25, 4, 1, 8, gates=recipe.model.gates), seed=0).train().double()
    made = build_objective(recipe).double()
    none = Split(torch.empty(0, 1, 8, 8), torch.empty(0), torch.empty(0))
    made.setup(model, DataSet(none, none, ()))
    groups = [{"params": list(model.parameters())}, *made.parameter_groups()]
    step, batch = Step(model, made, torch.optim.SGD(groups, lr=0.5)), example()
    batch, seen = batch._replace(images=batch.images.double()), []
    real = made.craft

    def craft(attacked: Network, *rest: Any) -> Any:
        seen.append((real(attacked, *rest), real(model, *rest)))
        return seen[-1][0]

    made.craft = craft  # type: ignore[method-assign]
    for number in range(3):
        step(batch, Moment(0, 99, number, 0.0))
    for near, exact in seen:
        torch.testing.assert_close(near.x_adv, exact.x_adv, rtol=0, atol=1e-9)
        assert near.extra.keys() == exact.extra.keys()
        for name in near.extra:
            torch.testing.assert_close(near.extra[name], exact.extra[name], rtol=0, atol=1e-9)
    assert not torch.equal(seen[0][0].x_adv, seen[2][0].x_adv)


def test_crafting_in_train_mode_is_on_the_network_itself() -> None:
    """And moves its statistics once a crafting step, and once in scoring."""
    recipe = {"name": "t", "data": {"name": "digits"}, "threat": {"eps": 0.1}, "model": {"arch": "small-cnn"}, "optim": {"lr": 0.1}}
    recipe |= {"objective": {"name": "pgd-at"}, "schedule": {"epochs": 1}, "craft": {"steps": 2, "batch_norm": "train"}}
    made, model = build_objective(Recipe.model_validate(recipe)), network()
    step = Step(model, made, torch.optim.SGD(model.parameters(), lr=0.1))
    assert step.networks == [model]
    step(example(), Moment(0, 0, 0, 0.0))
    counts = {int(value) for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {3}


def test_old_gradients_do_not_count() -> None:
    """A gradient that lies around before the step is thrown away."""
    clean, dirty = network(), network()
    for p in dirty.parameters():
        p.grad = torch.full_like(p, 1e3)
    for model in (clean, dirty):
        run("pgd-at", model, 1)
    assert all(torch.equal(a, b) for a, b in zip(clean.parameters(), dirty.parameters(), strict=True))
