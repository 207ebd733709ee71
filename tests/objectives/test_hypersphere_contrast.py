"""SHC against StayFocused's equation 10, written out pair by pair; the angle's margin; where its gradient stops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from advcli.data import Batch, DataSet, Moment, Split
from advcli.gates.gate import pool
from advcli.models import Architecture, Network, build
from advcli.objectives import Crafted, Objective, build_objective
from advcli.objectives.hypersphere_contrast import angular, contrast, cosine_distance
from advcli.recipe import Recipe
from advcli.training.device import computing

N, C, K = 7, 6, 4
MOMENT = Moment(seed=3, epoch=0, step=7, progress=0.0)
NOTHING = DataSet(*(Split(torch.empty(0), torch.empty(0), torch.empty(0)) for _ in range(2)), classes=())


def assert_equal(a: Any, b: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def vectors(seed: int = 0, n: int = N) -> Tensor:
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_cosine(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)).sqrt()


def plain_angular(cosine: Tensor, m: int) -> Tensor:
    """(-1)^k cos(m theta) - 2k on [k pi / m, (k + 1) pi / m], by arccos."""
    theta = cosine.arccos()
    k = min(m - 1, int(float(theta.detach()) * m / math.pi))
    return (-1) ** k * (m * theta).cos() - 2 * k


def plain_contrast(adversarial: Tensor, clean: Tensor, negatives: list[list[int]], m: int, temperature: float) -> Tensor:
    """Eq. 10, an anchor at a time."""
    losses = []
    for i, others in enumerate(negatives):
        positive = (plain_angular(plain_cosine(adversarial[i], clean[i]), m) / temperature).exp()
        rest = sum((plain_cosine(adversarial[i], clean[j]) / temperature).exp() for j in others)
        losses.append(-(positive / (positive + rest)).log())
    return sum(losses) / len(losses)


# The margin.


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_margin_is_that_of_the_angle(m: int) -> None:
    """Against arccos, away from the ends; value and gradient, on every branch."""
    cosines = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64).requires_grad_(True)
    expected = torch.stack([plain_angular(c, m) for c in cosines])
    ours = angular(cosines, m)
    assert_equal(ours, expected)
    assert_equal(*(torch.autograd.grad(x.sum(), cosines, retain_graph=True)[0] for x in (ours, expected)), atol=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_margin_falls_with_the_angle_without_a_jump(m: int) -> None:
    """From 1 at 0 to 1 - 2 m at pi: a twin further away is never pushed further."""
    theta = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    values = angular(theta.cos(), m)
    assert_equal(values[[0, -1]], torch.tensor([1.0, 1 - 2 * m], dtype=torch.float64))
    steps = values.diff()
    assert float(steps.max()) <= 1e-12
    assert float(steps.min()) >= -m * math.pi / 20000 * 1.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_margin_has_a_gradient_at_the_ends(m: int, dtype: torch.dtype) -> None:
    """m^2 at both, where arccos has none; and a hair beyond, where rounding may put a cosine."""
    ends = torch.tensor([1.0, -1.0, 1 + 1e-7, -1 - 1e-7], dtype=dtype).requires_grad_(True)
    (gradient,) = torch.autograd.grad(angular(ends, m).sum(), ends)
    torch.testing.assert_close(gradient, torch.full_like(ends, m * m), rtol=1e-4, atol=0)


def test_twins_at_the_ends_have_finite_gradients() -> None:
    """Equal, opposite and vanishing features."""
    clean = vectors().float()
    adversarial = torch.cat([clean[:3], -clean[3:6], torch.zeros(1, C)]).requires_grad_(True)
    for m in (1, 2, 3, 4):
        (gradient,) = torch.autograd.grad(contrast(adversarial, clean, ~torch.eye(N, dtype=torch.bool), m, 0.1), adversarial)
        assert bool(gradient.isfinite().all())


# Equation 10.


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_contrast_is_equation_10(m: int, temperature: float) -> None:
    """All other clean features, value and gradient by both sides."""
    adversarial, clean = vectors().requires_grad_(True), vectors(1).requires_grad_(True)
    ours = contrast(adversarial, clean, ~torch.eye(N, dtype=torch.bool), m, temperature)
    theirs = plain_contrast(adversarial, clean, [[j for j in range(N) if j != i] for i in range(N)], m, temperature)
    assert_equal(ours, theirs)
    assert_equal(torch.autograd.grad(ours, (adversarial, clean)), torch.autograd.grad(theirs, (adversarial, clean)))


def test_contrast_with_some_negatives_and_more_clean_rows_than_anchors() -> None:
    """Rows of other processes come after the twins; the twin itself is no negative even where the mask says so of its class."""
    adversarial, clean = vectors(n=3), vectors(1, n=6)
    mask = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1]]).bool()
    expected = plain_contrast(adversarial, clean, [[1, 3], [], [0, 1, 5]], 2, 0.5)
    assert_equal(contrast(adversarial, clean, mask, 2, 0.5), expected)


def test_an_anchor_without_negatives_has_no_loss_and_no_gradient() -> None:
    adversarial = vectors().requires_grad_(True)
    value = contrast(adversarial, vectors(1), torch.zeros(N, N, dtype=torch.bool), 2, 0.1)
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, adversarial)[0].any()


def test_margin_1_is_infonce() -> None:
    """The cross-entropy of each row of cosines with its twin."""
    a, c = vectors(), vectors(1)
    cosines = torch.stack([torch.stack([plain_cosine(x, y) for y in c]) for x in a])
    assert_equal(contrast(a, c, ~torch.eye(N, dtype=torch.bool), 1, 0.3), torch.nn.functional.cross_entropy(cosines / 0.3, torch.arange(N)))


def test_cosine_distance_is_that_of_twins() -> None:
    a, c = vectors(), vectors(1)
    assert_equal(cosine_distance(a, c), sum(1 - plain_cosine(x, y) for x, y in zip(a, c, strict=True)) / N)


def test_descent_draws_twins_together_and_others_apart() -> None:
    a, c = vectors().requires_grad_(True), vectors(1)
    mask = ~torch.eye(N, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(contrast(a, c, mask, 2, 0.5), a)

    def cosines(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(c, dim=1).T

    before, after = cosines(a.detach()), cosines(a.detach() - 0.1 * gradient)
    assert float((after - before).diagonal().mean()) > 0
    assert float((after - before)[mask].mean()) < 0


# The term.

CAS = {"name": "channel-suppression"}
FUSION = {"name": "hybrid-statistics"}


def shc(**settings: Any) -> dict[str, Any]:
    return {"name": "hypersphere-contrast", **settings}


def masked(*ratios: str) -> dict[str, Any]:
    return {"name": "masked-view", "ratios": ratios or ("0.5",), "patch": 2, "weight": "0.6"}


def made(*terms: dict[str, Any], name: str = "pgd-at", gates: tuple[Any, ...] = (CAS,)) -> tuple[Network, Objective]:
    recipe = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "threat": {"eps": 0.1}, "objective": {"name": name, "terms": terms}}
        | {"model": {"arch": "small-cnn", "width": 0.125, "gates": gates}, "optim": {"lr": 0.1}, "schedule": {"epochs": 20}}
    )
    model = build(Architecture("small-cnn", 0.125, K, 1, 8, gates=recipe.model.gates), seed=1).double().eval()
    objective = build_objective(recipe)
    objective.setup(model, NOTHING)
    return model, objective.eval()


def example(n: int = 10) -> Batch:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, torch.tensor([0, 0, 1, 2, 3, 3, 3, 1, 2, 0])[:n], torch.arange(n) * 3)


def nearby(batch: Batch) -> Crafted:
    noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Crafted((batch.images + 0.2 * noise - 0.1).clamp(0, 1))


def differing(y: Tensor) -> list[list[int]]:
    return [[j for j in range(len(y)) if int(y[j]) != int(y[i])] for i in range(len(y))]


def plain_features(model: Network, x: Tensor) -> Tensor:
    """What no gate has touched: the plain network's pooled features."""
    for name in model.block_names:
        x = model.run_block(name, x)
    return x.mean((2, 3))


