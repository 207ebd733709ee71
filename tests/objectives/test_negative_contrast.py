"""ANC against ANCRA's equation 3, written out pair by pair; the four ways to find negatives (table I); the targeted ascent (eq. 5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advcli.attacks.losses import attack_loss
from advcli.data import Batch, Moment
from advcli.draws import Draws
from advcli.gates import labels
from advcli.gates.pairing import others
from advcli.models import Architecture, ModelOutput, Network, build
from advcli.objectives import Objective, build_objective
from advcli.objectives.negative_contrast import NegativeContrastTerm, alike, choose, contrast, towards
from advcli.recipe import Recipe

K, EPS = 5, 0.1
MOMENT = Moment(seed=3, epoch=0, step=7, progress=0.0)


def assert_equal(a: Any, b: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def logits(n: int = 40, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_contrast(clean: Tensor, negative: Tensor, exists: Tensor, alpha: float) -> Tensor:
    """Eq. 3 an example at a time; a hat is a probability taken as a number."""
    total = torch.zeros((), dtype=torch.float64)
    for z, z_o, there in zip(clean, negative, exists, strict=True):
        p, p_o = z.exp() / z.exp().sum(), z_o.exp() / z_o.exp().sum()
        h, h_o = (max(range(K), key=lambda k: float(q.detach()[k])) for q in (p, p_o))
        if h == h_o and bool(there):
            total = total + alpha * (float(p.detach()[h]) * p_o[h]).sqrt() + (1 - alpha) * (p[h] * float(p_o.detach()[h])).sqrt()
    return total / len(clean)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_contrast_is_equation_3(alpha: float) -> None:
    """Value, and the gradient on either side: alpha of it moves the negative, 1 - alpha the image."""
    clean, negative = logits().requires_grad_(True), logits(seed=1).requires_grad_(True)
    exists = torch.rand(40, generator=torch.Generator().manual_seed(2)) < 0.8
    ours, theirs = contrast(clean, negative, exists, alpha), plain_contrast(clean, negative, exists, alpha)
    assert_equal(ours, theirs)
    assert float(theirs.detach()) > 0.05
    mine = torch.autograd.grad(ours, (clean, negative), allow_unused=True)
    reference = torch.autograd.grad(theirs, (clean, negative), allow_unused=True)
    for a, b, share in zip(mine, reference, (1 - alpha, alpha), strict=True):
        still = torch.zeros_like(clean)
        assert_equal(still if a is None else a, still if b is None else b)
        assert (b is not None and float(b.abs().max()) > 1e-4) is (share > 0)


def test_the_image_is_frozen_at_alpha_1_and_the_negative_at_alpha_0() -> None:
    for alpha, stands in ((1.0, 0), (0.0, 1)):
        sides = (logits().requires_grad_(True), logits(seed=1).requires_grad_(True))
        gradients = torch.autograd.grad(contrast(*sides, torch.ones(40, dtype=torch.bool), alpha), sides, allow_unused=True)
        assert gradients[stands] is None or not gradients[stands].any()
        assert gradients[1 - stands].any()


def test_only_pairs_predicted_alike_push_and_all_count_in_the_mean() -> None:
    clean, negative = torch.eye(K).double(), torch.eye(K).double()[[0, 2, 1, 3, 4]]
    exists = torch.tensor([True, True, True, True, False])
    assert alike(clean, negative, exists).tolist() == [True, False, False, True, False]
    p = float(clean[0].softmax(0)[0])
    assert_equal(contrast(clean, negative, exists, 0.5), torch.tensor(2 * p / 5, dtype=torch.float64))


def test_descent_lowers_the_negatives_probability_of_the_shared_class() -> None:
    clean, negative = logits(), logits(seed=1).requires_grad_(True)
    everyone = torch.ones(40, dtype=torch.bool)
    pairs = alike(clean, negative, everyone)
    (gradient,) = torch.autograd.grad(contrast(clean, negative, everyone, 1.0), negative)
    h = clean.argmax(1)
    before, after = (z.softmax(1)[torch.arange(40), h] for z in (negative, negative - gradient))
    assert bool((after < before)[pairs].all())
    assert torch.equal(after[~pairs], before[~pairs])


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_contrast_stays_finite_at_extreme_logits(scale: float) -> None:
    z = (scale * torch.eye(3)).requires_grad_(True)
    value = contrast(z, 2 * z, torch.ones(3, dtype=torch.bool), 0.5)
    assert bool(torch.autograd.grad(value, z)[0].isfinite().all())


# Table I.

LABELS = torch.tensor([0, 0, 1, 2, 2, 3])
# example: 0 and 3 are taken for class 0, 1 and 2 for 1, 4 for 2, 5 for 0; the logits of class 0 and 2 rank those that fit
SCORES = torch.tensor(
    [
        [5.0, 0.0, 0.5, 0.0],
        [1.0, 4.0, 0.0, 0.0],
        [3.0, 6.0, 1.0, 0.0],
        [4.0, 0.0, 2.0, 0.0],
        [0.0, 1.0, 3.0, 2.0],
        [6.0, 1.0, 5.0, 0.0],
    ]
)


def table_batch() -> Batch:
    return Batch(torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2), LABELS, torch.arange(6) + 10)


def key(step: int = 0) -> Draws:
    return Draws(0, torch.arange(6) + 10, "negatives", step)


def chosen(strategy: str, scores: Tensor | None, step: int = 0) -> tuple[list[int], list[int]]:
    """(partners, random partners of the same draws)."""
    found = choose(strategy, table_batch(), key(step), scores)
    partner = found.images[:, 0, 0, 0].long()
    assert torch.equal(found.labels, LABELS[partner]), "each with its own label"
    assert bool(found.exists.all())
    assert bool((found.labels != LABELS).all())
    return partner.tolist(), others(LABELS, key(step))[0].tolist()


@pytest.mark.parametrize("strategy", ["random", "targeted"])
def test_random_negatives_are_any_of_another_class(strategy: str) -> None:
    for step in range(20):
        got, random = chosen(strategy, None, step)
        assert got == random


def test_soft_negatives_are_predicted_as_the_image_is() -> None:
    """Of another class, the one with the largest logit for the image's label; where nobody is predicted so, a random one."""
    for step in range(20):
        got, random = chosen("soft", SCORES, step)
        # 0 (class 0, taken for 0): 3 or 5 -> 5 by logit 0; 1 (class 0, for 1): 2; 2 (class 1, for 1): 1;
        # 3 (class 2, for 0): 0 or 5 -> 5 by logit 2; 4 (class 2, for 2): nobody; 5 (class 3, for 0): 0 or 3, equal logits, the first
        assert got == [5, 2, 1, 5, random[4], 0]


