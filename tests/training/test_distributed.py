"""Two processes train as one: the same weights after each step, the same numbers, and nobody waits for one who is gone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import TINY, Silent
from together import LIMIT, Launched, free_port, together
from torch import Tensor, nn

from advcli.attacks import Threat
from advcli.data import Batch, Moment, load_test, to_float
from advcli.errors import CheckFailedError, NonFiniteError
from advcli.gates.whole import average_, own
from advcli.models import Architecture, build
from advcli.models.modes import moving_statistics
from advcli.objectives.objective import LossParts
from advcli.objectives.pgd_at import PgdAtObjective
from advcli.recipe import Recipe, find, load
from advcli.recipe.schema import Data
from advcli.runs import log
from advcli.training import distributed, session
from advcli.training.monitor import measure
from advcli.training.setup import Assembly, assemble
from advcli.training.step import Step

CPU = torch.device("cpu")
SMALL = (
    "data={name: digits, validation: 0, limit: 64}",
    "threat.eps=0.15",
    "model.arch=small-cnn",
    "model.width=0.125",
    "schedule={name: one-cycle, epochs: 20}",
    "select.metric=last",
    "train.precision=fp32",
    "train.batch_size=16",
)
CRAFT = ("craft.step_size=0.0375", "craft.steps=2")
AWP = "objective.wrapper={name: awp, gamma: 0.01, warmup: 0}"
METHODS: dict[str, tuple[str, ...]] = {
    "standard": ("standard",),
    "pgd-at": ("pgd-at", *CRAFT),
    "trades": ("trades", *CRAFT),
    "mart": ("mart", *CRAFT),
    "arrest": ("arrest", *CRAFT),
    "ancra": ("ancra", *CRAFT, "model.gates.0.at=[features]"),
    "again": ("again", *CRAFT, "objective.ramp.epochs=12"),
    "stayfocused": ("stayfocused", *CRAFT, "objective.terms.0.patch=2"),
    "ancra, soft": ("ancra", *CRAFT, "model.gates.0.at=[features]", "objective.terms.0.negatives=soft"),
    "ancra, hard": ("ancra", *CRAFT, "model.gates.0.at=[features]", "objective.terms.0.negatives=hard"),
    "stayfocused, natural": ("stayfocused", *CRAFT, "objective.terms.0.patch=2", "objective.terms.1.natural_gradient=true"),
    "cas": ("cas", *CRAFT, "model.gates.0.at=[features]"),
    "pgd-at+awp": ("pgd-at", *CRAFT, AWP),
    "trades+awp": ("trades", *CRAFT, AWP),
    "again+awp": ("again", *CRAFT, "objective.ramp.epochs=12", AWP),
}


def assembled(method: str, *overrides: str) -> Assembly:
    """In float64."""
    parts = assemble(load(METHODS[method][0], [*SMALL, *METHODS[method][1:], *overrides]), CPU)
    parts.model.double()
    parts.objective.double()
    return parts


def part(parts: Assembly, rows: slice | None) -> Batch:
    """This process's part of a batch, or rows of it."""
    train = parts.data.train
    batch = Batch(to_float(train.images[:16]).double(), train.labels[:16], train.index[:16])
    return Batch(*(own(column) if rows is None else column[rows] for column in batch))


def stepped(method: str, rows: slice | None = None) -> dict[str, Tensor]:
    """All weights, buffers and scalars after two steps of this process's part of the batch, or of rows."""
    parts = assembled(method)
    for module in (parts.model, parts.objective):
        module.eval()
    step, batch = Step(parts.model, parts.objective, parts.optimizer), part(parts, rows)
    results: dict[str, Tensor] = {}
    for number in range(2):
        scalars = step(batch, Moment(seed=3, epoch=12, step=number, progress=0.5))
        results |= {f"{number}.{name}": value for name, value in scalars.items()}
    for module in (parts.model, parts.objective):
        results |= {f"{type(module).__name__}.{key}": value.clone() for key, value in module.state_dict().items()}
    return results


def one_step(rows: slice | None = None) -> list[Tensor]:
    """What batch norm has learned from one step of this process's part of the batch, or of rows."""
    parts = assembled("pgd-at")
    parts.model.train()
    Step(parts.model, parts.objective, parts.optimizer)(part(parts, rows), Moment(seed=3, epoch=12, step=0, progress=0.5))
    return moving_statistics(parts.model)


