"""ARREST against its paper, written out plainly in float64: distances, loss, who is replayed, and a teacher that never moves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advcli.data import Batch, DataSet, Moment, Split
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.gates import Selection
from advcli.gates.fusion import Fusion
from advcli.models import Architecture, ModelOutput, Network, build
from advcli.objectives import Crafted, Objective, build_objective
from advcli.objectives import arrest as module
from advcli.objectives.arrest import ArrestObjective, angular, attention_map, squared, threshold
from advcli.recipe import Recipe
from advcli.training.cost import passes
from advcli.training.device import computing
from advcli.training.step import Step

N, K, EPS = 12, 5, 0.1
MOMENT = Moment(seed=3, epoch=0, step=7, progress=0.0)
CRAFT = {"steps": 3, "step_size": 0.04}
REPLAY = {"until": 1}
WHOLE: dict[str, Any] = {"distillation": {"name": "angular"}, "replay": REPLAY}
KINDS = ("angular", "squared", "attention-map", "logit")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


class Tiny(Network):
    """Two convolutions with batch norm and features of both signs; as many auxiliary heads as wanted."""

    def __init__(self, heads: int = 0) -> None:
        super().__init__(1, K, 8)
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Softplus())
        self.second = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8))
        self.aux = nn.ModuleList(nn.Linear(6, K) for _ in range(heads))

    def trace(self, x: Tensor, select: Selection | None = None, fuse: Mapping[str, Fusion] | None = None) -> ModelOutput:
        low = self.first(x)
        high = self.second(low)
        aux = tuple(head(low.mean((2, 3))) for head in self.aux)
        return ModelOutput(4 * self.linear(high.mean((2, 3))), aux, high, high)


def tiny(heads: int = 0) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(heads).double().train()


def moved(model: Network, amount: float = 0.15) -> Network:
    """The student after a while: the same network with other weights."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(amount * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return model


def example(n: int = N, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return Batch(images, torch.randint(K, (n,), generator=generator), torch.arange(n) * 3)


def data(side: int = 6) -> DataSet:
    images = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    split = Split(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    return DataSet(split, split, ())


def objective(teacher: Network, *, norm: str = "linf", craft: dict[str, Any] = CRAFT, name: str = "arrest", **settings: Any) -> Any:
    recipe: dict[str, Any] = {"name": "test", "data": {"name": "digits"}, "model": {"arch": "small-cnn"}, "craft": craft}
    recipe |= {"threat": {"norm": norm, "eps": EPS}, "objective": {"name": name, **settings}}
    made = build_objective(Recipe.model_validate({**recipe, "optim": {"lr": 0.1}, "schedule": {"epochs": 5}}))
    made.setup(teacher, data())
    return made


def pair(heads: int = 0, **settings: Any) -> tuple[ArrestObjective, Network]:
    """(objective with a teacher, a student that has left it)."""
    made = objective(tiny(heads), **settings)
    return made, moved(tiny(heads))


def assert_equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def gradients(total: Tensor, model: nn.Module) -> list[Tensor]:
    got = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), got, strict=True)]


# The paper's formulas, one example and one number at a time.


def dot(u: Tensor, v: Tensor) -> Tensor:
    return sum(a * b for a, b in zip(u.reshape(-1), v.reshape(-1), strict=True))


def plain_angular(u: Tensor, v: Tensor) -> Tensor:
    return 1 - abs(dot(u, v)) / (dot(u, u) ** 0.5 * dot(v, v) ** 0.5)


def plain_squared(u: Tensor, v: Tensor) -> Tensor:
    return dot(u - v, u - v) / u.numel()


def plain_attention(u: Tensor, v: Tensor) -> Tensor:
    maps = [sum(channel**2 for channel in a) for a in (u, v)]
    a, b = (q / dot(q, q) ** 0.5 for q in maps)
    return dot(a - b, a - b)


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "angular": plain_angular,
    "squared": plain_squared,
    "attention-map": plain_attention,
    "logit": plain_squared,
}