def test_hard_negatives_are_predicted_as_the_images_label() -> None:
    for step in range(20):
        got, random = chosen("hard", SCORES, step)
        # class 0: taken for 0 are 3 and 5 -> 5; class 1: taken for 1 is 1; class 2 and 3: only their own or nobody
        assert got == [5, 5, 1, random[3], random[4], random[5]]


@pytest.mark.parametrize("strategy", ["random", "soft", "hard", "targeted"])
def test_a_batch_of_one_class_has_no_negatives(strategy: str) -> None:
    batch = table_batch()._replace(labels=torch.full((6,), 2))
    found = choose(strategy, batch, key(), SCORES if strategy in ("soft", "hard") else None)
    assert not found.exists.any()
    assert torch.equal(found.images, batch.images)


# The targeted ascent.


def test_towards_ascends_one_half_and_descends_the_other() -> None:
    """Row by row, and so is the gradient."""
    z, y, rows = logits(6).requires_grad_(True), torch.arange(6) % K, torch.tensor([True, False, False, True, True, False])
    values = towards(attack_loss("margin"), attack_loss("ce"))(ModelOutput(z, (), z, z), y, {"towards": rows})
    ce = torch.nn.functional.cross_entropy(z, y, reduction="none")
    margin = torch.stack([max(z[i, k] for k in range(K) if k != y[i]) - z[i, y[i]] for i in range(6)])
    expected = torch.where(rows, -ce, margin)
    assert_equal(values, expected)
    assert_equal(torch.autograd.grad(values.sum(), z, retain_graph=True)[0], torch.autograd.grad(expected.sum(), z)[0])


def made(
    objective: dict[str, Any], craft: dict[str, Any] | None = None, *gates: dict[str, Any], norm: str = "linf"
) -> tuple[Network, Objective]:
    """A float64 network with an objective's recipe."""
    recipe = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "threat": {"norm": norm, "eps": EPS}, "objective": objective}
        | {"craft": {"steps": 4, **(craft or {})}, "model": {"arch": "small-cnn", "width": 0.25, "gates": gates}}
        | {"optim": {"lr": 0.1}, "schedule": {"epochs": 20}}
    )
    model = build(Architecture("small-cnn", 0.25, K, 1, 8, gates=recipe.model.gates), seed=1).double().train()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    return model, build_objective(recipe)


def anc(**settings: Any) -> dict[str, Any]:
    return {"name": "negative-contrast", **settings}


def example(n: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(n) % K, torch.arange(n) * 3)


