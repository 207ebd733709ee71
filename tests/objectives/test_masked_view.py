"""StayFocused's clean branch: its masks, its loss (eq. 3), and that it is a network of its own that stays behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.data import Batch, DataSet, Moment, Split
from advcli.draws import Draws
from advcli.models import Architecture, Network, build
from advcli.objectives import Crafted, Objective, build_objective
from advcli.objectives.masked_view import MaskedViewTerm, mask
from advcli.recipe import Recipe
from advcli.training.step import Step

K = 4
MOMENT = Moment(seed=3, epoch=0, step=7, progress=0.0)
NOTHING = DataSet(*(Split(torch.empty(0), torch.empty(0), torch.empty(0)) for _ in range(2)), classes=())


def assert_equal(a: Any, b: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# Masks.


def draws(n: int, step: int = 0, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n) * 3 + 1, "mask", step)


def hidden_patches(view: Tensor, patch: int) -> list[tuple[int, int]]:
    """Which patches of one view (C, H, W) of ones are hidden; each is wholly hidden or wholly left."""
    found = []
    _, height, width = view.shape
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            piece = view[:, top : top + patch, left : left + patch]
            assert float(piece.min()) == float(piece.max()), "a patch is hidden whole"
            if not piece.any():
                found.append((top // patch, left // patch))
    return found


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize(("height", "width", "patch"), [(32, 32, 4), (8, 8, 2), (9, 9, 4), (10, 7, 3), (8, 8, 8), (8, 8, 100), (5, 5, 1)])
def test_the_share_of_hidden_patches_is_exact(height: int, width: int, patch: int, ratio: float) -> None:
    """In each image; what is left over at the edges is patches too; at least one patch is left."""
    views = mask(torch.ones(6, 2, height, width), ratio, patch, draws(6))
    total = -(-height // patch) * -(-width // patch)
    expected = min(total - 1, round(ratio * total))
    assert [len(hidden_patches(view, patch)) for view in views] == [expected] * 6
    assert all(view.any() for view in views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_is_left_is_the_image_itself(dtype: torch.dtype) -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)).add(0.1).to(dtype)
    views = mask(images, 0.5, 2, draws(5))
    assert views.dtype == dtype
    left = views != 0
    assert torch.equal(views[left], images[left])
    assert torch.equal(left[:, 0], left[:, 1]), "all channels alike"
    assert float(left.double().mean()) == 0.5


def test_masks_differ_by_image_step_seed_and_are_equal_for_equal_keys() -> None:
    ones = torch.ones(20, 1, 16, 16)
    views = mask(ones, 0.5, 2, draws(20))
    assert torch.equal(views, mask(ones, 0.5, 2, draws(20)))
    assert len({tuple(hidden_patches(view, 2)) for view in views}) == 20
    for other in (draws(20, step=1), draws(20, seed=1)):
        assert all(not torch.equal(a, b) for a, b in zip(views, mask(ones, 0.5, 2, other), strict=True))
    part = [3, 17, 5]
    assert torch.equal(mask(ones[part], 0.5, 2, draws(20).select(torch.tensor(part))), views[part]), "not by place in the batch"


def test_every_patch_is_hidden_as_often() -> None:
    """1 in 4 of 9 patches, one cut off at the edge among them, over 3000 images."""
    views = mask(torch.ones(3000, 1, 8, 8), 2 / 9, 3, draws(3000))
    often = (views[:, 0, ::3, ::3] == 0).double().mean(0)
    torch.testing.assert_close(often, torch.full_like(often, 2 / 9), rtol=0, atol=0.03)


# The branch.


def masked(**settings: Any) -> dict[str, Any]:
    return {"name": "masked-view", "patch": 2, **settings}


SPAN = {"name": "attribution-span", "at": ["layer2", "features"]}
PROMPT = {"name": "channel-prompt", "momentum": 0.5}


def made(
    *terms: dict[str, Any], gates: tuple[Any, ...] = (SPAN,), arch: str = "small-cnn", wrapper: Any = None
) -> tuple[Network, Objective]:
    recipe = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "threat": {"eps": 0.1}, "craft": {"steps": 2}}
        | {"objective": {"name": "pgd-at", "terms": terms, "wrapper": wrapper}, "optim": {"lr": 0.1}, "schedule": {"epochs": 20}}
        | {"model": {"arch": arch, "width": 0.125, "gates": gates}}
    )
    model = build(Architecture(arch, 0.125, K, 1, 8, gates=recipe.model.gates), seed=1).train()
    objective = build_objective(recipe)
    objective.setup(model, NOTHING)
    return model, objective


def branch(objective: Objective) -> Network:
    term = next(module for module in objective.modules() if isinstance(module, MaskedViewTerm))
    assert isinstance(term.encoder, Network)
    return term.encoder


def example(n: int = 10, dtype: torch.dtype = torch.float32) -> Batch:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return Batch(images, torch.arange(n) % K, torch.arange(n) * 3)


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum(p[k] * (p[k] / q[k]).log() for k in range(len(p)))


@pytest.mark.parametrize("ratios", [("0.5",), ("0.25", "0.5", "0.75")])
def test_the_loss_is_equation_3_and_the_clean_cross_entropy(ratios: tuple[str, ...]) -> None:
    """KL(p(x) || p(Mask(x))) of every view, p(x) taken as numbers; value and gradient by the branch's weights, in float64."""
    model, objective = made(masked(ratios=ratios, weight="0.6", clean_weight="0.7"))
    encoder, batch = branch(objective).double().eval(), example(dtype=torch.float64)
    for p in encoder.parameters():
        p.data.mul_(1.3)
    term = objective.terms[0]
    passes = objective.passes(model.double(), batch, Crafted(batch.images), MOMENT)
    scored = term.loss(passes, Crafted(batch.images), 1.0)
    key = Draws(MOMENT.seed, batch.index, "mask", MOMENT.step)
    p_clean = encoder(batch.images).softmax(1)
    views = [mask(batch.images, float(ratio), 2, key.sub(str(number))) for number, ratio in enumerate(ratios)]
    ce = sum(-p_clean[i, int(batch.labels[i])].log() for i in range(10)) / 10
    apart = []
    for view in views:
        q = encoder(view).softmax(1)
        apart.append(sum(plain_kl(p_clean[i].detach(), q[i]) for i in range(10)) / 10)
    total = 0.6 * (0.7 * ce + sum(apart))
    assert_equal(scored.total, total)
    assert_equal(scored.parts, {"ce_clean": ce.detach()} | {f"kl_view{i}": value.detach() for i, value in enumerate(apart)})
    assert all(float(value.detach()) > 1e-6 for value in apart)
    parameters = list(encoder.parameters())
    assert_equal(torch.autograd.grad(scored.total, parameters), torch.autograd.grad(total, parameters))


