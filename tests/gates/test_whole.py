"""Two processes, each with half of a batch, against one with all of it: whatever couples examples couples those of the whole batch."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from advcli.data import Batch, DataSet, Moment, Split
from advcli.gates.whole import own, processes, whole
from advcli.models import Architecture, Network, build
from advcli.objectives import Objective, build_objective
from advcli.recipe import Recipe

N, K, PROCESSES = 16, 4, 2
MOMENT = Moment(seed=3, epoch=12, step=7, progress=0.5)

SPAN = {"name": "attribution-span", "at": ["layer2", "features"]}
FUSION = {"name": "hybrid-statistics", "at": ["layer1", "features"]}
RA = {"name": "reverse-attention"}
PROMPT = {"name": "channel-prompt", "momentum": 0.5}
CE = {"loss": "ce", "steps": 2}


def anc(negatives: str) -> dict[str, Any]:
    return {"name": "negative-contrast", "negatives": negatives, "alpha": 0.4}


def shc(**settings: Any) -> dict[str, Any]:
    return {"name": "hypersphere-contrast", **settings}


MASKED = {"name": "masked-view", "ratios": [0.25, 0.5], "patch": 2}
# model part, objective part
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "again": ({"gates": [SPAN], "fusion": FUSION}, {"name": "pgd-at"}),
    "again-distinct": ({"gates": [{**SPAN, "distinct": True}], "fusion": FUSION}, {"name": "mart"}),
    "ancra-random": ({"gates": [RA]}, {"name": "trades", "terms": [anc("random")]}),
    "ancra-soft": ({"gates": [RA]}, {"name": "pgd-at", "terms": [anc("soft")]}),
    "ancra-hard": ({"gates": [RA]}, {"name": "pgd-at", "terms": [anc("hard")]}),
    "stayfocused": ({"gates": [PROMPT]}, {"name": "pgd-at", "terms": [MASKED, shc()]}),
    "stayfocused-all-negatives": ({"gates": [PROMPT]}, {"name": "pgd-at", "terms": [MASKED, shc(negatives="all", natural_gradient=True)]}),
    "prompt-without-branch": ({"gates": [PROMPT]}, {"name": "trades", "terms": [shc(natural_gradient=True, margin=3)]}),
}


def scenario(name: str) -> tuple[Network, Objective]:
    """In float64, batch norm frozen; prototypes that one step has moved."""
    model_part, objective_part = SCENARIOS[name]
    recipe = Recipe.model_validate(
        {"name": "test", "data": {"name": "digits"}, "threat": {"eps": 0.1}, "objective": objective_part, "craft": CE}
        | {"model": {"arch": "small-cnn", "width": 0.125, **model_part}, "optim": {"lr": 0.1}, "schedule": {"epochs": 20}}
    )
    model = build(Architecture("small-cnn", 0.125, K, 1, 8, gates=recipe.model.gates), seed=1).double().eval()
    objective = build_objective(recipe)
    objective.setup(model, DataSet(*(Split(torch.empty(0), torch.empty(0), torch.empty(0)) for _ in range(2)), classes=()))  # type: ignore[arg-type]
    return model, objective.eval()


def example() -> Batch:
    """Some classes in one half alone."""
    images = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 2, 1, 3, 3, 2, 0, 3, 3, 2, 3])
    return Batch(images, labels, torch.arange(N) * 5 + 2)


def outcome(name: str, batch: Batch) -> dict[str, Tensor]:
    """Loss, its parts, the gradient by each weight, and the state after two steps without an optimiser."""
    model, objective = scenario(name)
    results: dict[str, Tensor] = {}
    for step in range(2):
        moment = MOMENT._replace(step=MOMENT.step + step)
        crafted = objective.craft(model, batch, moment)
        scored = objective.loss(model, batch, crafted, moment)
        results |= {f"step{step}.part.{key}": value.double() for key, value in scored.parts.items()} | {
            f"step{step}.loss": scored.total.detach()
        }
        named = {f"model.{key}": p for key, p in model.named_parameters()} | {
            f"objective.{key}": p for key, p in objective.named_parameters()
        }
        gradients = torch.autograd.grad(scored.total, list(named.values()), allow_unused=True)
        for key, gradient in zip(named, gradients, strict=True):
            results[f"step{step}.gradient.{key}"] = torch.zeros_like(named[key]) if gradient is None else gradient
        with torch.no_grad():
            objective.after_step(model, batch, scored, moment)
        results |= {f"step{step}.buffer.{key}": value.double().clone() for key, value in model.named_buffers()}
    return results


def probe_whole(rank: int) -> dict[str, Tensor]:
    """What whole and own make of rows that tell whose they are; and the gradient of losses that differ by process."""
    rows = torch.arange(3.0).add(10 * rank).requires_grad_(True)
    together = whole(rows)
    weights = torch.arange(6.0) + 100 * rank
    (gradient,) = torch.autograd.grad((together * weights).sum(), rows)
    integers = whole(torch.arange(2) + 10 * rank)
    square = torch.ones(2, 3).requires_grad_(True)
    columns = (torch.arange(12.0) + 100 * rank).view(3, 4).T  # a gradient that lies by columns
    (laid,) = torch.autograd.grad((whole(square) * columns).sum(), square)
    return {"laid": laid, "together": together.detach(), "gradient": gradient, "own": own(together.detach()), "integers": integers}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    part = slice(rank * N // PROCESSES, (rank + 1) * N // PROCESSES)
    found: dict[str, Any] = {"whole": probe_whole(rank), "processes": processes()}
    for name in SCENARIOS:
        try:
            found[name] = outcome(name, Batch(*(t[part] for t in example())))
        except Exception:  # the same in both processes, or the other one waits in vain and the test ends by its time limit
            found[name] = traceback.format_exc()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=work, args=(rank, str(folder))) for rank in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    try:
        assert [process.exitcode for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(PROCESSES)]


def test_a_gradient_may_lie_in_memory_as_it_likes(halves: list[dict[str, Any]]) -> None:
    total = 2 * torch.arange(12.0).view(3, 4).T + 100
    assert torch.equal(halves[0]["whole"]["laid"], total[:2])
    assert torch.equal(halves[1]["whole"]["laid"], total[2:])


def test_one_process_is_all_there_is() -> None:
    rows = torch.arange(3.0).requires_grad_(True)
    assert processes() == 1
    assert whole(rows) is rows
    assert own(rows) is rows


@pytest.mark.slow
def test_rows_come_in_the_order_of_ranks_and_gradients_go_home(halves: list[dict[str, Any]]) -> None:
    """A row's gradient is the sum over both processes' losses."""
    for rank, found in enumerate(halves):
        assert found["processes"] == 2
        assert found["whole"]["together"].tolist() == [0, 1, 2, 10, 11, 12]
        assert found["whole"]["integers"].tolist() == [0, 1, 10, 11]
        assert found["whole"]["own"].tolist() == [10 * rank, 10 * rank + 1, 10 * rank + 2]
        assert found["whole"]["gradient"].tolist() == [2 * (3 * rank + i) + 100 for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_as_one(name: str, halves: list[dict[str, Any]], one_thread: Callable[[], None]) -> None:
    """Losses and gradients averaged over processes, and the gates' state on each, in float64."""
    assert not [found[name] for found in halves if isinstance(found[name], str)]
    one = outcome(name, example())
    first, second = (found[name] for found in halves)
    assert one.keys() == first.keys() == second.keys()
    assert any(float(value.abs().max()) > 1e-3 for key, value in one.items() if "gradient" in key)
    for key, value in one.items():
        if ".buffer." in key:
            assert torch.equal(first[key], second[key]), f"{key} differs between processes"
            torch.testing.assert_close(first[key], value, rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
        else:
            # float32 shares (of matched pairs and the like) are exact here: they are multiples of 1 / 16
            torch.testing.assert_close((first[key] + second[key]) / 2, value, rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_the_halves_alone_would_not_train_so() -> None:
    """Without the other half the gradients are others, by far more than the 1e-9 above."""
    one = outcome("again", example())
    parts = [outcome("again", Batch(*(t[part] for t in example()))) for part in (slice(N // 2), slice(N // 2, N))]
    key = "step0.gradient.model.linear.weight"
    assert float(((parts[0][key] + parts[1][key]) / 2 - one[key]).abs().max()) > 1e-5