@pytest.mark.parametrize(
    ("settings", "negatives", "margin"),
    [({}, "other", 2), ({"negatives": "all"}, "all", 2), ({"margin": 4}, "other", 4), ({"similarity": "infonce"}, "other", 1)],
)
def test_the_term_contrasts_what_gates_have_not_touched(settings: dict[str, Any], negatives: str, margin: int) -> None:
    """Of the network's own clean pass, with a gate at `features` that labels open; the clean side stands still."""
    model, objective = made(shc(weight="0.8", temperature="0.25", **settings))
    bare, batch = made()[1], example()
    crafted = nearby(batch)
    scored, base = objective.loss(model, batch, crafted, MOMENT), bare.loss(model, batch, crafted, MOMENT)
    adversarial, clean = plain_features(model, crafted.x_adv), plain_features(model, batch.images).detach()
    pairs = differing(batch.labels) if negatives == "other" else [[j for j in range(10) if j != i] for i in range(10)]
    value = plain_contrast(adversarial, clean, pairs, margin, 0.25)
    assert_equal(scored.parts["shc"], value.detach())
    assert_equal(scored.total, base.total + 0.8 * value)
    parameters = [p for name, p in model.named_parameters() if name.startswith("layer")]
    ours = torch.autograd.grad(scored.total - base.total, parameters)
    assert_equal(ours, torch.autograd.grad(0.8 * value, parameters))
    assert any(float(g.abs().max()) > 1e-4 for g in ours)