def all_methods() -> dict[str, dict[str, Tensor]]:
    return {name: stepped(name) for name in METHODS}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return together(all_methods, tmp_path_factory.mktemp("halves"))


def other_files() -> dict[str, str]:
    """What a process says that trains on other images than the other."""
    real = session.assemble

    def other(recipe: Recipe, device: torch.device) -> Assembly:
        parts = real(recipe, device)
        parts.data.train.images[0] += distributed.rank()
        return parts

    session.assemble = other  # type: ignore[attr-defined]  # in a process of its own
    try:
        session.run(load("quickstart", [*TINY]), Silent(), out=None, resume=False, device="cpu")
    except CheckFailedError as error:
        return {"said": error.what}
    return {"said": ""}


@pytest.mark.slow
def test_other_data_on_another_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many batches as the first one has, so that nothing else would tell."""
    monkeypatch.chdir(tmp_path)
    said = together(other_files, tmp_path)
    assert all("the data are not the same everywhere" in answer["said"] for answer in said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one(method: str, halves: list[dict[str, dict[str, Tensor]]]) -> None:
    """Batch norm frozen: weights, momentum's effect in the second step, the state of gates and objectives, and what is logged."""
    one, (first, second) = stepped(method), (found[method] for found in halves)
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"{key} differs between processes"
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_a_part_of_the_batch_alone_steps_elsewhere(halves: list[dict[str, dict[str, Tensor]]]) -> None:
    other = stepped("pgd-at", rows=slice(8))
    assert max(float((other[key] - value).abs().max()) for key, value in halves[0]["pgd-at"].items()) > 1e-3


def mixed() -> dict[str, Any]:
    """What does not need a test's whole program each."""
    rank = distributed.rank()
    tensors = [torch.full((2, 3), float(rank + 1)), torch.tensor(4.0 * rank), torch.arange(3.0).view(3, 1).expand(3, 2).clone()]
    average_(tensors)
    order: list[int] = []
    vote = distributed.StopVote(lambda: rank == 1 and len(order) == 1, CPU)
    for _ in range(3):
        average_(vote.cast())
        order.append(int(vote.passed()))
    same, other = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.ones_(same.weight), nn.init.ones_(same.bias), nn.init.constant_(other.weight, rank)
    distributed.check_equal([same])
    try:
        distributed.check_equal([same, other])
        refused = ""
    except CheckFailedError as error:
        refused = str(error)
    seen: list[str] = []
    distributed.in_turn(lambda: seen.append("turn"))
    return {
        "average": tensors,
        "vote": order,
        "refused": refused,
        "lead": distributed.lead(lambda: f"of {rank}"),
        "gathered": distributed.gathered(rank * 10),
        "turn": seen,
        "leads": distributed.leads(),
        "statistics": one_step(),
        "measured": measurements(),
    }


def measurements() -> list[dict[str, float]]:
    """Of a gated network with values of its own, in three chunks, the last one smaller, and in one."""
    recipe = load("again", [*SMALL, *METHODS["again"][1:]])
    network = build(Architecture("small-cnn", 0.25, 10, 1, 8, gates=recipe.model.gates), seed=2)
    images = load_test(Data(name="digits"))[0]
    parts = (images.take(torch.arange(n)) for n in (257, 33))

    def observe(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"logit": model(batch.images)[:, 0]}

    settings: dict[str, Any] = {"steps": 3, "seed": 1, "stop": lambda: False, "aux_weight": 1.0, "observe": observe}
    return [measure(network, part, Threat("linf", 0.02), **settings) for part in parts]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(mixed, tmp_path_factory.mktemp("pair"))


@pytest.mark.slow
def test_averages_are_in_place_and_the_same_everywhere(pair: list[dict[str, Any]]) -> None:
    for found in pair:
        assert torch.equal(found["average"][0], torch.full((2, 3), 1.5))
        assert float(found["average"][1]) == 2.0
        assert torch.equal(found["average"][2], torch.arange(3.0).view(3, 1).expand(3, 2))


@pytest.mark.slow
def test_one_vote_stops_everybody_in_the_same_step(pair: list[dict[str, Any]]) -> None:
    assert [found["vote"] for found in pair] == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.slow
def test_the_first_process_leads_and_all_hear(pair: list[dict[str, Any]]) -> None:
    assert [found["leads"] for found in pair] == [True, False]
    for found in pair:
        assert found["lead"] == "of 0"
        assert found["gathered"] == [0, 10]
        assert found["turn"] == ["turn"]
        assert "other weights than process 0: 1 (first: weight)" in found["refused"]