@pytest.mark.parametrize(("ours", "plain"), [(angular, plain_angular), (squared, plain_squared), (attention_map, plain_attention)])
def test_distances_and_their_gradients_are_the_papers(ours: Any, plain: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(5, 3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = torch.stack([plain(a, b) for a, b in zip(u, v, strict=True)])
    assert_equal(ours(u, v), expected)
    assert_equal(torch.autograd.grad(ours(u, v).sum(), (u, v)), torch.autograd.grad(expected.sum(), (u, v)))
    assert_equal(ours(u, u), torch.zeros(5, dtype=torch.float64))
    assert bool((expected > 1e-2).all())


def test_the_angular_distance_knows_directions_alone() -> None:
    u = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 1]], dtype=torch.float64)
    v = torch.tensor([[0.0, 3], [5, 0], [-2, 0], [1, 0]], dtype=torch.float64)
    assert_equal(angular(u, v), torch.tensor([1, 0, 0, 1 - 0.5**0.5], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("distance", [angular, squared, attention_map])
def test_dead_features_give_finite_distances_and_gradients(distance: Any, dtype: torch.dtype) -> None:
    """A map of zeros, which ReLU can make of an image, is no NaN."""
    u, v = torch.zeros(2, 3, 2, 2, dtype=dtype, requires_grad=True), torch.ones(2, 3, 2, 2, dtype=dtype)
    for value in (distance(u, v), distance(v, u), distance(u, u.detach())):
        (gradient,) = torch.autograd.grad(value.sum(), u)
        assert bool(torch.isfinite(value).all())
        assert bool(torch.isfinite(gradient).all())
    assert bool((angular(u, v) == 1).all())


@pytest.mark.parametrize(
    ("angle", "tau"), [(30, 0.1339745962), (32.5, 0.1566085542), (35, 0.1808479557), (37.5, 0.2066466597), (45, 0.2928932188), (90, 1)]
)
def test_tau_is_one_minus_the_cosine_of_the_angle(angle: float, tau: float) -> None:
    assert threshold(angle) == pytest.approx(tau, abs=1e-9)


# The loss.


def plain_total(made: Any, student: Network, batch: Batch, x_adv: Tensor, kind: str, weight: float, aux_weight: float) -> Tensor:
    """Eq. 4, a mean over the batch; the teacher in eval mode on the clean images."""
    with torch.no_grad():
        taught = made.teacher.trace(batch.images)
    output = student.trace(x_adv)
    rows = []
    for i in range(len(x_adv)):
        ce = [-(z[i].exp() / z[i].exp().sum())[int(batch.labels[i])].log() for z in (output.logits, *output.aux_logits)]
        u, v = (o.logits[i] if kind == "logit" else o.features[i] for o in (output, taught))
        rows.append(ce[0] + (aux_weight * sum(ce[1:]) / len(ce[1:]) if len(ce) > 1 else 0) + weight * PLAIN[kind](u, v))
    return sum(rows) / len(rows)


@pytest.mark.parametrize(("heads", "aux_weight"), [(0, 1.0), (2, 0.7)])
@each_kind
def test_loss_and_gradient_are_the_papers(kind: str, heads: int, aux_weight: float) -> None:
    batch, weight = example(), 50.0 if kind == "angular" else 3.0
    made, student = pair(heads, distillation={"name": kind, "weight": weight}, aux_weight=aux_weight)
    crafted, twin = made.craft(student, batch, MOMENT), copy.deepcopy(student)
    parts = made.loss(student, batch, crafted, MOMENT)
    expected = plain_total(made, twin, batch, crafted.x_adv, kind, weight, aux_weight)
    assert_equal(parts.total, expected)
    assert_equal(gradients(parts.total, student), gradients(expected, twin))
    assert set(parts.parts) == {"ce_adv", "distillation", *(f"ce_adv.aux{head}" for head in range(heads))}
    heard = sum(parts.parts[f"ce_adv.aux{head}"] for head in range(heads)) * aux_weight / max(1, heads)
    assert_equal(parts.parts["ce_adv"] + heard + weight * parts.parts["distillation"], expected.detach())
    assert not any(value.requires_grad for value in parts.parts.values())


def test_the_defaults_are_the_papers() -> None:
    made, _ = pair(distillation={"name": "angular"}, replay={})
    assert float(made.distillation.weight) == 50
    assert made.replay.until == 10
    assert made.tau == pytest.approx(1 - math.cos(math.pi / 6), abs=1e-15)


@pytest.mark.parametrize("settings", [{}, {"distillation": {"name": "angular", "weight": 0}}, {"replay": {**REPLAY, "angle": 90}}])
def test_without_its_constraints_it_is_pgd_adversarial_training(settings: dict[str, Any]) -> None:
    """AFT of table 2, to the bit: crafting, loss and gradient."""
    batch, results = example(), []
    for made in (objective(tiny(), **settings), objective(tiny(), name="pgd-at")):
        student = moved(tiny())
        crafted = made.craft(student, batch, MOMENT)
        total = made.loss(student, batch, crafted, MOMENT).total
        results.append([crafted.x_adv, total, *gradients(total, student), *student.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_plain_finetuning_asks_the_teacher_nothing() -> None:
    made, student = pair()
    with passes(made.teacher) as seen:
        crafted = made.craft(student, example(), MOMENT)
        parts = made.loss(student, example(), crafted, MOMENT)
    assert (seen.forwards, dict(crafted.extra), set(parts.parts)) == (0, {}, {"ce_adv"})


@pytest.mark.parametrize("wrapper", [None, {"name": "awp"}], ids=["plain", "awp"])
def test_the_teacher_is_asked_once_a_step(wrapper: Any) -> None:
    made, student = pair(**WHOLE, wrapper=wrapper)
    teacher = getattr(made, "inner", made).teacher
    with passes(teacher) as seen:
        Step(student, made, torch.optim.SGD(student.parameters(), lr=0.1))(example(), MOMENT)
    assert (seen.forwards, seen.backwards) == (N, 0)


def test_loss_is_pure() -> None:
    batch = example()
    made, student = pair(1, **WHOLE)
    crafted, before = made.craft(student, batch, MOMENT), copy.deepcopy(made.state_dict())
    results = []
    for _ in range(2):
        total = made.loss(student, batch, crafted, MOMENT).total
        results.append([total, *gradients(total, student)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(value, made.state_dict()[key]) for key, value in before.items())


# Replay.


def plain_distances(made: ArrestObjective, student: Network, batch: Batch) -> Tensor:
    """a_i of algorithm 1, both networks in eval mode."""
    networks = [copy.deepcopy(network).eval() for network in (student, made.teacher)]
    with torch.no_grad():
        u, v = (network.trace(batch.images).features for network in networks)
    return torch.stack([plain_angular(a, b) for a, b in zip(u, v, strict=True)])


@contextmanager
def distances(values: Tensor) -> Iterator[None]:
    """Replay finds these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "angular", lambda u, v: values)
        yield


def half() -> Tensor:
    """Which half of a batch is over the threshold."""
    return torch.arange(N) % 3 == 1


def crafted_with(replayed: Tensor, *, norm: str = "linf", **replay: Any) -> tuple[ArrestObjective, Network, Crafted]:
    made, student = pair(norm=norm, replay={**REPLAY, **replay})
    with distances(replayed.double()):
        return made, student, made.craft(student, example(), MOMENT)


def test_who_is_replayed_is_the_papers_rule() -> None:
    made, student = pair(replay={**REPLAY, "angle": 30})
    a = plain_distances(made, student, example())
    made.tau = float(a.sort().values[4:6].mean())
    replayed = made.craft(student, example(), MOMENT).extra["replayed"]
    assert torch.equal(replayed, a > made.tau)
    assert int(replayed.sum()) == N - 5


def test_the_threshold_itself_is_still_crafted() -> None:
    """a <= tau: PGD; a > tau: replay. Split between two neighbouring numbers."""
    made, student = pair(replay=REPLAY)
    tau = torch.tensor(made.tau, dtype=torch.float64)
    up, down = (torch.nextafter(tau, tau + sign) for sign in (1, -1))
    with distances(torch.stack([down, tau, up] * 4)):
        replayed = made.craft(student, example(), MOMENT).extra["replayed"]
    assert replayed.tolist() == [False, False, True] * 4


@each_norm
@pytest.mark.parametrize("who", ["some", "one", "all but one", "all", "none"])
def test_the_replayed_get_noise_and_the_others_what_the_whole_batch_would_give(who: str, norm: str) -> None:
    one = torch.arange(N) == 4
    replayed = {"some": half(), "one": one, "all but one": ~one, "all": one | True, "none": one & False}[who]
    made, student, crafted = crafted_with(replayed, norm=norm)
    assert torch.equal(crafted.extra["replayed"], replayed)
    batch = example()
    attacked = objective(tiny(), norm=norm, name="pgd-at").craft(student, batch, MOMENT).x_adv
    noisy = made.threat.random_start(batch.images, Draws(MOMENT.seed, batch.index, "replay", MOMENT.step))
    assert_equal(crafted.x_adv, torch.where(replayed[:, None, None, None], noisy, attacked))
    assert not crafted.x_adv.requires_grad
    delta = (crafted.x_adv - batch.images).flatten(1)
    assert bool(((delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)) <= EPS + 1e-12).all())
    assert bool((delta != 0).any(1).all())
    assert 0 <= float(crafted.x_adv.min()) <= float(crafted.x_adv.max()) <= 1


@pytest.mark.parametrize("count", [0, 1, 5, N])
def test_the_replayed_are_not_crafted(count: int) -> None:
    """The clean look costs a forward each; crafting three forwards and backwards for each that is left."""
    made, student = pair(replay=REPLAY)
    with distances((torch.arange(N) < count).double()), passes(student) as seen:
        made.craft(student, example(), MOMENT)
    assert (seen.forwards, seen.backwards) == (N + 3 * (N - count), 3 * (N - count))


def test_noise_is_uniform_and_fixed_by_example_and_step() -> None:
    """U(-eps, eps) of its own: not the start of the attack, not the noise of another step, the same in any order."""
    made, student, crafted = crafted_with(torch.ones(N))
    batch = example()
    inside = (batch.images > EPS) & (batch.images < 1 - EPS)  # where the box clips nothing
    noise = ((crafted.x_adv - batch.images) / EPS)[inside]
    assert abs(float(noise.mean())) < 0.12
    assert float(noise.square().mean()) == pytest.approx(1 / 3, abs=0.06)
    start = made.threat.random_start(batch.images, Draws(MOMENT.seed, batch.index, "craft", MOMENT.step))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    with distances(torch.ones(N)):
        later = made.craft(student, batch, MOMENT._replace(step=8)).x_adv
        shuffled = made.craft(student, Batch(*(t[order] for t in batch)), MOMENT).x_adv
    assert not torch.equal(crafted.x_adv, start)
    assert not torch.equal(crafted.x_adv, later)
    assert torch.equal(shuffled, crafted.x_adv[order])


@pytest.mark.parametrize("replayed", [half(), torch.ones(N)], ids=["some", "all"])
def test_replay_can_show_the_images_as_they_are(replayed: Tensor) -> None:
    """Figure 4's variant."""
    _, _, crafted = crafted_with(replayed, input="clean")
    untouched = (crafted.x_adv == example().images).flatten(1).all(1)
    assert torch.equal(untouched, replayed.bool())


@pytest.mark.parametrize(("epoch", "share"), [(0, 1.0), (1, 1.0), (2, 0.0), (4, 0.0)])
def test_replay_ends_after_its_epochs(epoch: int, share: float) -> None:
    made, student = pair(replay={"until": 2})
    moment, batch = MOMENT._replace(epoch=epoch), example()
    with distances(torch.ones(N)), passes(made.teacher) as seen:
        crafted = made.craft(student, batch, moment)
    attacked = objective(tiny(), name="pgd-at").craft(student, batch, moment).x_adv
    assert torch.equal(crafted.x_adv, attacked) == (not share)
    assert seen.forwards == (N if share else 0)
    assert float(made.loss(student, batch, crafted, moment).parts["replayed"]) == share


def test_the_logged_share_is_of_the_batch() -> None:
    made, student, crafted = crafted_with(half())
    parts = made.loss(student, example(), crafted, MOMENT).parts
    assert float(parts["replayed"]) == pytest.approx(4 / 12)
    assert set(parts) == {"ce_adv", "replayed"}


def test_crafting_leaves_the_student_as_it_was() -> None:
    made, student = pair(**WHOLE)
    student.second.eval()
    student.first[0].weight.requires_grad_(False)
    flags = [m.training for m in student.modules()], [p.requires_grad for p in student.parameters()]
    before = copy.deepcopy(student.state_dict())
    made.craft(student, example(), MOMENT)
    assert ([m.training for m in student.modules()], [p.requires_grad for p in student.parameters()]) == flags
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


# The teacher.


@pytest.mark.parametrize("wrapper", [None, {"name": "awp", "gamma": 0.1}], ids=["plain", "awp"])
def test_the_teacher_never_moves(wrapper: Any) -> None:
    student = moved(tiny())
    made = objective(student, **WHOLE, wrapper=wrapper).train()
    teacher = getattr(made, "inner", made).teacher
    pretrained = copy.deepcopy(student.state_dict())
    optimizer = torch.optim.SGD([{"params": list(student.parameters())}, *made.parameter_groups()], lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(4):
        Step(student, made.train(), optimizer)(example(), MOMENT._replace(step=step))
    assert all(torch.equal(pretrained[name], value) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.linear.weight, teacher.linear.weight)
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}


@pytest.mark.parametrize("wrapper", [None, {"name": "awp"}], ids=["plain", "awp"])
def test_the_teacher_is_in_the_saved_state(wrapper: Any) -> None:
    """Another run's setup finds other weights; loading the state brings the first teacher back."""
    first, second = (objective(model, **WHOLE, wrapper=wrapper) for model in (tiny(), moved(tiny())))
    second.load_state_dict(first.state_dict())
    a, b = (getattr(made, "inner", made).teacher.state_dict() for made in (first, second))
    assert a.keys() == tiny().state_dict().keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_cosine_to_the_teacher_is_observed() -> None:
    """Table 3, on clean images; a network that has not moved yet has cosine 1."""
    batch = example()
    made, student = pair()
    student.eval()
    with torch.no_grad():
        (values,) = made.observe(student, batch).values()
        u, v = (network.trace(batch.images).features for network in (student, made.teacher))
        assert_equal(values, torch.stack([dot(a, b) / (dot(a, a) ** 0.5 * dot(b, b) ** 0.5) for a, b in zip(u, v, strict=True)]))
        same = made.observe(tiny().eval(), batch)
    assert_equal(same, {"teacher_cosine": torch.ones(N, dtype=torch.float64)})


def test_an_attention_map_of_one_pixel_is_refused() -> None:
    """Its normalised map is always 1: the loss would be zero and nobody would notice."""
    network = build(Architecture("small-cnn", 0.25, K, 1, 4)).train()
    made = objective(tiny(), distillation={"name": "attention-map"})
    with pytest.raises(UsageError, match="one pixel"):
        made.setup(network, data(side=4))
    made.setup(network, data(side=8))


# Low precision.


@each_kind
def test_distances_are_float32_under_autocast(kind: str) -> None:
    """bfloat16 rounds to 1/256: a distance of 0.002 would be nothing or twice itself."""
    batch = example(dtype=torch.float32)
    teacher, student = tiny().float(), moved(tiny().float(), 0.02)
    made: Objective = objective(teacher, distillation={"name": kind}, replay=REPLAY)
    exact = made.loss(student, batch, made.craft(student, batch, MOMENT), MOMENT).parts["distillation"]
    with computing("bf16", batch.images.device):
        low = made.loss(student, batch, made.craft(student, batch, MOMENT), MOMENT).parts["distillation"]
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=0.2)


@pytest.mark.parametrize("distance", [angular, squared, attention_map])
def test_a_bfloat16_map_is_measured_as_the_float32_map_that_it_is(distance: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, 16, 4, 4, generator=generator).bfloat16()
    v = (u.float() + 0.02 * torch.rand(u.shape, generator=generator)).bfloat16()
    with computing("bf16", u.device):
        low = distance(u, v)
    assert torch.equal(low, distance(u.float(), v.float()))
