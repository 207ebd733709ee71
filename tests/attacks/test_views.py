"""Views of gated networks, the conjunction loss, and what the search believes of a forced gate."""

from __future__ import annotations

import torch
from torch import Tensor

from advcli.attacks import Cost
from advcli.attacks.losses import attack_loss, conjunction, margin
from advcli.attacks.views import (
    ANNEALED,
    BYPASSED,
    ENUMERATED,
    FORCED,
    KEPT,
    OPEN,
    View,
    ViewedSurrogate,
    auxiliary,
    softened,
    straight,
)
from advcli.gates import forced, labels, open_gate, soft
from advcli.models import Architecture, ModelOutput, Network, build
from advcli.recipe.schema import ChannelSuppression, ReverseAttention

K = 5
GATES = (ChannelSuppression(name="channel-suppression", at=("layer2",)), ReverseAttention(name="reverse-attention"))


def network() -> Network:
    made = build(Architecture("small-cnn", 0.25, K, 1, 8, gates=GATES), seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    for gate in made.gates:  # probes that tell images apart
        for parameter in gate.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    made.linear.weight.data.copy_(torch.randn(made.linear.weight.shape, generator=generator))
    with torch.no_grad():  # centred heads, so that all classes are chosen
        made.gates[0].probe.bias -= made.trace(images(200)).aux_logits[0].mean(0)
        made.linear.bias -= made.trace(images(200)).aux_logits[1].mean(0)
    return made.requires_grad_(False)


def images(n: int = 40) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def seen(view: View, target: Tensor | None = None) -> ModelOutput:
    return view.see(network(), images(), {} if target is None else {"target": target})


def test_each_view_is_the_pass_it_names() -> None:
    made, x, target = network(), images(), torch.arange(40) % K
    assert torch.equal(seen(OPEN).logits, made.trace(x, open_gate).logits)
    assert torch.equal(seen(softened(0.7)).logits, made.trace(x, soft(0.7)).logits)
    assert torch.equal(seen(straight(0.3)).logits, made.trace(x).logits)
    assert torch.equal(seen(FORCED, target).logits, made.trace(x, forced(target)).logits)
    assert torch.equal(seen(auxiliary(0)).logits, made.trace(x).aux_logits[0])
    assert torch.equal(seen(auxiliary(1)).logits, made.trace(x, soft(1.0)).aux_logits[1]), "through the gates before it, softened"
    assert seen(auxiliary(0)).aux_logits == seen(auxiliary(1)).aux_logits == ()


def test_the_first_auxiliary_head_does_not_depend_on_any_gate() -> None:
    """That is why it is attacked first: it is an ordinary network inside the gated one."""
    made, x = network(), images()
    assert torch.equal(made.trace(x).aux_logits[0], made.trace(x, open_gate).aux_logits[0])
    assert not torch.equal(made.trace(x).aux_logits[1], made.trace(x, open_gate).aux_logits[1])


def test_conjunction_is_its_formula() -> None:
    """z_t - z_y + sum over heads of min(a_t - max_{k != t} a_k, cap), an example at a time in float64."""
    generator = torch.Generator().manual_seed(3)
    z, a, b = (torch.randn(9, K, generator=generator, dtype=torch.float64) for _ in range(3))
    y, t = torch.arange(9) % K, (torch.arange(9) + 2) % K
    output = ModelOutput(z, (a, b), z, z)
    for i in range(9):
        heads = [min(float(h[i, t[i]] - max(h[i, k] for k in range(K) if k != t[i])), 0.5) for h in (a, b)]
        expected = float(z[i, t[i]] - z[i, y[i]]) + sum(heads)
        assert abs(float(conjunction(output, y, t)[i]) - expected) < 1e-12
    assert torch.equal(attack_loss("conjunction")(output, y, {"target": t}), conjunction(output, y, t))


def test_a_forced_gate_is_believed_only_where_the_gates_would_open_so() -> None:
    """Where every head says the target the forced pass is the deployed pass, so what the search believes the judge will confirm."""
    made, x = network(), images()
    y = made(x).argmax(1)
    target = made.trace(x).aux_logits[0].argmax(1)
    output = made.trace(x, forced(target))
    believed = FORCED.believe(output, y, {"target": target})
    agreed = torch.stack([aux.argmax(1) == target for aux in output.aux_logits]).all(0)
    assert 0 < int(agreed.sum()) < len(x)
    assert torch.equal(believed[agreed], made(x)[agreed])
    assert bool((margin(believed, y)[~agreed] < 0).all())


def test_a_surrogate_through_a_view_counts_and_shows_what_it_believes() -> None:
    made, x, cost = network(), images(), Cost()
    y, target = made(x).argmax(1), torch.arange(40) % K
    surrogate = ViewedSurrogate(made, FORCED, cost)
    gradient, losses, output = surrogate.gradient(attack_loss("conjunction"), x, y, {"target": target})
    free = x.clone().requires_grad_(True)
    expected = conjunction(made.trace(free, forced(target)), y, target)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), free)[0])
    assert (cost.forwards, cost.backwards) == (40, 40)
    assert torch.equal(output.logits, FORCED.believe(made.trace(x, forced(target)), y, {"target": target}))