def test_the_cosine_term_has_no_negatives() -> None:
    model, objective = made(shc(similarity="cosine"))
    batch = example()
    crafted = nearby(batch)
    value = objective.loss(model, batch, crafted, MOMENT).parts["shc"]
    adversarial, clean = (plain_features(model, x).detach() for x in (crafted.x_adv, batch.images))
    assert_equal(value, sum(1 - plain_cosine(a, c) for a, c in zip(adversarial, clean, strict=True)) / 10)


@pytest.mark.parametrize("similarity", ["angular", "cosine"])
def test_natural_gradient_lets_the_clean_side_move(similarity: str) -> None:
    """Otherwise its gradient is as if clean features were numbers."""
    batch, gradients = example(), {}
    for natural in (False, True):
        model, objective = made(shc(natural_gradient=natural, similarity=similarity))
        passes = objective.passes(model, batch, nearby(batch), MOMENT)
        assert passes.clean.logits.requires_grad is natural
        scored = objective.terms[0].loss(passes, nearby(batch), 1.0).total
        adversarial, clean = plain_features(model, nearby(batch).x_adv), plain_features(model, batch.images)
        clean = clean if natural else clean.detach()
        if similarity == "cosine":
            value = sum(1 - plain_cosine(a, c) for a, c in zip(adversarial, clean, strict=True)) / 10
        else:
            value = plain_contrast(adversarial, clean, differing(batch.labels), 2, 0.1)
        weight = model.get_submodule("layer3.0").weight
        gradients[natural] = torch.autograd.grad(scored, weight)[0]
        assert_equal(gradients[natural], torch.autograd.grad(value, weight)[0])
    assert float((gradients[True] - gradients[False]).abs().max()) > 1e-5


@pytest.mark.parametrize("ratios", [("0.5",), ("0.25", "0.5"), ("0.25", "0.5", "0.75")])
def test_heads_contrast_with_the_branch_and_its_further_views(ratios: tuple[str, ...]) -> None:
    """H heads: the whole image's clean features for the first, those of the masked views from the second on for the others."""
    model, objective = made(masked(*ratios), shc())
    batch = example()
    crafted = nearby(batch)
    for p in objective.terms[0].encoder.parameters():
        p.data.mul_(1.1)
    scored = objective.loss(model, batch, crafted, MOMENT)
    views = objective.terms[0].views(batch, MOMENT)
    sides = [views.clean, *views.masked[1:]]
    assert len(sides) == len(ratios)
    adversarial = plain_features(model, crafted.x_adv)
    values = [plain_contrast(adversarial, pool(side.features).detach(), differing(batch.labels), 2, 0.1) for side in sides]
    names = ["shc", *(f"shc.view{number}" for number in range(1, len(ratios)))]
    assert {name for name in scored.parts if name.startswith("shc")} == set(names)
    assert_equal([scored.parts[name] for name in names], [value.detach() for value in values])
    weight = model.get_submodule("layer3.0").weight
    ours = torch.autograd.grad(objective.terms[1].loss(objective.passes(model, batch, crafted, MOMENT), crafted, 1.0).total, weight)[0]
    assert_equal(ours, torch.autograd.grad(sum(values), weight)[0])


def test_the_contrast_does_not_move_the_branch_unless_asked() -> None:
    """The branch learns from its own losses; natural_gradient gives it this one too."""
    batch = example()
    for natural in (False, True):
        model, objective = made(masked(), shc(natural_gradient=natural))
        term = objective.terms[1].loss(objective.passes(model, batch, nearby(batch), MOMENT), nearby(batch), 1.0).total
        gradients = torch.autograd.grad(term, list(objective.terms[0].encoder.parameters()), allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients) is natural


@pytest.mark.parametrize("n", [1, 4])
def test_a_batch_of_one_class_has_nothing_to_push(n: int) -> None:
    model, objective = made(shc())
    batch = example(n)._replace(labels=torch.full((n,), 2))
    scored = objective.loss(model, batch, nearby(batch), MOMENT)
    assert float(scored.parts["shc"]) == 0
    gradients = torch.autograd.grad(scored.total, list(model.parameters()), allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


def test_cosines_are_taken_in_full_precision_under_autocast() -> None:
    """Products in bfloat16 would be off by 1 % of a cosine, which the temperature makes 10 % of a logit."""
    model, objective = made(shc())
    model, batch = model.float(), example()
    batch, crafted = batch._replace(images=batch.images.float()), Crafted(nearby(batch).x_adv.float())
    passes = objective.passes(model, batch, crafted, MOMENT)
    assert passes.adversarial.logits.dtype == passes.clean.logits.dtype == torch.float32
    sides = [pool(output.ungated).double().detach() for output in (passes.adversarial, passes.clean)]
    expected = plain_contrast(*sides, differing(batch.labels), 2, 0.1)
    with computing("bf16", batch.images.device):
        total = objective.terms[0].loss(passes, crafted, 1.0).total
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