RA = {"name": "reverse-attention"}
CAS = {"name": "channel-suppression", "at": ["layer2", "features"]}
CRAFTS = [
    ("pgd-at", {"loss": "ce", "start": "uniform"}),
    ("pgd-at", {"loss": "margin", "start": "none", "heads": "final"}),
    ("trades", {"loss": "ce", "start": "normal"}),
    ("trades", {"loss": "kl", "start": "uniform"}),
]


@pytest.mark.parametrize("gates", [(), (RA,), (CAS,)], ids=["plain", "ra", "cas"])
@pytest.mark.parametrize(("name", "craft"), CRAFTS, ids=[f"{n}-{c['loss']}-{c['start']}" for n, c in CRAFTS])
def test_the_adversarial_half_is_as_without_negatives(name: str, craft: dict[str, Any], gates: tuple[Any, ...]) -> None:
    """One ascent for both: the batch is twice as large, so equal to rounding."""
    (model, plain), (_, with_it) = made({"name": name}, craft, *gates), made({"name": name, "terms": [anc()]}, craft, *gates)
    batch = example()
    expected, got = plain.craft(model, batch, MOMENT), with_it.craft(model, batch, MOMENT)
    assert_equal(got.x_adv, expected.x_adv, atol=1e-12)
    assert set(expected.extra) == set()
    assert set(got.extra) == {"negatives", "negative_labels", "negative_exists"}
    assert float((got.x_adv - batch.images).abs().max()) > EPS / 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["uniform", "normal", "none"])
def test_targeted_negatives_stay_near_the_other_image_and_are_taken_for_the_anchors_label(start: str, norm: str) -> None:
    """In the ball of the other image and the box; each one's probability of the anchor's label grows, and so does its loss fall."""
    model, objective = made({"name": "pgd-at", "terms": [anc()]}, {"start": start, "steps": 10}, norm=norm)
    batch = example()
    extra = objective.craft(model, batch, MOMENT).extra
    natural = choose("targeted", batch, Draws(MOMENT.seed, batch.index, "negatives", MOMENT.step), None)
    delta = extra["negatives"] - natural.images
    size = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    assert float(size.max()) <= EPS + 1e-9
    assert float(size.min()) > EPS / 4
    assert float(extra["negatives"].min()) >= 0
    assert float(extra["negatives"].max()) <= 1
    assert torch.equal(extra["negative_labels"], natural.labels)
    assert bool((natural.labels != batch.labels).all())
    model.eval()
    probabilities = [model(x).softmax(1).gather(1, batch.labels[:, None])[:, 0] for x in (natural.images, extra["negatives"])]
    assert bool((probabilities[1] > probabilities[0]).all())


def test_targeted_negatives_are_the_papers_descent() -> None:
    """Eq. 5 written out: signed descent on the cross-entropy of all heads with the anchor's label, projected to the other's ball."""
    model, objective = made({"name": "pgd-at", "terms": [anc()], "aux_weight": 2}, {"start": "none", "steps": 3, "step_size": 0.04}, CAS)
    batch = example()
    got = objective.craft(model, batch, MOMENT).extra["negatives"]
    start = choose("targeted", batch, Draws(MOMENT.seed, batch.index, "negatives", MOMENT.step), None).images
    model.eval()
    x = start.clone()
    for _ in range(3):
        x = x.requires_grad_(True)
        output = model.trace(x)
        ce = torch.nn.functional.cross_entropy
        heads = [ce(aux, batch.labels, reduction="sum") for aux in output.aux_logits]
        loss = ce(output.logits, batch.labels, reduction="sum") + 2 * sum(heads) / len(heads)
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() - 0.04 * gradient.sign()
        x = torch.min(torch.max(x, start - EPS), start + EPS).clamp(0, 1)
    assert_equal(got, x)


def test_targeted_negatives_do_not_start_where_the_adversarial_examples_do() -> None:
    """A pair of the same image gets noise of its own: the second half's draws are another stream."""
    model, objective = made({"name": "pgd-at", "terms": [anc()]}, {"steps": 1, "step_size": 1e-9})
    batch = example()
    crafted = objective.craft(model, batch, MOMENT)
    natural = choose("targeted", batch, Draws(MOMENT.seed, batch.index, "negatives", MOMENT.step), None).images
    first = crafted.x_adv - batch.images
    second = crafted.extra["negatives"] - natural
    assert float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs()) < 0.15