def test_views_of_one_image_are_masked_differently() -> None:
    """Equal shares, different patches."""
    objective = made(masked(ratios=("0.5", "0.5")))[1]
    batch, seen = example(), []
    branch(objective).layer1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    objective.terms[0].views(batch, MOMENT)
    objective.terms[0].views(batch, MOMENT._replace(step=8))
    assert torch.equal(seen[0], batch.images)
    different = [seen[1], seen[2], seen[4], seen[5]]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("arch", ["small-cnn", "preact-resnet18"])
def test_the_branch_starts_as_the_network_without_gates(arch: str) -> None:
    """Its own weights from then on; and in train mode whatever the network is in."""
    model, objective = made(masked(), arch=arch)
    plain = build(Architecture(arch, 0.125, K, 1, 8), seed=1)
    encoder = branch(objective)
    assert encoder.gate_sites == ()
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert all(module.training for module in encoder.modules())
    assert not {id(p) for p in encoder.parameters()} & {id(p) for p in model.parameters()}
    assert model.gate_sites == ("layer2" if arch == "small-cnn" else "layer2.1", "features")


def test_the_branch_is_the_objectives_and_not_the_networks() -> None:
    """Not deployed, but saved with the run's state and moved by the optimiser; through a wrapper too."""
    for wrapper in (None, {"name": "awp"}):
        model, objective = made(masked(), wrapper=wrapper)
        plain, _ = made()
        assert model.state_dict().keys() == plain.state_dict().keys()
        encoder = branch(objective)
        prefix = ("inner." if wrapper else "") + "terms.0.encoder."
        assert objective.state_dict().keys() == {prefix + key for key in encoder.state_dict()}
        (group,) = objective.parameter_groups()
        assert {id(p) for p in group["params"]} == {id(p) for p in encoder.parameters()}
        other = made(masked(), wrapper=wrapper)[1]
        for p in encoder.parameters():
            p.data.add_(1)
        other.load_state_dict(objective.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), branch(other).parameters(), strict=True))