@pytest.mark.slow
def test_batch_norm_learns_the_mean_of_what_the_processes_saw(pair: list[dict[str, Any]]) -> None:
    alone = [one_step(rows) for rows in (slice(8), slice(8, 16))]
    assert len(alone[0]) >= 4
    assert float((alone[0][1] - alone[1][1]).abs().max()) > 1e-4
    for first, second, *parts in zip(*(found["statistics"] for found in pair), *alone, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, sum(parts) / 2, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_shared_measurement_has_the_bits_of_one_process(pair: list[dict[str, Any]]) -> None:
    alone = measurements()
    assert 0 < alone[0]["robust"] < 1
    assert {"aux0", "agree0", "logit"} < set(alone[0])
    assert [found["measured"] for found in pair] == [alone, alone]


def diverging(folder: str) -> Any:
    """The error where the loss is no number in one process alone."""
    real = PgdAtObjective.loss

    def loss(self: Any, model: Any, batch: Batch, crafted: Any, moment: Moment) -> LossParts:
        scored = real(self, model, batch, crafted, moment)
        bad = torch.nan if moment.step == 4 and distributed.rank() == 1 else 1.0
        return LossParts(scored.total * bad, scored.parts)

    PgdAtObjective.loss = loss  # type: ignore[method-assign]
    try:
        session.run(load("quickstart", [*TINY, "train.save_every=3600"]), Silent(), out=Path(folder) / "run", resume=False, device="cpu")
    except NonFiniteError as error:
        return error
    return "nothing was raised"


@pytest.mark.slow
def test_a_loss_that_is_no_number_anywhere_ends_all(tmp_path: Path) -> None:
    for error in together(diverging, tmp_path, str(tmp_path)):
        assert "epoch 2, step 2" in str(error)


# Whole programs, under torchrun.

TRAIN = ("adv-train", "quickstart", *TINY)
PANEL = "╭"


def events(folder: Path) -> list[int]:
    return [event["epoch"] for event in log.read(folder / "metrics.jsonl")]


def finished(cwd: Path, *arguments: str, **settings: Any) -> tuple[str, str]:
    job = Launched(cwd, *arguments, **settings)
    assert job.finish() == 0, job.shown()
    return job.shown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("optim.lrr=1",), "did you mean lr?"),
        (("--out=taken",), "nothing is overwritten"),
        (("train.batch_size=25",), "train.batch_size=26"),
        (("--device=cuda:0",), "--device cuda"),
        (("data.name=folder", "data.root=nowhere"), "nowhere"),
    ],
)
def test_an_error_is_told_once_and_ends_all(tmp_path: Path, overrides: tuple[str, ...], says: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    began = time.monotonic()
    job = Launched(tmp_path, *TRAIN, *overrides)
    assert job.finish() != 0
    assert time.monotonic() - began < LIMIT
    out, err = job.shown()
    assert (out + err).count(PANEL) == 1, out + err
    assert says in out + err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_only_the_first_runs_what_is_not_shared(tmp_path: Path) -> None:
    out, _ = finished(tmp_path, "recipe", "copy", "quickstart", "mine.yaml")
    assert out.count("mine.yaml") == 1


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_one_process_goes_on(tmp_path: Path, tiny: Callable[..., Recipe], silent: Any) -> None:
    run = tmp_path / "run"
    job = Launched(tmp_path, *TRAIN, "schedule.epochs=40", "--out=run")
    job.wait_for(run / "model.safetensors")
    os.kill(job.workers()[1], signal.SIGKILL)
    began = time.monotonic()
    assert job.finish() != 0
    assert time.monotonic() - began < 60
    out, err = job.shown()
    assert (out + err).count(PANEL) == 1, out + err
    assert "another process of this work has gone" in err
    assert "--resume" in err
    assert "SIGKILL" in err
    before = len(events(run))
    session.run(tiny("schedule.epochs=40"), silent, out=run, resume=True, device="cpu")
    assert events(run) == list(range(1, 41))
    counts = [row["processes"] for row in log.read(run / "timing.jsonl")]
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {2, 1}
    assert counts.count(2) <= before + 1


@pytest.mark.slow
def test_a_stop_of_one_process_is_resumed_to_the_bytes_of_an_unbroken_run(tmp_path: Path) -> None:
    train = (*TRAIN, "schedule.epochs=30", "train.ema=0.8")
    job = Launched(tmp_path, *train, "--out=cut")
    job.wait_for(tmp_path / "cut" / "model.safetensors")
    os.kill(job.workers()[1], signal.SIGTERM)
    assert job.finish() != 0
    out, err = job.shown()
    assert (out + err).count(PANEL) == 1, out + err
    assert "stopped on request; the state is saved" in err
    assert 0 < len(events(tmp_path / "cut")) < 30
    out, _ = finished(tmp_path, *train, "--out=cut", "--resume", "--json")
    assert json.loads(out)["epochs"] == 30
    finished(tmp_path, *train, "--out=whole")
    for name in ("model.safetensors", "last.safetensors", "metrics.jsonl", "recipe.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def trained_on(folder: str) -> list[list[int]]:
    """The names of the images in each step of a run."""
    seen: list[list[int]] = []
    real = Step.__call__

    def spied(self: Step, batch: Batch, moment: Moment, carried: Any = ()) -> dict[str, Tensor]:
        seen.append(batch.index.tolist())
        return real(self, batch, moment, carried)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", spied)
        session.run(load("quickstart", TINY), Silent(), out=Path(folder), resume=False, device="cpu")
    return seen


@pytest.mark.slow
def test_processes_train_on_halves_of_the_batches_of_one(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    whole = trained_on(str(tmp_path / "one"))
    first, second = together(trained_on, tmp_path / "answers", str(tmp_path / "two"))
    assert len(whole) == 6
    assert [len(names) for names in first] == [15] * 6
    assert [a + b for a, b in zip(first, second, strict=True)] == whole


class Killed(BaseException): ...


class Killer(Silent):
    """Ends a run after its second epoch."""

    def measured(self, event: dict[str, Any]) -> None:
        if event["epoch"] == 2:
            raise Killed


def resumed(folder: str) -> list[int]:
    session.run(load("quickstart", [*TINY, "schedule.epochs=4"]), Silent(), out=Path(folder), resume=True, device="cpu")
    return [row["processes"] for row in log.read(Path(folder) / "timing.jsonl")]


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(Killed):
        session.run(tiny("schedule.epochs=4"), Killer(), out=tmp_path / "run", resume=False, device="cpu")
    (tmp_path / "answers").mkdir()
    assert together(resumed, tmp_path / "answers", str(tmp_path / "run")) == [[1, 1, 2, 2]] * 2
    assert events(tmp_path / "run") == [1, 2, 3, 4]


def two_nodes() -> tuple[str, ...]:
    meeting = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    return ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test", "--local-addr=127.0.0.1", meeting)


@pytest.mark.slow
def test_two_machines_meet_and_end_together(tmp_path: Path) -> None:
    """Two rendezvous nodes; then one of them loses its process, and both end within a minute."""
    train, options = (*TRAIN, "schedule.epochs=2000", "--out=run"), two_nodes()
    jobs = [Launched(tmp_path, *train, options=options, name=name) for name in ("first", "second")]
    jobs[0].wait_for(tmp_path / "run" / "timing.jsonl")
    os.kill(jobs[1].workers()[0], signal.SIGKILL)
    began = time.monotonic()
    assert all(job.finish() != 0 for job in jobs)
    assert time.monotonic() - began < 60
    shown = "".join("".join(job.shown()) for job in jobs)
    assert shown.count(PANEL) == 1, shown
    assert "another process of this work has gone" in shown
    assert next(row["processes"] for row in log.read(tmp_path / "run" / "timing.jsonl")) == 2


@pytest.mark.slow
def test_what_one_machine_lacks_is_told_on_both(tmp_path: Path) -> None:
    """The first one waits for nobody who has failed before they met."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "mine.yaml").write_text(find("quickstart").read_text())
    train, options = ("adv-train", "mine.yaml", *TINY, "schedule.epochs=2000"), two_nodes()
    jobs = [Launched(tmp_path / name, *train, options=options) for name in ("first", "second")]
    began = time.monotonic()
    assert all(job.finish() != 0 for job in jobs)
    assert time.monotonic() - began < 60
    for job in jobs:
        out, err = job.shown()
        assert (out + err).count(PANEL) == 1, out + err
        assert "mine.yaml" in err, err
    assert "another process of this work has gone" in jobs[0].shown()[1]
    assert not (tmp_path / "first" / "runs").exists()