@pytest.mark.parametrize("strategy", ["soft", "hard"])
def test_soft_and_hard_sample_at_random_until_the_warm_up_is_over(strategy: str) -> None:
    """By the predictions of the deployed network in eval mode, with which table I's h is."""
    model, objective = made({"name": "pgd-at", "terms": [anc(negatives=strategy, warmup=2)]}, {"steps": 1})
    batch = example(30)
    draws = Draws(MOMENT.seed, batch.index, "negatives", MOMENT.step)
    random = choose("random", batch, draws, None).images
    with torch.no_grad():
        scores = model.eval()(batch.images)
    model.train()
    late = choose(strategy, batch, draws, scores).images
    assert not torch.equal(random, late)
    for epoch, expected in ((0, random), (1, random), (2, late), (5, late)):
        assert torch.equal(objective.craft(model, batch, MOMENT._replace(epoch=epoch)).extra["negatives"], expected)


@pytest.mark.parametrize("strategy", ["random", "soft", "hard", "targeted"])
def test_negatives_are_equal_for_equal_keys(strategy: str) -> None:
    model, objective = made({"name": "pgd-at", "terms": [anc(negatives=strategy, warmup=0)]})
    batch = example()
    first, again = (objective.craft(model, batch, MOMENT) for _ in range(2))
    assert all(torch.equal(first.extra[name], again.extra[name]) for name in first.extra)
    if strategy in ("random", "targeted"):
        assert not torch.equal(first.extra["negatives"], objective.craft(model, batch, MOMENT._replace(step=8)).extra["negatives"])


# In a loss.


@pytest.mark.parametrize("alpha", ["1", "0.25"])
@pytest.mark.parametrize("base", ["pgd-at", "trades"])
def test_the_total_is_the_objective_and_zeta_times_the_contrast_of_each_head(base: str, alpha: str) -> None:
    """Eq. 4, head by head: the decision, and aux_weight times the mean of the others; every pass opens the gates by its own labels."""
    term = anc(alpha=alpha, weight="2.5", negatives="random")
    model, objective = made({"name": base, "terms": [term], "aux_weight": "0.7"}, {"steps": 1}, CAS)
    plain = made({"name": base, "aux_weight": "0.7"}, {"steps": 1}, CAS)[1]
    model.eval()
    batch = example(30)
    crafted = objective.craft(model, batch, MOMENT)
    scored, bare = objective.loss(model, batch, crafted, MOMENT), plain.loss(model, batch, crafted, MOMENT)
    outputs = [
        model.trace(x, labels(y)) for x, y in ((batch.images, batch.labels), (crafted.extra["negatives"], crafted.extra["negative_labels"]))
    ]
    pairs = [tuple(output.logits for output in outputs), *zip(*(output.aux_logits for output in outputs), strict=True)]
    each = [plain_contrast(*pair, crafted.extra["negative_exists"], float(alpha)) for pair in pairs]
    total = bare.total + 2.5 * (each[0] + 0.7 * (each[1] + each[2]) / 2)
    assert_equal(scored.total, total)
    assert_equal([float(scored.parts[name]) for name in ("anc", "anc.aux0", "anc.aux1")], [float(value.detach()) for value in each])
    matches = [float((a.argmax(1) == b.argmax(1)).double().mean()) for a, b in pairs]
    assert_equal([float(scored.parts[name]) for name in ("anc_match", "anc_match.aux0", "anc_match.aux1")], matches, atol=1e-7)
    assert max(matches[1:]) > 0.1
    parameters = list(model.parameters())
    ours = torch.autograd.grad(scored.total, parameters)
    assert_equal(ours, torch.autograd.grad(total, parameters))


def test_the_clean_pass_keeps_a_graph_only_where_it_is_moved() -> None:
    """PGD-AT learns from adversarial examples; alpha 1 leaves the clean side still, and its pass is free of a graph."""
    for alpha, moves in (("1", False), ("0.5", True)):
        model, objective = made({"name": "pgd-at", "terms": [anc(alpha=alpha, negatives="random")]}, {"steps": 1})
        assert [term.moves_clean for term in objective.terms if isinstance(term, NegativeContrastTerm)] == [moves]
        batch = example()
        passes = objective.passes(model, batch, objective.craft(model, batch, MOMENT), MOMENT)
        assert passes.clean.logits.requires_grad is moves
        assert passes.adversarial.logits.requires_grad


def test_pairs_that_do_not_exist_add_nothing() -> None:
    """A batch of one class: the loss is the objective's own, and there is a gradient."""
    model, objective = made({"name": "pgd-at", "terms": [anc()]}, {"steps": 2}, RA)
    model.eval()
    batch = example()._replace(labels=torch.full((12,), 3))
    crafted = objective.craft(model, batch, MOMENT)
    assert not crafted.extra["negative_exists"].any()
    scored = objective.loss(model, batch, crafted, MOMENT)
    assert float(scored.parts["anc"]) == 0
    assert float(scored.parts["anc_match.aux0"]) == 0
    assert_equal(scored.total.detach(), scored.parts["ce_adv"] + scored.parts["ce_adv.aux0"])
