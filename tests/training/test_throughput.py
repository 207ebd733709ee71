"""The benchmark of a training: real steps, counted floors, and arithmetic that adds up. No test here looks at how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from advcli.data.synthetic import synthetic
from advcli.errors import DataError, UsageError
from advcli.recipe import Recipe, load
from advcli.training import throughput
from advcli.training.probe import settle
from advcli.training.setup import Assembly, assemble
from advcli.training.throughput import How, Trainer

CPU = torch.device("cpu")
NARROW = ("model.width=0.125", "train.batch_size=8", "data.limit=64", "data.validation=8")


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak that is measured at once."""
    monkeypatch.setattr(throughput, "peak", lambda device, precision: 2e9 if precision == "bf16" else 1e9)
    monkeypatch.setattr(throughput, "_SYNTHETIC", 32)


def how(**changes: Any) -> How:
    return How(**{"rounds": 2, "seconds": 0.0, "made_up": False, "watch": lambda text: None, **changes})


def narrow(name: str, *overrides: str) -> Assembly:
    recipe = load(name, [*NARROW, *overrides])
    return assemble(recipe, CPU, synthetic(recipe.data, 64))


def test_everything_adds_up(tiny: Callable[..., Recipe]) -> None:
    said: list[str] = []
    recipe = tiny("train.precision=fp32", "craft.precision=fp32")
    found = throughput.run(recipe, CPU, how(watch=said.append))
    step, seconds = found["seconds"]["step"]["median"], found["seconds"]
    assert sum(seconds[phase] for phase in throughput.PHASES) == pytest.approx(step)
    assert all(seconds[phase] > 0 for phase in throughput.PHASES)
    assert found["images_per_second"] * step == pytest.approx(30)
    assert found["image_steps_per_second"] == pytest.approx(3 * found["images_per_second"])
    floor = found["floor"]
    assert (floor["F"], floor["craft_F"]) == (
        pytest.approx(6 + 3, abs=0.25),
        pytest.approx(6, rel=0.01),
    )  # the first layer is a large part of it
    work = floor["F"] * floor["gflop_forward"] * found["images_per_second"]
    assert found["goodput_gflops"] == pytest.approx(work)
    assert found["share_of_peak"] == pytest.approx(work * 1e9 / 1e9)  # of the peak above, which is 1 GFLOP/s
    assert found["estimate"]["training"] == pytest.approx(2 * 3 * step)
    assert found["estimate"]["total"] == found["estimate"]["training"] + found["estimate"]["measuring"]
    assert (found["steps"], found["rounds"], found["precision"]) == (1, 2, {"craft": "fp32", "train": "fp32"})
    assert json.loads(json.dumps(found)) == found
    assert "round 2 of 2: training" in said


def test_each_part_is_held_against_the_peak_of_its_own_precision(tiny: Callable[..., Recipe]) -> None:
    """bf16 has twice the peak here, so crafting may take half the time."""
    found = throughput.run(tiny("train.precision=fp32", "craft.precision=bf16"), CPU, how(rounds=1))
    floor, rate = found["floor"], found["floor"]["gflop_forward"] * found["images_per_second"]
    craft, rest = floor["craft_F"], floor["F"] - floor["craft_F"]
    assert found["share_of_peak"] == pytest.approx(rate * (craft / 2 + rest / 1))
    assert found["peak_gflops"] == {"bf16": 2.0, "fp32": 1.0}


FLOORS = [("standard", (), 0, 3), ("pgd-at", (), 20, 3), ("trades", (), 21, 6), ("mart", (), 20, 6), ("ancra", (), 40, 9)]
FLOORS.append(("pgd-at", ("objective.wrapper={name: awp, warmup: 10}",), 20, 6))  # which starts after ten epochs


@pytest.mark.parametrize(("name", "overrides", "craft", "train"), FLOORS, ids=[f"{n}{'+awp' * bool(o)}" for n, o, *_ in FLOORS])
def test_floors_are_those_of_the_methods(
    name: str, overrides: tuple[str, ...], craft: int, train: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "COUNTED", 4)
    floor = throughput.count(narrow(name, *overrides))
    assert floor.craft / floor.forward == pytest.approx(craft, rel=0.01)
    assert floor.train / floor.forward == pytest.approx(train, rel=0.02)


@pytest.mark.parametrize(
    ("name", "overrides", "steps"),
    [
        ("pgd-at", [], 10),
        ("trades", ["craft.steps=7"], 7),
        ("ancra", [], 20),
        ("ancra", ["objective.terms.0.negatives=hard"], 10),
        ("standard", [], 0),
    ],
)
def test_gradient_steps_of_an_image(name: str, overrides: list[str], steps: int) -> None:
    assert throughput.gradient_steps(load(name, overrides)) == steps