def test_a_soft_gate_has_the_gradient_that_the_argmax_hides() -> None:
    """The gate's own probe moves the soft decision and cannot move the deployed one by a small step."""
    made, x = network(), images(4)
    probe = made.gates[0].probe.bias.requires_grad_(True)
    (gradient,) = torch.autograd.grad(made.trace(x, soft(1.0)).logits.square().sum(), probe)
    assert float(gradient.abs().max()) > 1e-6
    assert not made.trace(x).logits.requires_grad, "no path leads from the deployed decision to the probe's bias"


def test_kept_and_annealed_gates_are_the_passes_they_name() -> None:
    made, x, y = network(), images(), torch.arange(40) % K
    assert torch.equal(KEPT.see(made, x, {"label": y}).logits, made.trace(x, labels(y)).logits)
    temperature = torch.tensor([1.0, 0.1]).repeat(20)
    seen = ANNEALED.see(made, x, {"temperature": temperature}).logits
    for value, rows in ((1.0, slice(0, None, 2)), (0.1, slice(1, None, 2))):
        torch.testing.assert_close(seen[rows], made.trace(x, soft(value)).logits[rows])


def test_a_bypassed_gate_answers_as_deployed_and_has_the_open_gradient() -> None:
    made, x = network(), images()
    weight = torch.randn(40, K, generator=torch.Generator().manual_seed(5))
    gradients = []
    for see in (lambda z: BYPASSED.see(made, z, {}), lambda z: made.trace(z, open_gate)):
        leaf = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad((see(leaf).logits * weight).sum(), leaf)[0])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(BYPASSED.see(made, x, {}).logits, made(x))
    cost = Cost()
    ViewedSurrogate(made, BYPASSED, cost).gradient(attack_loss("ce"), x, torch.zeros(40, dtype=torch.int64), {})
    assert (cost.forwards, cost.backwards) == (80, 40), "it passes the network twice"


def test_enumeration_is_the_exact_condition_of_success() -> None:
    """Its margin is over 0 where the deployed decision is not the label, under 0 elsewhere; each class's value by hand in float64."""
    made, x = network().double(), images(200).double()
    every, aux = made.all_gate_logits(made.trace(x)), made.trace(x).aux_logits[-1]
    for y in (made(x).argmax(1), torch.arange(200) % K, aux.argmax(1)):
        seen = ENUMERATED.see(made, x, {"label": y}).logits
        assert seen.shape == (200, K + 1)
        assert torch.equal(margin(seen, y) > 0, made(x).argmax(1) != y)
        for i in range(0, 200, 17):
            for k in range(K):
                order, here = sorted(aux[i].tolist()), sorted(every[i, k].tolist())
                gate = (aux[i, k] - max(aux[i, j] for j in range(K) if j != k)) / (order[-1] - order[-3])
                head = (max(every[i, k, j] for j in range(K) if j != y[i]) - every[i, k, y[i]]) / (here[-1] - here[-3])
                value = seen[i, K if k == y[i] else k]
                assert abs(float(min(gate, head)) - float(value)) < 1e-9
        assert bool((seen.gather(1, y[:, None]) == 0).all())


def test_of_two_classes_enumeration_still_has_a_slope() -> None:
    """A margin over the spread of two logits is 1 everywhere, and neither a gradient nor a random search would get anywhere."""
    made = build(Architecture("small-cnn", 0.25, 2, 1, 8, gates=(ReverseAttention(name="reverse-attention"),)), seed=2).eval()
    x, y = images().requires_grad_(True), made(images()).argmax(1)
    loss = margin(ENUMERATED.see(made, x, {"label": y}).logits, y)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())
    assert len(set(loss.tolist())) == len(loss)
    assert bool((loss < 0).all())
