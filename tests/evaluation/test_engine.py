"""The engine: what it reports can be recomputed from the ledger, and a kill changes nothing in it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lies
import numpy as np
import pytest
import torch
from torch import Tensor

from advcli.attacks import Found, Surrogate, Threat
from advcli.attacks.pool import PooledAttack, stream
from advcli.attacks.state import SPARING
from advcli.data import Split, load_test, to_float
from advcli.errors import AdvcliError, CheckpointError, InterruptedRunError, ResumeError, UsageError
from advcli.evaluation import engine, suites
from advcli.evaluation import run as running
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, pick
from advcli.evaluation.session import Options, run
from advcli.measures import wilson
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network, write_network
from advcli.runs.ledger import Arrays, Ledger

CPU = torch.device("cpu")
KEYS = {
    *("checkpoint", "threat", "suite", "protocol", "n", "clean", "attacks", "robust", "ci", "borderline", "seconds"),
    *("forwards", "backwards", "flags", "verdict", "reasons", "worst"),
    *("per_class", "worst_class", "identity", "data", "head", "gated", "split", "notes"),
}


def attack(checkpoint: Path, silent: Any, **options: Any) -> tuple[Path, dict[str, Any]]:
    return run(Options(checkpoint, **{"suite": "quick", "n": 40, "device": "cpu", **options}), silent)


def ledger_of(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    return Ledger(folder / "ledger").read()


def receipts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("report.json", "ledger/ledger.safetensors", "identity.json")}


@pytest.fixture(scope="module")
def evaluated(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """(checkpoint, evaluation folder, report) of quick on 40 images; read only."""
    path = tmp_path_factory.mktemp("evaluated") / "model.safetensors"
    shutil.copyfile(trained_run / "model.safetensors", path)
    folder, report = attack(path, _Silent(), batch_size=16)
    return path, folder, report


class _Silent:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def test_the_report_holds_what_is_documented(evaluated: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, report = evaluated
    assert report.keys() == KEYS
    assert report["checkpoint"] == str(path)
    assert report["threat"] == {"norm": "linf", "eps": "0.15", "bounds": [0.0, 1.0]}
    assert (report["suite"], report["n"], report["verdict"]) == ("quick", 40, "upper bound")
    assert {name: row["on"] for name, row in report["attacks"].items()} == {"fgsm": "all", "pgd-20": "all", "cw-30": "all"}
    assert folder == path.parent / "evals" / f"quick-{report['identity'][:8]}"
    stored = json.loads((folder / "report.json").read_text())
    assert stored == {key: value for key, value in report.items() if key != "seconds"}  # the clock is kept apart
    assert report["seconds"] == json.loads((folder / "timing.json").read_text())["seconds"]


def test_every_number_follows_from_the_ledger(evaluated: tuple[Path, Path, dict[str, Any]]) -> None:
    _, folder, report = evaluated
    arrays, header = ledger_of(folder)
    correct = arrays["clean_margin"] < -header["bound"]
    broken = {name: arrays[f"broken.{name}"] for name in report["attacks"]}
    assert report["clean"] == correct.mean()
    for name, column in broken.items():
        assert report["attacks"][name]["accuracy"] == (correct & ~column).mean()
        assert np.array_equal(column, arrays[f"steps.{name}"] >= 0)
    robust = correct & ~np.logical_or.reduce(list(broken.values()))
    assert 0 < robust.sum() < correct.sum()
    assert report["robust"] == robust.mean()
    assert report["robust"] <= min(row["accuracy"] for row in report["attacks"].values())
    assert report["ci"] == list(wilson(int(robust.sum()), 40))
    for name, row in report["per_class"].items():
        own = arrays["label"] == int(name)
        assert row == {"n": int(own.sum()), "clean": correct[own].mean(), "robust": robust[own].mean()}
    assert report["per_class"][report["worst_class"]]["robust"] == min(row["robust"] for row in report["per_class"].values())
    order = list(broken)
    first = [next((k for k, name in enumerate(order) if broken[name][i]), -1) for i in range(40)]
    assert arrays["found_by"].tolist() == first


def test_the_ledger_is_sorted_and_names_the_images(evaluated: tuple[Path, Path, dict[str, Any]]) -> None:
    arrays, _ = ledger_of(evaluated[1])
    split, _ = load_test(Data(name="digits"))
    assert (np.diff(arrays["index"]) > 0).all()
    assert (np.diff(arrays["adversarial_index"]) > 0).all()
    assert np.array_equal(arrays["label"], split.labels.numpy()[arrays["index"]])
    assert np.array_equal(arrays["adversarial_index"], arrays["index"][arrays["found_by"] >= 0])


def test_stored_examples_are_allowed_and_fool_a_fresh_network(evaluated: tuple[Path, Path, dict[str, Any]]) -> None:
    path, folder, _ = evaluated
    arrays, header = ledger_of(folder)
    split, _ = load_test(Data(name="digits"))
    rows = torch.from_numpy(arrays["adversarial_index"])
    x_adv, x, y = torch.from_numpy(arrays["adversarial"]), to_float(split.images[rows]), split.labels[rows]
    assert len(x_adv) > 3
    assert x_adv.dtype == torch.float32
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    distance = (x_adv.double() - x.double()).abs().flatten(1).amax(1)
    assert float(distance.max()) <= 0.15 + 2**-24  # half an ulp of a float32 in [0, 1], and that of eps
    assert float(distance.min()) > 0
    with torch.no_grad():
        logits = load_network(path).network(x_adv)
        clean = load_network(path).network(x)
    others = logits.masked_fill(torch.nn.functional.one_hot(y, 10).bool(), -torch.inf).amax(1)
    margins = others - logits.gather(1, y[:, None])[:, 0]
    assert bool((margins >= -2 * header["bound"]).all())
    assert bool((clean.argmax(1) == y).all())
    assert header["bound"] < 1e-4


def test_a_second_call_reports_the_same_without_running(checkpoint: Path, silent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = attack(checkpoint, silent, n=12)
    monkeypatch.setattr(engine, "Run", lambda *args: pytest.fail("it ran again"))
    assert attack(checkpoint, silent, n=12) == first
    assert attack(checkpoint, silent, n=12, resume=True) == first


def test_fresh_runs_have_equal_bytes(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    a, _ = attack(checkpoint, silent, out=tmp_path / "a", batch_size=16)
    b, _ = attack(checkpoint, silent, out=tmp_path / "b", batch_size=16)
    assert receipts(a) == receipts(b)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("shard", [0, 1, 4])
def test_a_kill_at_a_shard_changes_nothing(checkpoint: Path, silent: Any, tmp_path: Path, moment: str, shard: int) -> None:
    whole, _ = attack(checkpoint, silent, out=tmp_path / "whole", batch_size=16)
    real = Ledger.write_shard

    def write(self: Ledger, number: int, arrays: Arrays, header: dict[str, Any]) -> None:
        if moment == "after":
            real(self, number, arrays, header)
        if number == shard:
            raise Killed
        real(self, number, arrays, header)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "write_shard", write)
        with pytest.raises(Killed):
            attack(checkpoint, silent, out=tmp_path / "cut", batch_size=16)
    assert len(Ledger(tmp_path / "cut" / "ledger").shards()) == shard + (moment == "after")
    if shard or moment == "after":
        with pytest.raises(UsageError, match="begun and not finished") as raised:
            attack(checkpoint, silent, out=tmp_path / "cut", batch_size=16)
        assert "--resume" in raised.value.next
    seen: list[tuple[int, int]] = []

    class Watcher(_Silent):
        def started(self, done: int, total: int) -> None:
            seen.append((done, total))

    ledger = Ledger(tmp_path / "cut" / "ledger")
    stored = sum(len(ledger.read_shard(number)[0]["index"]) for number in ledger.shards())
    attack(checkpoint, Watcher(), out=tmp_path / "cut", batch_size=16, resume=True)
    assert seen[0][0] == stored
    assert receipts(tmp_path / "cut") == receipts(whole)
    assert sorted(path.name for path in (tmp_path / "cut" / "ledger").iterdir()) == ["ledger.safetensors"]


@pytest.mark.parametrize("call", [1, 4, 40])
def test_ctrl_c_keeps_every_finished_image(checkpoint: Path, silent: Any, tmp_path: Path, call: int) -> None:
    calls: list[int] = []

    class Interrupting(_Silent):
        def advanced(self, done: int, spent: int, left: int) -> None:
            calls.append(done)
            if len(calls) == call:
                raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError) as raised:
        attack(checkpoint, Interrupting(), out=tmp_path / "cut", batch_size=16)
    assert raised.value.exit_code == 130
    ledger = Ledger(tmp_path / "cut" / "ledger")
    rows = [ledger.read_shard(number) for number in ledger.shards()]
    last = [len(arrays["index"]) for arrays, header in rows if header["entry"] == rows[-1][1]["entry"]]
    assert sum(last) >= calls[-1]
    attack(checkpoint, silent, out=tmp_path / "cut", batch_size=16, resume=True)
    attack(checkpoint, silent, out=tmp_path / "whole", batch_size=16)
    assert receipts(tmp_path / "cut") == receipts(tmp_path / "whole")


def strong(checkpoint: Path, silent: Any, out: Path, **options: Any) -> tuple[Arrays, dict[str, Any]]:
    """AutoAttack with 20 of its 100 steps and 100 of its 5,000 queries: the same code in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name, less in (("Apgd", {"steps": 20}), ("Fab", {"steps": 20}), ("Square", {"queries": 100})):
            patch.setattr(suites, name, partial(getattr(suites, name), **less))
        folder, report = attack(checkpoint, silent, suite="aa", eps="0.25", out=out, **options)
    return ledger_of(folder)[0], report