def test_measuring_leaves_the_objective_and_the_optimiser_as_they_were(tiny: Callable[..., Recipe]) -> None:
    parts = assemble(tiny(), CPU)
    trainer = Trainer(throughput.replace(parts, recipe=settle(parts).recipe))
    shares = throughput.split(parts, lambda: next(trainer.batches), trainer.advance, 2)
    assert set(shares) == set(throughput.PHASES)
    assert sum(shares.values()) == pytest.approx(1)
    assert "craft" not in vars(parts.objective)
    assert not parts.optimizer._optimizer_step_pre_hooks


def test_precision_is_chosen_on_the_first_weights(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: counting takes a step, and comes after."""
    seen: list[torch.Tensor] = []

    def probe(parts: Assembly) -> Any:
        seen.append(parts.model.linear.weight.detach().clone())
        return settle(parts)

    monkeypatch.setattr(throughput, "settle", probe)
    throughput.run(tiny(), CPU, how(rounds=1))
    assert torch.equal(seen[0], assemble(tiny(), CPU).model.linear.weight)


def test_the_average_of_weights_is_part_of_a_step(tiny: Callable[..., Recipe]) -> None:
    """Half of the first weights and half of those after one step; nothing is averaged where the recipe does not."""
    parts = assemble(tiny("train.ema=0.5"), CPU)
    trainer = Trainer(throughput.replace(parts, recipe=settle(parts).recipe))
    before = parts.model.linear.weight.detach().clone()
    trainer.run(1)
    after = parts.model.linear.weight.detach()
    assert not torch.equal(before, after)
    assert trainer.average is not None
    torch.testing.assert_close(trainer.average.linear.weight, (before + after) / 2)
    assert Trainer(assemble(tiny("train.precision=fp32", "craft.precision=fp32"), CPU)).average is None


def test_a_trainer_goes_on_through_epochs(tiny: Callable[..., Recipe]) -> None:
    """Three steps an epoch: the fourth and on come from another order of the images, and every step moves the weights."""
    parts = assemble(tiny(), CPU)
    trainer = Trainer(throughput.replace(parts, recipe=settle(parts).recipe))
    before = parts.model.linear.weight.detach().clone()
    assert torch.tensor(trainer.run(7)).isfinite()
    assert trainer.number == 3 + 7  # steps of the last of two epochs
    assert not torch.equal(before, parts.model.linear.weight)
    with pytest.raises(StopIteration):
        Trainer(trainer.parts, trainer.step, iter([next(trainer.batches)])).run(2)


def test_random_images_on_request_for_the_real_number_of_steps() -> None:
    recipe = load("pgd-at", ["model.width=0.125", "train.batch_size=4", "craft.steps=1", "schedule={name: one-cycle, epochs: 2}"])
    found = throughput.run(recipe, CPU, how(made_up=True, rounds=1))
    assert found["data"] == {"name": "cifar10", "synthetic": True}
    assert found["estimate"]["steps"] == 2 * (49_000 // 4)


def test_a_missing_data_set_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("ADVCLI_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        throughput.gathered(load("pgd-at", ["data.download=false"]), CPU, made_up=False)
    assert "--synthetic" in error.value.next
    with pytest.raises(UsageError, match="no known shape"):
        throughput.gathered(load("pgd-at", ["data.name=folder", "data.root=x"]), CPU, made_up=True)
    with pytest.raises(DataError) as error:  # for a folder nothing can stand in
        throughput.gathered(load("pgd-at", ["data.name=folder", f"data.root={tmp_path / 'x'}"]), CPU, made_up=False)
    assert "--synthetic" not in error.value.next


def test_a_round_is_as_long_as_asked() -> None:
    assert [how(seconds=3.0).steps(one) for one in (0.01, 1.0, 1.1, 50.0)] == [300, 3, 3, 1]
    assert how().steps(0.5) == 1


def test_measuring_after_epochs_is_counted_by_gradients(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 64 images takes 64 s by this clock: an image's 11 gradients 11 s, of 30 held out and 20 monitored, twice."""
    monkeypatch.setattr(throughput, "clocked", lambda go: (go(), 64.0)[1])
    found = throughput.estimate(assemble(tiny("select.metric=pgd-10"), CPU), 0.5, 90)
    assert found["measuring"] == 2 * 50 * 11 * 1.0
    assert found["training"] == 2 * 3 * 0.5
    assert throughput.estimate(assemble(tiny("select.every=2"), CPU), 0.5, 90)["measuring"] == 50 * 4 * 1.0
