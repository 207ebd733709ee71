"""Every gate against its paper's formula, written out channel by channel, and what a gate may know and keep."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.draws import Draws
from advcli.gates import Gate, Head, deployed, forced, labels, open_gate
from advcli.gates.attribution_span import AttributionSpan
from advcli.gates.build import build_gate
from advcli.gates.channel_prompt import ChannelPrompt
from advcli.gates.channel_suppression import ChannelSuppression
from advcli.gates.gate import linear, pool, spread
from advcli.gates.reverse_attention import ReverseAttention
from advcli.recipe import schema
from advcli.training.device import computing

N, K, C = 6, 4, 5
SITE = "site"


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(side: int = 4, seed: int = 0) -> Tensor:
    """Non-negative, as after a ReLU."""
    return numbers(N, C, side, side, seed=seed).abs()


def classes(seed: int = 0, n: int = N) -> Tensor:
    return torch.randint(K, (n,), generator=torch.Generator().manual_seed(seed))


def head(cells: int = 1, seed: int = 9) -> Head:
    return Head(numbers(K, C * cells**2, seed=seed), numbers(K, seed=seed + 1), cells)


def draws(step: int = 0, n: int = N) -> Draws:
    return Draws(0, 5 + torch.arange(n), "gate", step)


def made(name: str, **settings: Any) -> Gate:
    """A float64 gate from its recipe part."""
    part = {
        "reverse-attention": schema.ReverseAttention,
        "channel-suppression": schema.ChannelSuppression,
        "attribution-span": schema.AttributionSpan,
        "channel-prompt": schema.ChannelPrompt,
    }[name].model_validate({"name": name, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return build_gate(part, C, K).double()


NAMES = ["reverse-attention", "channel-suppression", "attribution-span", "channel-prompt"]


def prompt(**settings: Any) -> ChannelPrompt:
    """A channel-prompt gate whose prototypes have moved."""
    gate = made("channel-prompt", **settings)
    assert isinstance(gate, ChannelPrompt)
    if gate.kept:
        gate.prototypes.copy_(numbers(K, C, seed=21).abs())
        gate.seen.fill_(True)
    return gate


def assert_equal(a: Any, b: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def plain_pool(x: Tensor, cells: int) -> Tensor:
    """Mean of each cell of the grid, channel first."""
    n, c, h, w = x.shape
    out = x.new_zeros(n, c * cells * cells)
    for i in range(n):
        for k in range(c):
            for r in range(cells):
                for s in range(cells):
                    cell = x[i, k, r * h // cells : (r + 1) * h // cells, s * w // cells : (s + 1) * w // cells]
                    out[i, (k * cells + r) * cells + s] = sum(cell.flatten()) / cell.numel()
    return out


def plain_gated(x: Tensor, rows: Tensor, cells: int) -> Tensor:
    """Each value times the entry of its channel and cell."""
    n, c, h, w = x.shape
    out = torch.zeros_like(x)
    for i in range(n):
        for k in range(c):
            for r in range(h):
                for s in range(w):
                    out[i, k, r, s] = x[i, k, r, s] * rows[i, (k * cells + r * cells // h) * cells + s * cells // w]
    return out


@pytest.mark.parametrize(("cells", "shape"), [(1, (3, 5)), (2, (4, 4)), (2, (2, 6)), (4, (8, 4))])
def test_pooling_and_spreading_have_one_layout(cells: int, shape: tuple[int, int]) -> None:
    """A cell's mean, and the nearest cell's value: pooling what was spread gives it back."""
    x, rows = numbers(N, C, *shape), numbers(N, C * cells**2, seed=1)
    assert_equal(pool(x, cells), plain_pool(x, cells))
    wide = spread(rows, x, cells).expand_as(x)
    assert_equal(x * wide, plain_gated(x, rows, cells))
    assert_equal(pool(wide, cells), rows)
    assert_equal(linear(x, head(cells)), plain_pool(x, cells) @ head(cells).weight.T + head(cells).bias)


# Reverse attention: z'_i = z_i w_{i, y} in training, w_{i, h(x)} in testing (ANCRA, eq. 6).


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_reverse_attention_is_equation_6(cells: int) -> None:
    gate, x, y, top = ReverseAttention(), features(), classes(), head(cells)
    z = plain_pool(x, cells)
    aux = sum(z[:, i, None] * top.weight[None, :, i] for i in range(C * cells**2)) + top.bias
    for select, chosen in ((labels(y), y), (None, aux.argmax(1))):
        gated, logits = gate(x, top, SITE, select)
        assert_equal(gated, plain_gated(x, top.weight[chosen], cells))
        assert_equal(logits, aux)
    assert not torch.equal(aux.argmax(1), y)


def test_the_classifiers_weight_learns_as_classifier_as_probe_and_as_gate() -> None:
    """Nothing is stopped: the gradient is that of the composite, written with three copies of the weight."""
    gate, x, y, bias = ReverseAttention(), features(), classes(), numbers(K, seed=3)
    weight, directions = numbers(K, C, seed=2).requires_grad_(True), (numbers(N, K, seed=5), numbers(N, K, seed=6))
    top = Head(weight, bias, 1)
    gated, aux = gate(x, top, SITE, labels(y))
    (ours,) = torch.autograd.grad((linear(gated, top) * directions[0]).sum() + (aux * directions[1]).sum(), weight)
    copies = [weight.detach().clone().requires_grad_(True) for _ in range(3)]
    z = x.mean((2, 3))
    final = torch.stack([torch.stack([(copies[0][c] * z[n] * copies[1][y[n]]).sum() + bias[c] for c in range(K)]) for n in range(N)])
    total = (final * directions[0]).sum() + ((z @ copies[2].T + bias) * directions[1]).sum()
    each = torch.autograd.grad(total, copies)
    assert_equal(ours, sum(each))
    assert all(float(g.abs().max()) > 0.01 for g in each)


def test_reverse_attention_adds_neither_parameters_nor_buffers() -> None:
    gate = ReverseAttention()
    assert list(gate.parameters()) == []
    assert list(gate.buffers()) == []
    assert gate.state_dict() == {}


# Channel suppression and attribution span: a probe's rows.


def test_channel_suppression_multiplies_by_its_probes_rows() -> None:
    gate, x, y = made("channel-suppression"), features(), classes()
    assert isinstance(gate, ChannelSuppression)
    aux = plain_pool(x, 1) @ gate.probe.weight.T + gate.probe.bias
    for select, chosen in ((gate.opening(y, K, draws(), None, head()).select, y), (None, aux.argmax(1))):
        gated, logits = gate(x, head(), SITE, select)
        assert_equal(gated, plain_gated(x, gate.probe.weight[chosen], 1))
        assert_equal(logits, aux)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("alpha", ["0.5", "0.6", "0.9"])
def test_attribution_span_is_equation_4(alpha: str, distinct: bool) -> None:
    """alpha A W[y] + (1 - alpha) A W[y'], value and gradient by A and W; y' read off the selection, and the labels shuffled."""
    gate, y, share = made("attribution-span", alpha=alpha, distinct=distinct), classes(), float(alpha)
    assert isinstance(gate, AttributionSpan)
    opening = gate.opening(y, K, draws(), None, head())
    s = opening.select(SITE, torch.zeros(N, K, dtype=torch.float64))
    rest = s - share * torch.nn.functional.one_hot(y, K)
    fake = rest.argmax(1)
    x, x_plain, twin, direction = features().requires_grad_(True), features().requires_grad_(True), copy.deepcopy(gate), numbers(N, C, 4, 4)
    gated, _ = gate(x, head(), SITE, opening.select)
    w = twin.probe.weight
    expected = torch.stack(
        [torch.stack([x_plain[n, c] * (share * w[y[n], c] + (1 - share) * w[fake[n], c]) for c in range(C)]) for n in range(N)]
    )
    assert_equal(gated, expected)
    ours = torch.autograd.grad((gated * direction).sum(), (x, gate.probe.weight))
    assert_equal(ours, torch.autograd.grad((expected * direction).sum(), (x_plain, w)))
    assert float(opening.notes["collisions"]) == pytest.approx(sum(int(fake[n]) == int(y[n]) for n in range(N)) / N)
    if distinct:
        assert bool((fake != y).all())
    else:
        assert sorted(fake.tolist()) == sorted(y.tolist()), "the batch's own labels"


def test_attribution_span_deploys_one_row_of_its_own_decision() -> None:
    """No fake label at test time; and the fake label never looks at the gate's opinion."""
    gate, x = made("attribution-span"), features()
    assert isinstance(gate, AttributionSpan)
    gated, aux = gate(x, head(), SITE, None)
    assert_equal(gated, plain_gated(x, gate.probe.weight[aux.argmax(1)], 1))
    select = gate.opening(classes(), K, draws(), None, head()).select
    assert torch.equal(select(SITE, aux), select(SITE, -aux))


def test_labels_are_shuffled_anew_at_every_key() -> None:
    gate, y = made("attribution-span", alpha="0.5"), torch.arange(N) % K
    fakes = set()
    for step in range(40):
        s = gate.opening(y, K, draws(step), None, head()).select(SITE, torch.zeros(N, K))
        again = gate.opening(y, K, draws(step), None, head()).select(SITE, torch.zeros(N, K))
        assert torch.equal(s, again)
        fakes.add(tuple((s - 0.5 * torch.nn.functional.one_hot(y, K)).argmax(1).tolist()))
    assert len(fakes) > 25


def test_collisions_are_as_frequent_as_chance() -> None:
    """A shuffled label equals the true one where the partner is of the class: (n_c / N) of class c; never under distinct."""
    y = torch.tensor([0, 0, 0, 1, 1, 2])
    expected = (9 + 4 + 1) / 36
    notes = [float(made("attribution-span").opening(y, K, draws(step), None, head()).notes["collisions"]) for step in range(400)]
    assert sum(notes) / 400 == pytest.approx(expected, abs=0.03)
    distinct = made("attribution-span", distinct=True)
    assert all(float(distinct.opening(y, K, draws(step), None, head()).notes["collisions"]) == 0 for step in range(20))


def test_distinct_labels_where_there_is_but_one_class_are_the_labels() -> None:
    y, gate = torch.full((N,), 2), made("attribution-span", distinct=True)
    opening = gate.opening(y, K, draws(), None, head())
    assert torch.equal(opening.select(SITE, torch.zeros(N, K)), labels(y)(SITE, torch.zeros(N, K)))
    assert float(opening.notes["collisions"]) == 1


def test_attribution_span_with_alpha_1_is_channel_suppression() -> None:
    """From equal weights, to the bit: gated features, auxiliary logits, gradients, deployed and in training."""
    span, suppression = made("attribution-span", alpha="1"), made("channel-suppression")
    suppression.load_state_dict(span.state_dict())
    y, direction = classes(), numbers(N, C, 4, 4, seed=8)
    for training in (True, False):
        results = []
        for gate in (span, suppression):
            x = features().requires_grad_(True)
            gated, aux = gate(x, head(), SITE, gate.opening(y, K, draws(), None, head()).select if training else None)
            gradients = torch.autograd.grad((gated * direction).sum() + aux.square().sum(), (x, *gate.parameters()))
            results.append((gated, aux, *gradients))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Channel prompt: alpha w^y + (1 - alpha) / K sum of the top K (StayFocused, eq. 11); w^pre deployed (eq. 12).


def plain_cosines(rows: Tensor, pooled: Tensor) -> list[list[float]]:
    def dot(a: Tensor, b: Tensor) -> float:
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    return [[dot(v, p) / math.sqrt(dot(v, v) * dot(p, p)) for p in rows] for v in pooled]


def plain_prompt(rows: Tensor, pooled: Tensor, y: Tensor, alpha: float, top_k: int) -> Tensor:
    """The channel weights of eq. 11, an example at a time; rows: of the gate, which also are what cosines are taken with."""
    out = []
    for n, cosines in enumerate(plain_cosines(rows, pooled)):
        likest = sorted(range(len(cosines)), key=lambda k: -cosines[k])[:top_k]
        out.append(alpha * rows[y[n]] + (1 - alpha) / len(likest) * sum(rows[k] for k in likest))
    return torch.stack(out)


@pytest.mark.parametrize("top_k", [1, 2, 3, K, K + 3])
@pytest.mark.parametrize("kind", ["mean", "classifier"])
@pytest.mark.parametrize("alpha", ["0.5", "0.3", "1", "0"])
def test_channel_prompt_is_equation_11(alpha: str, kind: str, top_k: int) -> None:
    """More classes wanted than there are: all of them. Moving means are scaled to mean 1, classifier rows taken as they are."""
    gate, x, y, clean, top = prompt(alpha=alpha, top_k=top_k, prototypes=kind), features(), classes(), features(seed=7).mean((2, 3)), head()
    rows = gate.prototypes / gate.prototypes.mean(1, keepdim=True) if kind == "mean" else top.weight
    opening = gate.opening(y, K, draws(), clean, top)
    gated, _ = gate(x, top, SITE, opening.select)
    assert_equal(gated, plain_gated(x, plain_prompt(rows, clean, y, float(alpha), top_k), 1))
    cosines = plain_cosines(rows, clean)
    hits = [int(y[n]) in sorted(range(K), key=lambda k: -cosines[n][k])[:top_k] for n in range(N)]
    assert float(opening.notes["prompts_with_label"]) == pytest.approx(sum(hits) / N)


@pytest.mark.parametrize("kind", ["mean", "classifier"])
def test_channel_prompt_deploys_the_likest_prototype_of_what_it_sees(kind: str) -> None:
    gate, x, top = prompt(prototypes=kind, temperature="0.25"), features(), head()
    rows = gate.prototypes / gate.prototypes.mean(1, keepdim=True) if kind == "mean" else top.weight
    cosines = torch.tensor(plain_cosines(rows, plain_pool(x, 1)), dtype=torch.float64)
    gated, aux = gate(x, top, SITE, None)
    assert_equal(aux, cosines / 0.25)
    assert_equal(gated, plain_gated(x, rows[cosines.argmax(1)], 1))


def test_channel_prompt_of_one_sure_class_is_the_labels_row() -> None:
    """K = 1 and a clean twin that is likest its own class: the paper's remark."""
    gate, y = prompt(top_k=1), classes()
    s = gate.opening(y, K, draws(), gate.prototypes[y].float(), head()).select(SITE, torch.zeros(N, K))
    assert torch.equal(s, labels(y)(SITE, torch.zeros(N, K)))


def test_channel_prompt_asks_for_clean_features() -> None:
    with pytest.raises(ValueError, match="clean images"):
        prompt().opening(classes(), K, draws(), None, head())
    assert [made(name).needs_clean_features for name in NAMES] == [False, False, False, True]


def test_prototypes_start_neutral() -> None:
    """Until a class has been seen its row is ones: such a gate changes nothing, whoever opens it."""
    gate, x = made("channel-prompt"), features()
    assert isinstance(gate, ChannelPrompt)
    for select in (None, labels(classes()), gate.opening(classes(), K, draws(), features(seed=7).mean((2, 3)), head()).select):
        assert_equal(gate(x, head(), SITE, select)[0], x)
    assert not gate.seen.any()


def test_moving_means_are_the_papers_centroids() -> None:
    """Step by step against a loop: the first mean as it is, then momentum; classes that are absent stay."""
    gate = made("channel-prompt", momentum="0.9")
    assert isinstance(gate, ChannelPrompt)
    means: dict[int, Tensor] = {}
    for step, y in enumerate([[0, 0, 2], [2, 2, 2], [0, 1, 2], [1, 0, 0], [1, 1, 1]]):
        clean = numbers(3, C, seed=step).abs()
        gate.follow(clean, torch.tensor(y))
        for c in set(y):
            members = [clean[i] for i in range(3) if y[i] == c]
            mean = sum(members) / len(members)
            means[c] = 0.9 * means[c] + 0.1 * mean if c in means else mean
        expected = torch.stack([means.get(c, torch.ones(C, dtype=torch.float64)) for c in range(K)])
        assert_equal(gate.prototypes, expected)
        assert gate.seen.tolist() == [c in means for c in range(K)]


def test_rows_of_the_classifier_are_nobodys_state() -> None:
    gate = made("channel-prompt", prototypes="classifier")
    gate.follow(features().mean((2, 3)), classes())
    assert list(gate.buffers()) == []
    assert list(gate.parameters()) == []


def test_prototypes_move_in_full_precision_under_autocast() -> None:
    """The step's autocast reaches to its end: moving means must not be rounded to bfloat16, nor like classes be confused."""
    clean, y = features().mean((2, 3)).float(), classes()
    plain, low = (made("channel-prompt").float() for _ in range(2))
    plain.follow(clean, y)
    with computing("bf16", clean.device):
        low.follow(clean, y)
    torch.testing.assert_close(low.prototypes, plain.prototypes, rtol=1e-5, atol=1e-6)


def test_the_top_classes_are_found_in_full_precision_under_autocast() -> None:
    """Features after a ReLU have cosines close to one another, which bfloat16 rounds to ties."""
    gate = prompt().float()
    gate.prototypes.copy_(1 + 0.02 * numbers(K, C, seed=30))
    clean = (1 + 0.02 * numbers(N, C, seed=31)).float()
    aux = torch.zeros(N, K)
    plain = gate.opening(classes(), K, draws(), clean, head().__class__(*(t.float() for t in head()[:2]), 1)).select(SITE, aux)
    with computing("bf16", clean.device):
        low = gate.opening(classes(), K, draws(), clean, head().__class__(*(t.float() for t in head()[:2]), 1)).select(SITE, aux)
    assert torch.equal(plain, low)


# All gates.


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_does_not_look_at_mode_flags_and_opens_by_itself(name: str) -> None:
    gate, x = made(name), features()
    if isinstance(gate, ChannelPrompt):
        gate.prototypes.copy_(numbers(K, C, seed=21).abs())
    results = [gate.train(mode)(x, head(), SITE, select) for mode in (True, False) for select in (None, deployed)]
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    aux = results[0][1]
    assert torch.equal(gate(x, head(), SITE, forced(aux.argmax(1)))[0], results[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_an_open_gate_passes_the_very_features_and_still_speaks(name: str) -> None:
    gate, x = made(name), features()
    passed, aux = gate(x, head(), SITE, open_gate)
    assert passed is x
    assert torch.equal(aux, gate(x, head(), SITE, None)[1])


@pytest.mark.parametrize("name", NAMES)
def test_labels_open_a_gate_without_regard_to_its_features(name: str) -> None:
    """And an opening keeps no graph, moves no state and draws nothing from the global generator."""
    gate, y, clean = made(name), classes(), features(seed=7).mean((2, 3))
    before, generator = copy.deepcopy(gate.state_dict()), torch.get_rng_state()
    opening = gate.opening(y, K, draws(), clean, head())
    assert not any(note.requires_grad for note in opening.notes.values())
    s = opening.select(SITE, numbers(N, K, seed=50).requires_grad_(True))
    assert s is not None
    assert not s.requires_grad
    assert torch.equal(s, opening.select(SITE, numbers(N, K, seed=51)))
    torch.testing.assert_close(s.sum(1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-6)
    assert all(torch.equal(before[key], value) for key, value in gate.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_part_becomes_its_gate(name: str) -> None:
    gate = made(name)
    kinds = {"reverse-attention": ReverseAttention, "channel-suppression": ChannelSuppression}
    kinds |= {"attribution-span": AttributionSpan, "channel-prompt": ChannelPrompt}
    assert type(gate) is kinds[name]
    settings = {key: getattr(gate, key) for key in ("alpha", "distinct", "top_k", "momentum", "temperature") if hasattr(gate, key)}
    expected: dict[str, dict[str, Any]] = {
        "attribution-span": {"alpha": 0.6, "distinct": False},
        "channel-prompt": {"alpha": 0.5, "top_k": 2, "momentum": 0.99, "temperature": 0.1},
    }
    assert settings == expected.get(name, {})
    sizes = {"reverse-attention": 0, "channel-prompt": 0}.get(name, C * K + K)
    assert sum(p.numel() for p in gate.parameters()) == sizes


def test_the_gate_hides_the_decision_from_a_gradient_attack() -> None:
    """Why gated numbers need attacks of their own: the same decisions as without a gate added afterwards, but PGD on the gated logits
    walks the wrong way while the examples found on the plain logits fool both alike (a random head on non-negative features)."""
    generator = torch.Generator().manual_seed(0)
    size, k = 128, 10
    weight, z = torch.randn(k, size, generator=generator), torch.rand(400, size, generator=generator)
    y = (z @ weight.T).argmax(1)

    def plain(x: Tensor) -> Tensor:
        return x @ weight.T

    def gated(x: Tensor) -> Tensor:
        return (x * weight[plain(x).argmax(1)]) @ weight.T

    def attacked(view: Any, eps: float = 0.2) -> Tensor:
        x = z.clone()
        for _ in range(20):
            x = x.requires_grad_(True)
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(view(x), y, reduction="sum"), x)
            x = (z + (x.detach() + eps / 4 * g.sign() - z).clamp(-eps, eps)).clamp_min(0)
        return x

    def robust(view: Any, points: Tensor) -> float:
        return float((view(points).argmax(1) == y).float().mean())

    assert robust(plain, attacked(plain)) < 0.1
    assert robust(gated, attacked(gated)) > robust(gated, attacked(plain)) + 0.3