def test_what_happens_to_an_image_does_not_depend_on_the_others(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """A part of the images, in another pool with other companions, gives the same bytes in their rows."""
    whole, _ = strong(checkpoint, silent, tmp_path / "whole", n=40, batch_size=16)
    part, _ = strong(checkpoint, silent, tmp_path / "part", n=17, batch_size=16)
    rows = np.searchsorted(whole["index"], part["index"])
    assert np.array_equal(whole["index"][rows], part["index"])
    for name, column in part.items():
        if name not in ("adversarial", "adversarial_index", "clean") and not name.startswith("probe."):  # probes are of a sample
            assert column.tobytes() == whole[name][rows].tobytes(), name
    kept = np.isin(whole["adversarial_index"], part["index"])
    for name in ("adversarial", "clean"):
        assert whole[name][kept].tobytes() == part[name].tobytes()


def test_the_images_that_were_broken_are_kept_as_they_were(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """In the ball around each kept image lies the adversarial one, so rows are not mixed up."""
    ledger, _ = strong(checkpoint, silent, tmp_path / "a", n=40, batch_size=16)
    images, _ = load_test(Data(name="digits"))
    assert len(ledger["clean"])
    assert (ledger["clean"] == images.images.numpy()[ledger["adversarial_index"]]).all()


def test_other_chunk_sizes_move_next_to_no_verdict(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    runs = [strong(checkpoint, silent, tmp_path / str(size), n=40, batch_size=size)[0] for size in (7, 16, 64)]
    for other in runs[1:]:
        differ = (runs[0]["found_by"] >= 0) != (other["found_by"] >= 0)
        assert differ.mean() <= 0.005


def test_passes_are_what_each_image_took_itself(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    arrays, report = strong(checkpoint, silent, tmp_path / "e", n=30, batch_size=16)
    names = list(report["attacks"])
    assert report["forwards"] == 30 + sum(int(arrays[f"forwards.{name}"].sum()) for name in names)
    assert report["backwards"] == sum(int(arrays[f"backwards.{name}"].sum()) for name in names)
    robust = arrays["run.square"] == 0
    robust &= arrays["found_by"] < 0
    assert robust.any()
    for name, passes in (("apgd-ce", 41), ("apgd-t", 9 * 41), ("fab-t", 9 * 41), ("square", 102 + 2 + 2)):
        spent = arrays[f"forwards.{name}"] + arrays[f"backwards.{name}"] + arrays.get(f"spared.{name}", 0)
        assert set(spent[robust].tolist()) == {passes}, name
        judged = arrays[f"forwards.{name}"] - arrays[f"backwards.{name}"]
        assert name == "square" or set(judged[robust].tolist()) == {passes // 41}, name
    assert set(arrays["backwards.square"][robust].tolist()) == {2}
    counts = {name: int(arrays[f"{name}.square"].sum()) for name in SPARING}
    assert counts["spared"] > 0
    passes = counts["spared"] + int((arrays["forwards.square"] + arrays["backwards.square"]).sum())
    runs = {name: count for name, count in counts.items() if not name.startswith("queries")}  # none of so few was sampled
    assert report["sparing"]["square"] == {"passes": passes, **runs}


# Folders that hold something already.


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({"seed": 1}, "seed: 0 in the folder, 1 now"),
        ({"eps": "0.2"}, "threat: "),
        ({"n": 13}, "images_sha256: "),
        ({"batch_size": 7}, "chunk: 8 in the folder, 7 now"),
        ({"suite": "paper"}, "suite: quick in the folder, paper now"),
        ({"norm": "l2", "eps": "0.3"}, "threat: "),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_evaluation_is_refused_with_the_difference(
    checkpoint: Path, silent: Any, tmp_path: Path, change: dict[str, Any], row: str, resume: bool
) -> None:
    attack(checkpoint, silent, n=12, out=tmp_path / "e")
    before = receipts(tmp_path / "e")
    with pytest.raises(ResumeError) as raised:
        attack(checkpoint, silent, **{"n": 12, "out": tmp_path / "e", "resume": resume, **change})
    assert raised.value.exit_code == 2
    assert row in raised.value.what
    assert receipts(tmp_path / "e") == before


def test_other_weights_are_another_evaluation(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    attack(checkpoint, silent, n=12, out=tmp_path / "e")
    loaded = load_network(checkpoint)
    with torch.no_grad():
        loaded.network.linear.bias[0] += 1e-3
    write_network(checkpoint, loaded.network, loaded.architecture, loaded.header)
    with pytest.raises(ResumeError, match="tensors_sha256"):
        attack(checkpoint, silent, n=12, out=tmp_path / "e")


def test_nothing_is_written_over_other_files(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("mine")
    for out in (tmp_path / "e", tmp_path / "e" / "notes.txt"):
        with pytest.raises(UsageError, match="nothing is overwritten"):
            attack(checkpoint, silent, out=out)
    assert [path.read_text() for path in (tmp_path / "e").iterdir()] == ["mine"]


def test_a_damaged_clock_costs_the_clock_at_most(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    folder, report = attack(checkpoint, silent, n=12, out=tmp_path / "e")
    (folder / "timing.json").write_text('{"seconds": 1')
    try:
        _, again = attack(checkpoint, silent, n=12, out=tmp_path / "e")
    except AdvcliError:
        return
    assert again == {**report, "seconds": None}


def test_a_kill_in_the_very_first_write_does_not_lock_the_folder(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    def kill(descriptor: int) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(Killed):
            attack(checkpoint, silent, n=12, out=tmp_path / "e")
    assert attack(checkpoint, silent, n=12, out=tmp_path / "e", resume=True)[1]["n"] == 12


@pytest.mark.parametrize("name", ["identity.json", "ledger/ledger.safetensors"])
def test_a_damaged_receipt_is_an_error_of_ours(checkpoint: Path, silent: Any, tmp_path: Path, name: str) -> None:
    attack(checkpoint, silent, n=12, out=tmp_path / "e")
    path = tmp_path / "e" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AdvcliError):
        attack(checkpoint, silent, n=12, out=tmp_path / "e")


def test_a_damaged_shard_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "e" / "ledger")

    class Interrupting(_Silent):
        def advanced(self, done: int, spent: int, left: int) -> None:
            if ledger.shards():
                raise KeyboardInterrupt

    options: dict[str, Any] = {"n": 12, "batch_size": 4, "out": tmp_path / "e"}
    with pytest.raises(InterruptedRunError):
        attack(checkpoint, Interrupting(), **options)
    path = ledger.shards()[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        attack(checkpoint, _Silent(), resume=True, **options)


# Which images are attacked, and how a table is read, with attacks that break what they are told to.


@dataclasses.dataclass
class Stub:
    """Breaks the examples whose names are in `breaks`, in `step` steps, and writes down whom it was given."""

    breaks: set[int]
    step: int = 0
    passes: int = 1
    given: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, surrogate: Any, judge: Any, x: Tensor, y: Tensor, draws: Any, condition: Any) -> Found:
        self.given += draws.index.tolist()
        broken = torch.tensor([i in self.breaks for i in draws.index.tolist()])
        return Found(x, torch.where(broken, 1.0, -1.0), broken, torch.where(broken, self.step, -1))


def stubbed(monkeypatch: pytest.MonkeyPatch, *entries: suites.Entry) -> None:
    monkeypatch.setitem(suites.SUITES, "stub", suites.Suite("stub", "for tests", lambda threat, classes: entries))


@pytest.fixture
def job(trained_run: Path) -> Job:
    """All images of the train split's first 200, of which the network gets some wrong."""
    split, _ = load_test(Data(name="digits"), "train")
    return Job(
        load_network(trained_run / "model.safetensors"),
        split.take(torch.arange(200)),
        Threat("linf", 0.15),
        "0.15",
        "stub",
        "native",
        0,
        32,
    )


def right_and_wrong(job: Job) -> tuple[list[int], list[int]]:
    with torch.no_grad():
        right = job.loaded.network(to_float(job.images.images)).argmax(1) == job.images.labels
    return job.images.index[right].tolist(), job.images.index[~right].tolist()


def test_survivors_and_all_are_read_as_documented(job: Job, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = right_and_wrong(job)
    assert len(wrong) >= 1
    a, b, c = Stub({*right[:10], *wrong}), Stub({*right[5:30]}), Stub({*right[28:40]})
    entry = partial(suites.Entry, about="stub")
    stubbed(monkeypatch, entry("a", a), entry("b", b, on="survivors"), entry("c", c))
    folder, report = evaluate(job, tmp_path / "e", silent, device=CPU, resume=False)
    assert sorted(a.given) == sorted(c.given) == sorted(right)  # images that are wrong from the start are never attacked
    assert sorted(b.given) == sorted(right[10:])
    clean = len(right)
    assert report["clean"] == clean / 200
    assert report["attacks"] == {
        "a": {"accuracy": (clean - 10) / 200, "on": "all"},
        "b": {"accuracy": (clean - 30) / 200, "on": "survivors"},  # what is left after a and b
        "c": {"accuracy": (clean - 12) / 200, "on": "all"},  # c alone
    }
    assert report["robust"] == (clean - 40) / 200
    arrays, _ = ledger_of(folder)
    found = dict(zip(arrays["index"].tolist(), arrays["found_by"].tolist(), strict=True))
    assert [found[i] for i in right] == [0] * 10 + [1] * 20 + [2] * 10 + [-1] * (clean - 40)
    for i in wrong:
        row = arrays["index"].tolist().index(i)
        assert (arrays["broken.a"][row], arrays["steps.a"][row], arrays["found_by"][row]) == (False, -1, -1)
        assert np.isnan(arrays["margin.a"][row])
    assert np.isnan(arrays["margin.b"][arrays["found_by"] == 0]).all()  # not attacked


def test_readings_of_one_ascent_go_by_its_steps(job: Job, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, _ = right_and_wrong(job)
    early, late = Stub({*right[:6]}, step=10), Stub({*right[:9]}, step=11)
    readings = (("x-10", 10), ("x-50", 50))
    stubbed(monkeypatch, suites.Entry("early", early, "stub", readings=readings[:1]), suites.Entry("late", late, "stub", readings=readings))
    _, report = evaluate(job, tmp_path / "e", silent, device=CPU, resume=False)
    assert report["attacks"] == {
        "x-10": {"accuracy": len(right) / 200, "on": "all"},
        "x-50": {"accuracy": (len(right) - 9) / 200, "on": "all"},
    }
    assert report["robust"] == (len(right) - 9) / 200


def test_a_network_that_is_always_wrong_is_reported(job: Job, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wrong = right_and_wrong(job)
    stub = Stub(set())
    stubbed(monkeypatch, suites.Entry("a", stub, "stub"))
    rows = torch.isin(job.images.index, torch.tensor(wrong))
    hopeless = dataclasses.replace(job, images=job.images.take(torch.nonzero(rows)[:, 0]))
    folder, report = evaluate(hopeless, tmp_path / "e", silent, device=CPU, resume=False)
    assert stub.given == []
    assert (report["clean"], report["robust"], report["n"]) == (0.0, 0.0, len(wrong))
    assert ledger_of(folder)[0]["index"].tolist() == sorted(wrong)


def test_weights_that_are_no_numbers_are_refused_before_an_attack(checkpoint: Path, silent: Any) -> None:
    loaded = load_network(checkpoint)
    with torch.no_grad():
        loaded.network.linear.bias[0] = torch.nan
    write_network(checkpoint, loaded.network, loaded.architecture, loaded.header)
    with pytest.raises(CheckpointError, match="not finite"):
        attack(checkpoint, silent)


# What names an evaluation, and which images it takes.


def test_the_identity_names_everything_that_decides_a_verdict(job: Job) -> None:
    split = job.images
    other_pixel = split.images.clone()
    other_pixel[3, 0, 0, 0] ^= 1
    loaded = load_network(job.loaded.path)
    changes: dict[str, Any] = {
        "seed": 1,
        "chunk": 31,
        "suite": "quick",
        "engine": "reference",
        "threat": Threat("l2", 0.15),
        "images": split.take(torch.arange(199)),
        "loaded": dataclasses.replace(loaded, header={**loaded.header, "tensors_sha256": "0"}),
    }
    jobs = [job, *(dataclasses.replace(job, **{key: value}) for key, value in changes.items())]
    jobs += [
        dataclasses.replace(job, threat=Threat("linf", 0.16)),
        dataclasses.replace(job, images=Split(other_pixel, split.labels, split.index)),
        dataclasses.replace(job, images=Split(split.images, split.labels.roll(1), split.index)),
        dataclasses.replace(job, images=Split(split.images, split.labels, split.index + 1)),
        dataclasses.replace(job, loaded=dataclasses.replace(loaded, architecture=dataclasses.replace(loaded.architecture, mean=(0.5,)))),
    ]
    assert len({each.identity()["digest"] for each in jobs}) == len(jobs)
    assert dataclasses.replace(job, eps_text="15/100", loaded=loaded).identity() == job.identity()


@pytest.mark.parametrize("n", [10, 37, 100, 359])
def test_a_part_is_stratified_seeded_and_grows(n: int) -> None:
    split, _ = load_test(Data(name="digits"))
    part = pick(split, n, seed=3)
    counts, whole = (torch.bincount(s.labels, minlength=10) for s in (part, split))
    assert len(part) == n
    assert bool(((counts - whole * n / len(split)).abs() <= 1).all())
    assert bool((part.index.diff() > 0).all())
    assert torch.equal(part.images, split.images[part.index])
    assert torch.equal(pick(split, n, seed=3).index, part.index)
    assert set(part.index.tolist()) <= set(pick(split, n + 1, seed=3).index.tolist())


def test_seeds_take_other_images_and_none_takes_all() -> None:
    split, _ = load_test(Data(name="digits"))
    assert not torch.equal(pick(split, 50, seed=0).index, pick(split, 50, seed=1).index)
    assert pick(split, None, seed=0) is split
    assert len(pick(split, 10**6, seed=0)) == 360


def test_a_random_network_is_attacked_alike_whatever_was_drawn_before(checkpoint: Path, silent: Any, tmp_path: Path) -> None:
    """Its noise is torch's own, and no key names it; each attack begins it anew."""
    noisy = lies.tell(load_network(checkpoint), "random noise")
    images = pick(load_test(Data(name="digits"), "test")[0], 30, 0)
    job = Job(noisy, images, Threat("linf", 0.15), "0.15", "quick", "native", 0, 30, {"name": "digits"})
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        folder, _ = evaluate(job, tmp_path / str(seed), silent, device=torch.device("cpu"), resume=False)
        tables.append(Ledger(folder / "ledger").read()[0])
    assert any((tables[0][f"steps.{name}"] >= 0).any() for name in ("fgsm", "pgd-20", "cw-30"))
    for name, column in tables[0].items():
        np.testing.assert_array_equal(column, tables[1][name], err_msg=name)


@pytest.mark.parametrize(("lie", "repeatable"), [("", True), ("random noise", False), ("batch norm in train mode", False)])
def test_searches_know_whether_a_network_is_repeatable(
    checkpoint: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, repeatable: bool
) -> None:
    told = []

    def spy(attack: PooledAttack, surrogate: Surrogate, *rest: Any) -> Any:
        told.append(surrogate.repeatable)
        return stream(attack, surrogate, *rest)

    monkeypatch.setattr(running, "stream", spy)
    network = lies.tell(load_network(checkpoint), lie) if lie else load_network(checkpoint)
    images = pick(load_test(Data(name="digits"), "test")[0], 4, 0)
    job = Job(network, images, Threat("linf", 0.15), "0.15", "quick", "native", 0, 4, {"name": "digits"})
    evaluate(job, tmp_path / "e", silent, device=torch.device("cpu"), resume=False)
    assert told == [repeatable] * 3