def optimizer_of(model: Network, objective: Objective) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": list(model.parameters())}, *objective.parameter_groups()], lr=0.1)


def counters(network: nn.Module) -> set[int]:
    return {int(value) for name, value in network.named_buffers() if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("wrapper", [None, {"name": "awp", "gamma": 0.1}], ids=["plain", "awp"])
def test_a_step_moves_the_branch_and_its_batch_norm_once_a_view(wrapper: Any) -> None:
    """AWP's probing pass leaves no trace in either network's statistics."""
    model, objective = made(masked(ratios=("0.25", "0.5")), wrapper=wrapper)
    encoder = branch(objective)
    before = copy.deepcopy(list(encoder.parameters()))
    Step(model, objective, optimizer_of(model, objective))(example(), MOMENT)
    assert counters(encoder) == {3}
    assert counters(model) == {1}
    assert all(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_the_branch_learns_nothing_from_adversarial_examples_and_the_network_nothing_from_views() -> None:
    model, objective = made(masked())
    batch = example()
    crafted = objective.craft(model, batch, MOMENT)
    passes = objective.passes(model, batch, crafted, MOMENT)
    own = torch.autograd.grad(objective.terms[0].loss(passes, crafted, 1.0).total, list(model.parameters()), allow_unused=True)
    assert all(g is None for g in own)
    base = torch.autograd.grad(objective.base(passes).total, list(branch(objective).parameters()), allow_unused=True)
    assert all(g is None for g in base)


def test_crafting_neither_sees_nor_moves_the_branch() -> None:
    model, objective = made(masked())
    before = copy.deepcopy(objective.state_dict())
    calls: list[int] = []
    branch(objective).register_forward_pre_hook(lambda *_: calls.append(1))
    branch(objective).layer1.register_forward_hook(lambda *_: calls.append(1))
    objective.craft(model, example(), MOMENT)
    assert calls == []
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())


def test_prototypes_follow_the_branchs_clean_features() -> None:
    """Where there is a branch it finds the centroids, of whole clean images, and not a view's."""
    model, objective = made(masked(), gates=(PROMPT,))
    encoder, batch = branch(objective), example()
    encoder.layer3[0].weight.data.mul_(1.7)
    crafted = objective.craft(model, batch, MOMENT)
    assert "clean_features" not in crafted.extra, "no pass is made for them"
    scored = objective.loss(model, batch, crafted, MOMENT)
    objective.after_step(model, batch, scored, MOMENT)
    twin = copy.deepcopy(encoder)
    features = twin.trace(batch.images).features.mean((2, 3)).detach()
    expected = torch.stack([features[batch.labels == c].mean(0) for c in range(K)])
    torch.testing.assert_close(model.gates[0].prototypes, expected, rtol=0, atol=1e-6)
