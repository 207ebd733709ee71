"""Every attack against the same properties, and every property against attacks that are broken on purpose.

A property is a function `check_*` that raises AssertionError. The last part of this file runs the checks on mutants and
demands that they fail, so that none of them is an empty promise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.attacks import Apgd, Cost, Fab, Found, Judge, Pgd, Square, Surrogate, Threat, cw, fgsm, mim
from advcli.attacks.losses import attack_loss, reference_of
from advcli.attacks.pool import PooledAttack
from advcli.data import Moment, batches, load_test, to_float
from advcli.draws import Draws
from advcli.models import Architecture, Network, build, frozen
from advcli.objectives import build_objective
from advcli.recipe import load, schema
from advcli.training.cost import passes
from advcli.training.step import Step

THREATS = {"linf": Threat("linf", 0.15), "l2": Threat("l2", 0.9)}


@dataclass(frozen=True)
class Case:
    """An attack by name, and what a plain loop needs to know to do the same."""

    name: str
    make: Callable[[Threat], PooledAttack]
    loss: str = "ce"
    start: str = "uniform"
    steps: int = 10
    restarts: int = 1
    momentum: float = 0.0
    size: float = 0.25  # of eps


def pgd(loss: str, **settings: Any) -> Callable[[Threat], Pgd]:
    return lambda t: Pgd(t, attack_loss(loss), **{"steps": 10, "step_size": t.eps / 4, **settings})


CASES = [
    Case("fgsm", fgsm, "ce", "none", steps=1, size=1.0),
    Case("fgsm-rs", lambda t: fgsm(t, start="uniform"), "ce", "uniform", steps=1, size=1.0),
    Case("pgd-ce", pgd("ce"), "ce", "uniform"),
    Case("pgd-margin", pgd("margin", start="none"), "margin", "none"),
    Case("pgd-targeted", pgd("targeted"), "targeted", "uniform"),
    Case("pgd-kl", pgd("kl", start="normal"), "kl", "normal"),
    Case("pgd-restarts", pgd("ce", restarts=3), "ce", "uniform", restarts=3),
    Case("mim", lambda t: mim(t, steps=10, step_size=t.eps / 10, decay=0.9), "ce", "none", momentum=0.9, size=0.1),
    Case("cw", lambda t: cw(t, steps=10, step_size=t.eps / 4), "margin", "uniform"),
]
PARTS = [  # AutoAttack's own, with fewer iterations; the files named after them hold them against the papers
    Case("apgd-ce", lambda t: Apgd(t, "ce", steps=20), steps=20),
    Case("apgd-dlr", lambda t: Apgd(t, "dlr", steps=20, restarts=2), steps=20, restarts=2),
    Case("apgd-t", lambda t: Apgd(t, "dlr-targeted", steps=10, targets=4), steps=10, restarts=4),
    Case("fab-t", lambda t: Fab(t, steps=10, targets=4), start="none", steps=10, restarts=4),
    Case("square", lambda t: Square(t, queries=99), steps=99),
]
BY_NAME = {case.name: case for case in CASES + PARTS}
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_attack = pytest.mark.parametrize("case", CASES + PARTS, ids=lambda case: case.name)
each_part = pytest.mark.parametrize("case", PARTS, ids=lambda case: case.name)
each_norm = pytest.mark.parametrize("norm", THREATS)
ITERATED = [case for case in CASES if case.steps > 1 and case.restarts == 1]


@dataclass(frozen=True, eq=False)
class Bench:
    """A half-robust network and images that it classifies correctly, with a wrong class for each."""

    network: Network
    x: Tensor
    y: Tensor
    target: Tensor
    index: Tensor
    reference: Tensor | None = None  # of a part: that of the whole, which another batch size would round otherwise

    @cache  # noqa: B019 - one bench for the whole module
    def double(self) -> Bench:
        return replace(self, network=copy.deepcopy(self.network).double(), x=self.x.double())

    def pick(self, rows: Tensor) -> Bench:
        return Bench(self.network, self.x[rows], self.y[rows], self.target[rows], self.index[rows], self.condition()["reference"][rows])

    def condition(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                "target": self.target,
                "reference": reference_of(self.network.trace(self.x)) if self.reference is None else self.reference,
            }

    def margins(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return plain_loss("margin", self.network(x), self)


@dataclass(frozen=True)
class Parts:
    """What an attack is put together from: a mutant replaces one of them."""

    threat: type[Threat] = Threat
    surrogate: type[Surrogate] = Surrogate
    draws: type[Draws] = Draws


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Two epochs of adversarial training on the embedded digits: some images stand, some fall, in both norms."""
    digits = schema.Data(name="digits", validation=0)
    train, _ = load_test(digits, "train")
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8), seed=0).train()
    objective = build_objective(load("quickstart", ["craft.steps=3", "craft.step_size=0.07"]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for batch in batches(train, batch_size=64, seed=0, epoch=epoch):
            Step(network, objective, optimizer)(batch, Moment(0, epoch, 0, 0.0))
    network.eval().requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)
    test, _ = load_test(digits)
    right = torch.nonzero(~Judge(network, chunk=360).decide(to_float(test.images), test.labels))[:24, 0]
    y = test.labels[right]
    return Bench(network, to_float(test.images[right]), y, (y + 1 + right % 9) % 10, test.index[right])


SOUND = Parts()


def run(case: Case, bench: Bench, threat: Threat, parts: Parts = SOUND, *, seed: int = 0, chunk: int = 0, **changes: Any) -> Found:
    """The case's attack made of parts; chunk: all images unless told; changes: settings of the attack to replace."""
    attack = replace(case.make(parts.threat(threat.norm, threat.eps)), **changes)
    judge, surrogate = Judge(bench.network, chunk=chunk or len(bench.x)), parts.surrogate(bench.network.trace)
    return attack(surrogate, judge, bench.x, bench.y, parts.draws(seed, bench.index, "test"), bench.condition())


# A plain loop, written from the papers, that keeps every iterate.


def plain_loss(name: str, logits: Tensor, bench: Bench, reference: Tensor | None = None) -> Tensor:
    own = logits.gather(1, bench.y[:, None])[:, 0]
    if name == "ce":
        return logits.exp().sum(1).log() - own
    if name == "margin":
        return logits.scatter(1, bench.y[:, None], -torch.inf).max(1).values - own
    if name == "targeted":
        return logits.gather(1, bench.target[:, None])[:, 0] - own
    p, q = reference.softmax(1), logits.softmax(1)
    return (p * (p / q).log()).sum(1)


def plain_start(case: Case, bench: Bench, threat: Threat, draws: Draws) -> Tensor:
    x, shape = bench.x, bench.x.shape[1:]
    if case.start == "none":
        return x
    if case.start == "normal":
        return (x + 0.001 * draws.normal(shape)).clamp(0, 1)
    if threat.norm == "linf":
        return (x + threat.eps * (2 * draws.uniform(shape) - 1)).clamp(0, 1)
    direction, radius = draws.normal(shape), draws.sub("radius").uniform((1, 1, 1))
    length = direction.square().sum((1, 2, 3), keepdim=True).sqrt()
    return (x + threat.eps * radius ** (1 / x[0].numel()) * direction / length).clamp(0, 1)


def plain_iterates(case: Case, bench: Bench, threat: Threat, draws: Draws) -> list[Tensor]:
    reference = bench.condition()["reference"][:, 0]
    x_adv, velocity, found = plain_start(case, bench, threat, draws), torch.zeros_like(bench.x), []
    for _ in range(case.steps):
        found.append(x_adv)
        leaf = x_adv.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(plain_loss(case.loss, bench.network(leaf), bench, reference).sum(), leaf)
        if case.momentum:
            velocity = g = case.momentum * velocity + g / g.abs().sum((1, 2, 3), keepdim=True)
        size = case.size * threat.eps
        if threat.norm == "linf":
            delta = (x_adv + size * g.sign() - bench.x).clamp(-threat.eps, threat.eps)
        else:
            delta = x_adv + size * g / g.square().sum((1, 2, 3), keepdim=True).sqrt() - bench.x
            delta = delta / (delta.square().sum((1, 2, 3), keepdim=True).sqrt() / threat.eps).clamp_min(1)
        x_adv = (bench.x + delta).clamp(0, 1)
    return [*found, x_adv]


class DoubleDraws(Draws):
    """The same numbers, so that a start computed in float64 has no float32 rounding in it."""

    def uniform(self, shape: Any) -> Tensor:
        return super().uniform(shape).double()

    def normal(self, shape: Any) -> Tensor:
        return super().normal(shape).double()


@cache
def plain_result(case: Case, bench: Bench, threat: Threat) -> tuple[Tensor, Tensor]:
    """(x_adv, steps): each example's first success over restarts and steps, else the last iterate with the largest margin."""
    draws = DoubleDraws(0, bench.index, "test")
    iterates = torch.stack([p for r in range(case.restarts) for p in plain_iterates(case, bench, threat, draws.at(r))])
    margins = torch.stack([bench.margins(p) for p in iterates])
    success = margins >= 0
    last = torch.arange(len(margins)) % (case.steps + 1) == case.steps
    pick = torch.where(success.any(0), success.int().argmax(0), margins.masked_fill(~last[:, None], -torch.inf).argmax(0))
    steps = torch.where(success.any(0), pick % (case.steps + 1), -1)
    return iterates[pick, torch.arange(len(pick))], steps


# The properties.


def check_inside(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    x_adv = run(case, bench, threat, parts).x_adv
    assert bool((x_adv >= 0).all())
    assert bool((x_adv <= 1).all())
    delta = (x_adv.double() - bench.x.double()).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "linf" else delta.square().sum(1).sqrt()
    assert bool((size <= threat.eps + 2.0**-22).all())  # float32 rounds x + delta


def check_climbs(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    """Nowhere weaker than its own starts (nor than the clean image, where that is the start), and stronger on most.

    On most, not all: the KL also climbs by making the network surer of the label.
    """
    draws = Draws(0, bench.index, "test")
    start = torch.stack([bench.margins(plain_start(case, bench, threat, draws.at(r))) for r in range(case.restarts)]).amax(0)
    found = run(case, bench, threat, parts)
    gain = own = found.margins - start
    if case.loss in ("targeted", "kl"):  # these raise something else, and keep their last point, not the one of largest margin
        reference = bench.condition()["reference"][:, 0]
        with torch.no_grad():
            ends = [
                plain_loss(case.loss, bench.network(p), bench, reference) for p in (plain_start(case, bench, threat, draws), found.x_adv)
            ]
        own = torch.where(found.broken, gain, ends[1] - ends[0])
    assert bool((own[start < 0] >= -1e-5).all())
    assert (gain[start < 0] > 0.05).float().mean() > 0.6


def check_like_the_plain_loop(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    """In float64: the same point, and the same step of first success, as a loop that keeps everything and looks afterwards."""
    double = bench.double()
    parts = replace(parts, draws=DoubleDraws) if parts.draws is Draws else parts
    found, (x_adv, steps) = run(case, double, threat, parts), plain_result(case, double, threat)
    torch.testing.assert_close(found.x_adv, x_adv, rtol=0, atol=1e-9)
    assert torch.equal(found.steps, steps)
    assert torch.equal(found.broken, steps >= 0)


def check_as_strong_as_the_plain_loop(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    """In float32: mean margin within a twentieth of a logit of the float64 loop's, at most one image less broken."""
    found, double = run(case, bench, threat, parts), bench.double()
    x_adv, steps = plain_result(case, double, threat)
    assert (found.margins - double.margins(x_adv)).mean() > -0.05
    assert int(found.broken.sum()) >= int((steps >= 0).sum()) - 1


def check_breaks(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    """AutoAttack's parts: what PGD of ten steps breaks, but for one; the black box half of it."""
    fallen = int(run(case, bench, threat, parts).broken.sum())
    pgd = int(run(BY_NAME["pgd-ce"], bench, threat).broken.sum())
    assert fallen >= (pgd / 2 if case.name == "square" else pgd - 1)


def check_draws_matter(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    first, second = (run(case, bench, threat, parts, seed=seed).x_adv for seed in (0, 1))
    assert bool((first != second).flatten(1).any(1).float().mean() > 0.9)


def check_restarts_differ(case: Case, bench: Bench, threat: Threat, parts: Parts) -> None:
    """Three restarts find larger margins than one on some image that stands either way, and nowhere smaller ones."""
    one, three = (run(case, bench, threat, parts, restarts=r) for r in (1, 3))
    assert bool((three.broken >= one.broken).all())
    gain = (three.margins - one.margins)[~three.broken]
    assert bool((gain >= 0).all())
    assert bool((gain > 0).any())


@each_norm
@each_case
@pytest.mark.parametrize("check", [check_inside, check_climbs, check_like_the_plain_loop, check_as_strong_as_the_plain_loop])
def test_properties(check: Callable[..., None], case: Case, norm: str, bench: Bench) -> None:
    check(case, bench, THREATS[norm], SOUND)


@each_norm
@each_part
@pytest.mark.parametrize("check", [check_inside, check_breaks])
def test_properties_of_parts(check: Callable[..., None], case: Case, norm: str, bench: Bench) -> None:
    check(case, bench, THREATS[norm], SOUND)


@each_norm
@pytest.mark.parametrize("case", [case for case in CASES + PARTS if case.start != "none"], ids=lambda case: case.name)
def test_random_starts_matter(case: Case, norm: str, bench: Bench) -> None:
    check_draws_matter(case, bench, THREATS[norm], SOUND)


@each_norm
@pytest.mark.parametrize("name", ["fgsm-rs", "pgd-ce", "cw"])
def test_more_restarts_are_not_weaker(name: str, norm: str, bench: Bench) -> None:
    check_restarts_differ(BY_NAME[name], bench, THREATS[norm], SOUND)


@each_norm
def test_the_bench_can_tell_attacks_apart(norm: str, bench: Bench) -> None:
    """Else the properties above would hold on anything: some images fall, some stand, some fall late."""
    found = run(BY_NAME["pgd-ce"], bench, THREATS[norm])
    assert 4 <= int(found.broken.sum()) <= len(bench.x) - 4
    assert found.steps.max() > 2


@each_norm
@pytest.mark.parametrize("case", ITERATED, ids=lambda case: case.name)
def test_fewer_steps_can_be_read_off_one_run(case: Case, norm: str, bench: Bench) -> None:
    """steps <= k of one run of 20 is the run of k, example by example and to the bit; so accuracy never rises with k.

    Step 0 is the start itself.
    """
    long = run(case, bench, THREATS[norm], steps=20)
    before = long.steps == 0
    start = plain_start(case, bench, THREATS[norm], Draws(0, bench.index, "test"))
    assert torch.equal(before, Judge(bench.network, chunk=len(bench.x)).decide(start, bench.y))
    for k in (1, 2, 5, 11, 20):
        short = run(case, bench, THREATS[norm], steps=k)
        assert torch.equal(short.broken, (long.steps >= 0) & (long.steps <= k))
        assert torch.equal(short.steps[short.broken], long.steps[short.broken])
        assert torch.equal(short.x_adv[short.broken], long.x_adv[short.broken])
        assert bool((short.broken >= before).all())
        before = short.broken


@each_norm
@each_attack
def test_verdicts_and_margins_are_the_judges(case: Case, norm: str, bench: Bench) -> None:
    found, judge = run(case, bench, THREATS[norm]), Judge(bench.network, chunk=len(bench.x))
    assert torch.equal(found.broken, judge.decide(found.x_adv, bench.y))
    assert torch.equal(found.margins, judge.margins(found.x_adv, bench.y))
    assert torch.equal(found.steps >= 0, found.broken)


@each_norm
@each_attack
def test_companions_have_no_say(case: Case, norm: str, bench: Bench) -> None:
    """Permuted, and in two halves: the same points (in float64, where no sign hangs on rounding) and the same verdicts."""
    double = bench.double()
    whole = run(case, double, THREATS[norm])
    order = torch.randperm(len(bench.x), generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:11], order[11:]):
        part = run(case, double.pick(rows), THREATS[norm])
        torch.testing.assert_close(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)
        assert torch.equal(part.broken, whole.broken[rows])
        assert torch.equal(part.steps, whole.steps[rows])
    single = run(case, bench.pick(order), THREATS[norm])
    assert torch.equal(single.broken, run(case, bench, THREATS[norm]).broken[order])


@each_norm
@each_attack
def test_companions_and_order_have_no_say_to_the_bit(case: Case, norm: str, bench: Bench) -> None:
    """In float32 at one chunk size: again, permuted, in parts that fill the chunk or do not; global generators unused."""
    whole = run(case, bench, THREATS[norm], chunk=10)
    order = torch.randperm(len(bench.x), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    generator = torch.random.get_rng_state()
    for rows in (torch.arange(len(order)), order, order[:7], order[7:17], order[17:18]):
        part = run(case, bench.pick(rows), THREATS[norm], chunk=10)
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.parametrize("eps", [1e-6, 0.15, 0.6], ids=["nobody falls", "some", "all"])
@each_case
def test_costs_are_exact(case: Case, eps: float, bench: Bench) -> None:
    """As a hook on the first layer counts them; and as predicted where no image falls, so that no attack ends early.

    The judge counts images, but every one of its forwards is a whole chunk.
    """
    ours, judges, threat, model = Cost(), Cost(), Threat("linf", eps), copy.deepcopy(bench.network)
    n, runs, attack = len(bench.x), case.restarts, case.make(threat)
    judge, condition = Judge(model, chunk=n, cost=judges), bench.condition()
    with passes(bench.network) as seen, passes(model) as judged:
        found = attack(Surrogate(bench.network.trace, ours), judge, bench.x, bench.y, Draws(0, bench.index, "test"), condition)
    assert ours == seen
    assert (judged.forwards % n, judged.backwards, judges.backwards) == (0, 0, 0)
    assert n <= judges.forwards <= judged.forwards
    assert judges.forwards <= n * runs
    if eps == 1e-6:
        assert not found.broken.any()
        assert ours == Cost(n * runs * case.steps, n * runs * case.steps)
        assert judges.forwards == judged.forwards == n * runs
        assert attack.passes * n == ours.forwards + ours.backwards + judges.forwards
    if runs == 1:
        assert ours.forwards == ours.backwards <= n * case.steps
        assert judges.forwards == n


def state(network: nn.Module) -> dict[str, Any]:
    return {
        "training": [module.training for module in network.modules()],
        "requires_grad": [p.requires_grad for p in network.parameters()],
        "grad": [p.grad is None for p in network.parameters()],
    }


@each_attack
def test_network_is_left_as_it_was(case: Case, bench: Bench) -> None:
    """Flags (mixed on purpose), parameters, statistics and counters of batch norm; no parameter gets a gradient."""
    mixed = replace(bench, network=copy.deepcopy(bench.network).eval())
    network = mixed.network
    network.get_submodule("layer2.0").weight.requires_grad_(False)
    flags, tensors = state(network), copy.deepcopy(network.state_dict())
    run(case, mixed, THREATS["linf"])
    assert state(network) == flags
    network.train().get_submodule("layer3").eval()
    flags = state(network)
    with frozen(network):
        run(case, mixed, THREATS["linf"])
    assert state(network) == flags
    assert all(flags["grad"])
    assert 0 < sum(flags["training"]) < len(flags["training"])
    assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())


@each_norm
def test_targeted_moves_towards_its_target(norm: str, bench: Bench) -> None:
    """Its logit gains on the label's, more than under the untargeted margin; and those that fall, fall for it more often."""

    def gap(x: Tensor) -> Tensor:
        with torch.no_grad():
            return plain_loss("targeted", bench.network(x), bench)

    found, untargeted = (run(BY_NAME[name], bench, THREATS[norm]) for name in ("pgd-targeted", "pgd-margin"))
    assert (gap(found.x_adv) > gap(bench.x)).float().mean() > 0.9
    assert gap(found.x_adv).mean() > gap(untargeted.x_adv).mean()
    wide = replace(THREATS[norm], eps=3 * THREATS[norm].eps)
    hits = [
        (bench.network(run(BY_NAME[name], bench, wide).x_adv).argmax(1) == bench.target).sum() for name in ("pgd-targeted", "pgd-margin")
    ]
    assert hits[0] > 2 * hits[1]


class Other(Surrogate):
    """Follows another network than the one that is judged: its head is half as steep, with other biases."""

    def __init__(self, trace: Callable[[Tensor], Any], cost: Cost | None = None) -> None:
        network = copy.deepcopy(trace.__self__)
        network.linear.weight.data.mul_(0.5)
        network.linear.bias.data.add_(torch.linspace(-2, 2, network.num_classes))
        super().__init__(network.trace, cost)


def test_steps_tell_where_it_broke_on_another_surrogate_too(bench: Bench) -> None:
    """Whoever is broken with `steps` s is broken by a run of s steps: what reading shorter attacks off one run rests on."""
    case, parts = BY_NAME["pgd-ce"], Parts(surrogate=Other)
    found = run(case, bench, THREATS["linf"], parts)
    assert found.broken.any()
    for s in found.steps[found.broken].unique().tolist():
        short = run(case, bench, THREATS["linf"], parts, steps=s)
        assert bool(short.broken[found.broken & (found.steps == s)].all()), f"not broken after {s} steps"


# Mutants: each breaks one part of an attack, and the check named beside it must notice on every attack that has the part.


class WrongSign(Surrogate):
    def gradient(self, *args: Any) -> Any:
        gradient, losses, output = super().gradient(*args)
        return -gradient, losses, output


class Stale(Surrogate):
    """Computes the gradient once and uses it ever after."""

    def gradient(self, *args: Any) -> Any:
        gradient, losses, output = super().gradient(*args)
        return self.__dict__.setdefault("first", gradient), losses, output


class NoProjection(Threat):
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return x_adv


class NoBox(Threat):
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return replace(Threat(self.norm, self.eps), bounds=(-9.0, 9.0)).project(x_adv, x)


class NoStep(Threat):
    def step(self, x_adv: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        return x_adv


@dataclass(frozen=True)
class TwiceEps(Threat):
    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", 2 * self.eps)


@dataclass(frozen=True)
class WideBox(Threat):
    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", (-9.0, 9.0))


class NoStart(Draws):
    """Draws that leave every start at the image itself."""

    def uniform(self, shape: Any) -> Tensor:
        return torch.full((len(self.index), *shape), 0.5)

    def normal(self, shape: Any) -> Tensor:
        return torch.zeros(len(self.index), *shape)


STARTED = [case for case in CASES if case.start != "none"]
CLIMBERS = [case for case in PARTS if case.name.startswith("apgd")]
MANY = [case for case in CASES if case.steps > 1]
MUTANTS = [
    ("wrong sign", Parts(surrogate=WrongSign), check_climbs, [case for case in CASES if case.loss != "kl"]),
    ("wrong sign", Parts(surrogate=WrongSign), check_as_strong_as_the_plain_loop, CASES),
    ("wrong sign", Parts(surrogate=WrongSign), check_like_the_plain_loop, CASES),
    ("stale gradient", Parts(surrogate=Stale), check_like_the_plain_loop, MANY),
    ("no projection", Parts(threat=NoProjection), check_inside, CASES),
    ("no box", Parts(threat=NoBox), check_inside, CASES),
    ("no step", Parts(threat=NoStep), check_climbs, CASES),
    ("no step", Parts(threat=NoStep), check_as_strong_as_the_plain_loop, CASES),
    ("no start", Parts(draws=NoStart), check_draws_matter, STARTED),
    ("no start", Parts(draws=NoStart), check_like_the_plain_loop, STARTED),
    ("no start", Parts(draws=NoStart), check_climbs, [BY_NAME["pgd-kl"]]),
    ("wrong sign", Parts(surrogate=WrongSign), check_breaks, [case for case in PARTS if case.name != "square"]),
    ("twice eps", Parts(threat=TwiceEps), check_inside, PARTS),
    ("wide box", Parts(threat=WideBox), check_inside, PARTS),
    ("no projection", Parts(threat=NoProjection), check_inside, CLIMBERS),
    ("no step", Parts(threat=NoStep), check_breaks, CLIMBERS),
    ("no start", Parts(draws=NoStart), check_draws_matter, [*CLIMBERS, BY_NAME["square"]]),
    ("no start", Parts(draws=NoStart), check_restarts_differ, [BY_NAME["pgd-ce"], BY_NAME["cw"]]),
]


@each_norm
@pytest.mark.parametrize(
    ("parts", "check", "case"),
    [pytest.param(p, check, c, id=f"{what}-{check.__name__}-{c.name}") for what, p, check, cases in MUTANTS for c in cases],
)
def test_mutants_are_caught(parts: Parts, check: Callable[..., None], case: Case, norm: str, bench: Bench) -> None:
    with pytest.raises(AssertionError):
        check(case, bench, THREATS[norm], parts)
