"""The loop: what diverges is stopped before it is saved, the best epoch is the one that is kept, and the log tells what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from advcli.data import Batch, Moment
from advcli.errors import CheckpointError, NonFiniteError, UsageError
from advcli.models import Network
from advcli.objectives import Objective
from advcli.objectives.objective import Crafted, LossParts
from advcli.objectives.pgd_at import PgdAtObjective
from advcli.recipe import Recipe
from advcli.runs import checkpoint, log
from advcli.training import loop, schedule, session
from advcli.training.setup import Assembly, assemble
from advcli.training.step import Step

CPU = torch.device("cpu")


def assembled(recipe: Recipe) -> Assembly:
    return assemble(recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})}), CPU)


def train(recipe: Recipe, folder: Path, watcher: Any, *, resume: bool = False) -> loop.Outcome:
    folder.mkdir(exist_ok=True)
    return loop.train(assembled(recipe), folder, watcher, resume=resume)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path, "state" if path.name.startswith("state") else "model")[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class PoisonedGradient(torch.autograd.Function):
    """The identity, with NaN for a gradient: a loss that looks healthy and ruins the weights."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * torch.nan


def poison(patch: pytest.MonkeyPatch, step: int, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    real = PgdAtObjective.loss

    def loss(self: PgdAtObjective, model: Network, batch: Batch, crafted: Crafted, moment: Moment) -> LossParts:
        parts = real(self, model, batch, crafted, moment)
        return LossParts(spoil(parts.total), parts.parts) if moment.step == step else parts

    patch.setattr(PgdAtObjective, "loss", loss)


SPOILED = {
    "NaN": lambda total: total * torch.nan,
    "infinite": lambda total: total + torch.inf,
    "NaN gradient": PoisonedGradient.apply,
}


@pytest.mark.parametrize("save_every", ["0", "3600"])
@pytest.mark.parametrize("step", [1, 4, 5], ids=["first epoch", "middle of the second", "last of all"])
@pytest.mark.parametrize("how", SPOILED)
def test_divergence_stops_before_anything_spoilt_is_saved(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, how: str, step: int, save_every: str
) -> None:
    recipe, folder = tiny(f"train.save_every={save_every}"), tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, step, SPOILED[how])
        with pytest.raises(NonFiniteError, match="finite") as raised:
            train(recipe, folder, silent)
    assert raised.value.exit_code == 4
    assert str(folder) in raised.value.where
    for path in folder.glob("*.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in tensors(path).values() if value.is_floating_point()), path.name
    if step >= 3:  # the whole first epoch is safe; and where the cause is gone, the run goes on as if nothing had happened
        assert (folder / "model.safetensors").is_file()
    train(recipe, folder, silent, resume=True)
    train(recipe, tmp_path / "whole", silent)
    for name in ("model.safetensors", "last.safetensors"):
        assert equal(tensors(folder / name), tensors(tmp_path / "whole" / name))


def test_divergence_names_the_epoch_and_step_that_began_it(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 4, SPOILED["NaN"])
        with pytest.raises(NonFiniteError, match="in epoch 2, step 2"):
            train(tiny("train.save_every=3600"), tmp_path / "run", silent)


class Keeper:
    """Puts aside last.safetensors of every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kept = folder, []  # type: ignore[var-annotated]

    def started(self, done: int, total: int) -> None: ...

    def stepped(self, step: int, images: int) -> None: ...

    def noted(self, text: str) -> None: ...
    def measured(self, event: dict[str, Any]) -> None:
        self.kept.append(tensors(self.folder / "last.safetensors"))


# (metric, every, (robust, clean) of each epoch in which something is measured, epoch that must win)
SELECTIONS = [
    ("pgd-3", 1, [(0.1, 0.5), (0.3, 0.4), (0.2, 0.9), (0.2, 0.8)], 2),
    ("pgd-3", 1, [(0.3, 0.5), (0.3, 0.6), (0.3, 0.6), (0.2, 0.9)], 2),  # equal robust: the better clean; then the earlier
    ("pgd-3", 1, [(0.3, 0.5)] * 4, 1),
    ("pgd-3", 1, [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.1)], 4),
    ("clean", 1, [(0.3, 0.5), (0.1, 0.7), (0.9, 0.6), (0.9, 0.7)], 2),
    ("last", 1, [(0.9, 0.9), (0.1, 0.1), (0.1, 0.1), (0.0, 0.0)], 4),
    ("pgd-3", 2, [(0.4, 0.5), (0.4, 0.4)], 2),
    ("pgd-3", 3, [(0.1, 0.5), (0.4, 0.4)], 4),  # the last epoch is measured whatever `every` says
]


@pytest.mark.parametrize(("metric", "every", "script", "best"), SELECTIONS)
def test_the_best_epoch_is_kept(
    tmp_path: Path,
    tiny: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    every: int,
    script: Sequence[tuple[float, float]],
    best: int,
) -> None:
    answers = iter(script)

    def measure(model: Network, split: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        robust, clean = next(answers)
        return {"n": len(split), "clean": clean, "robust": robust}

    monkeypatch.setattr(loop, "measure", measure)
    recipe = tiny("schedule.epochs=4", f"select.metric={metric}", f"select.every={every}", "select.train_images=0", "train.save_every=60")
    folder = tmp_path / "run"
    keeper = Keeper(folder)
    outcome = train(recipe, folder, keeper)
    assert next(answers, None) is None
    assert outcome.best_epoch == best
    assert equal(tensors(folder / "model.safetensors"), keeper.kept[best - 1])
    assert not equal(keeper.kept[best - 1], keeper.kept[best - 2])
    header = checkpoint.load_network(folder / "model.safetensors").header
    assert header["epoch"] == best
    events = list(log.read(folder / "metrics.jsonl"))
    assert [event["epoch"] for event in events if "validation" in event] == sorted({*range(every, 5, every), 4})
    assert [event["epoch"] for event in events if event.get("selected")][-1] == best
    assert outcome.measured == events[best - 1]
    assert header["selection"]["measured"] == events[best - 1]["validation"]


def test_the_log_tells_every_epoch(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    recipe = tiny("schedule.epochs=3", "objective.name=trades", "craft.loss=kl", "train.save_every=60")
    train(recipe, tmp_path / "run", silent)
    events = list(log.read(tmp_path / "run" / "metrics.jsonl"))
    assert [(event["event"], event["epoch"], event["step"]) for event in events] == [("epoch", 1, 3), ("epoch", 2, 6), ("epoch", 3, 9)]
    for event in events:
        assert event["lr"] == pytest.approx(0.1 * schedule.factor(recipe.schedule, event["step"] - 1, 3), rel=1e-12)
        assert event["loss"] == pytest.approx(event["ce"] + 6 * event["kl"], rel=1e-5)
        assert (event["validation"]["n"], event["train"]["n"]) == (30, 20)
        assert event["validation"]["attack"] == event["train"]["attack"] == "pgd-3"
        assert event["validation"]["robust"] <= event["validation"]["clean"]


def test_the_logged_loss_is_the_mean_over_the_steps(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = Step.__call__

    def step(*args: Any) -> dict[str, torch.Tensor]:
        scalars = real(*args)
        seen.append(float(scalars["loss"]))
        return scalars

    monkeypatch.setattr(Step, "__call__", step)
    train(tiny("train.save_every=60"), tmp_path / "run", silent)
    losses = [event["loss"] for event in log.read(tmp_path / "run" / "metrics.jsonl")]
    assert losses == [pytest.approx(sum(seen[:3]) / 3, rel=1e-12), pytest.approx(sum(seen[3:]) / 3, rel=1e-12)]


def test_the_averaged_weights_are_the_ones_that_are_kept(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("train.ema=0.75", "select.metric=last", "train.save_every=60")
    parts, folder = assembled(recipe), tmp_path / "run"
    folder.mkdir()
    mean = {name: value.detach().clone().double() for name, value in parts.model.named_parameters()}

    class Average:
        def started(self, done: int, total: int) -> None: ...

        def stepped(self, step: int, images: int) -> None:
            for name, value in parts.model.named_parameters():
                mean[name] = 0.75 * mean[name] + 0.25 * value.detach().double()

        def noted(self, text: str) -> None: ...
        def measured(self, event: dict[str, Any]) -> None: ...

    loop.train(parts, folder, Average(), resume=False)
    kept, raw = tensors(folder / "model.safetensors"), parts.model.state_dict()
    assert equal(kept, tensors(folder / "last.safetensors"))
    for name, value in mean.items():
        torch.testing.assert_close(kept[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(kept[name], raw[name])
    statistics = [name for name in raw if name not in mean]
    assert statistics
    assert all(torch.equal(kept[name], raw[name]) for name in statistics)


@pytest.mark.parametrize(
    ("overrides", "forwards", "backwards"),
    [
        (["craft.steps=3"], 4, 4),  # 3 to craft, 1 to score
        (["craft.steps=7"], 8, 8),
        (["objective.name=trades", "craft.loss=kl", "craft.steps=3"], 1 + 3 + 2, 3 + 2),  # the clean reference needs no backward
        (["objective.name=mart", "craft.steps=3"], 3 + 2, 3 + 2),
        (["objective.wrapper.name=awp", "craft.steps=3"], 3 + 1 + 1, 3 + 1 + 1),  # the probe
        (["objective={name: standard}", "~craft"], 1, 1),
    ],
)
def test_a_dry_run_counts_and_writes_nothing(
    tmp_path: Path, tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, overrides: list[str], forwards: int, backwards: int
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = session.dry_run(tiny(*overrides), device="cpu")
    assert list(tmp_path.iterdir()) == []
    assert (plan.forwards, plan.backwards) == (forwards, backwards)
    assert (plan.train_images, plan.validation_images, plan.steps_per_epoch, plan.steps) == (90, 30, 3, 6)
    # width 1/8: convolutions 1-4-8-16 of 3x3 on 8x8, 4x4 and 2x2, and a linear layer 16-10; two operations a product
    assert plan.forward_gflops * 1e9 == pytest.approx(2 * (9 * (1 * 4 * 64 + 4 * 8 * 16 + 8 * 16 * 4) + 16 * 10))
    assert plan.parameters == 9 * (4 + 32 + 128) + 2 * (4 + 8 + 16) + 16 * 10 + 10
    assert plan.recipe.train.precision == "fp32"


IMPOSSIBLE: dict[str, tuple[list[str], type[Exception], str]] = {
    "batch": (["train.batch_size=91"], UsageError, "only 90 training images"),
    "network": (["model.arch=vgg16-bn"], UsageError, "shrinks images"),
    "normalisation": (["model.mean=[0.5, 0.5]", "model.std=[1, 1]"], UsageError, "2 values for images with 1 channels"),
    "weights": (["model.init=nowhere.safetensors"], CheckpointError, "no such model"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("resume", [False, True])
def test_what_cannot_start_leaves_nothing_behind(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch, name: str, resume: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, error, message = IMPOSSIBLE[name]
    with pytest.raises(error, match=message):
        session.run(tiny(*overrides), silent, out=None, resume=resume, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_all_images_is_taken(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    outcome = session.run(tiny("train.batch_size=90"), silent, out=tmp_path / "run", resume=False, device="cpu")
    assert outcome.measured["step"] == outcome.best_epoch


def test_training_starts_from_the_weights_that_are_named(tiny: Callable[..., Recipe], trained_run: Path) -> None:
    source = trained_run / "model.safetensors"
    parts = assembled(tiny("model.width=0.5", f"model.init={source}"))
    assert equal(parts.model.state_dict(), tensors(source))


@pytest.mark.parametrize(
    ("command", "override", "other"),
    [
        ("pretrain", (), "adv-train"),
        ("adv-train", ("objective={name: standard}", "~craft"), "pretrain"),
        ("finetune", ("objective={name: standard}", "~craft"), "pretrain"),
        ("adv-train", ("objective={name: arrest}",), "finetune"),
        ("pretrain", ("objective={name: arrest}",), "finetune"),
    ],
)
def test_a_command_takes_its_own_objectives(tiny: Callable[..., Recipe], command: str, override: Sequence[str], other: str) -> None:
    recipe = tiny(*override)
    session.check_command(recipe, other)
    if recipe.objective.name == "pgd-at":
        session.check_command(recipe, "finetune")
    with pytest.raises(UsageError) as raised:
        session.check_command(recipe, command)
    assert f"advcli {other}" in raised.value.next


def test_an_objective_that_moves_state_has_it_saved(
    tmp_path: Path, tiny: Callable[..., Recipe], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer of an objective survives a resume, whatever the objective is."""

    class Counting(PgdAtObjective):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def after_step(self, model: Network, batch: Batch, scored: LossParts, moment: Moment) -> None:
            self.count += len(batch.labels)

    from advcli.objectives import build

    monkeypatch.setattr(build, "PgdAtObjective", Counting)
    recipe = tiny()
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 4, SPOILED["NaN"])
        with pytest.raises(NonFiniteError):
            train(recipe, tmp_path / "run", silent)
    parts = assembled(recipe)
    objective: Objective = parts.objective
    loop.train(parts, tmp_path / "run", silent, resume=True)
    assert int(objective.get_buffer("count")) == 6 * 30
