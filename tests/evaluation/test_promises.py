"""Native AutoAttack: the same bytes whatever happens around an image, and verdicts as the authors' package has them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advcli.attacks import Square, Surrogate, Threat, square
from advcli.attacks.turns import Turns
from advcli.data import Split, load_test
from advcli.errors import InterruptedRunError, UsageError
from advcli.evaluation import run as running
from advcli.evaluation import suites, verify
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, pick
from advcli.evaluation.session import Options, run
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network
from advcli.runs.ledger import Arrays, Ledger

CPU = torch.device("cpu")
EPS = "0.2"
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
IMAGES = ("adversarial", "adversarial_index", "clean")  # of broken examples alone
COLUMNS = ("broken", "steps", "run", "margin", "forwards", "backwards")
RECEIPTS = ("report.json", "ledger/ledger.safetensors", "identity.json")


def receipts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RECEIPTS}


@pytest.fixture(scope="module")
def path(trained_run: Path) -> Path:
    return trained_run / "model.safetensors"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the steps and a fiftieth of the queries: the same code in a fraction of the time."""
    for name, less in (("Apgd", {"steps": 20}), ("Fab", {"steps": 20}), ("Square", {"queries": 100})):
        monkeypatch.setattr(suites, name, partial(getattr(suites, name), **less))


@pytest.fixture
def fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps, and a tenth of the queries."""
    monkeypatch.setattr(suites, "Square", partial(suites.Square, queries=500))


def job(path: Path, images: Split, *, chunk: int, engine: str = "native", seed: int = 0) -> Job:
    return Job(load_network(path), images, Threat("linf", float(EPS)), EPS, "aa", engine, seed, chunk)


def images(n: int) -> Split:
    return pick(load_test(Data(name="digits"))[0], n, seed=0)


def result(work: Job, folder: Path, watcher: Any, *, resume: bool = False) -> tuple[Arrays, dict[str, Any]]:
    folder, report = evaluate(work, folder, watcher, device=CPU, resume=resume)
    return Ledger(folder / "ledger").read()[0], report


def is_robust(arrays: Arrays) -> Any:
    return (arrays["run.square"] >= 0) & ~arrays["broken.square"]


# The others in the pool.


@pytest.mark.usefixtures("short")
def test_an_image_has_the_same_row_in_every_company(path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding bound for all: it is measured on the images of a run, and decides with the rest."""
    monkeypatch.setattr(running, "measure_bound", lambda model, x: 1e-5)
    split = images(40)
    whole, _ = result(job(path, split, chunk=16), tmp_path / "whole", silent)
    assert {0, 1} <= set(whole["found_by"].tolist())
    assert is_robust(whole).any()
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for number, part in enumerate((torch.tensor([39]), torch.arange(0, 40, 3), shuffled[:29].sort().values)):
        own, _ = result(job(path, split.take(part), chunk=16), tmp_path / str(number), silent)
        for name, column in own.items():
            if name not in IMAGES and not name.startswith("probe."):  # probes are of a sample of a run's images
                assert column.tobytes() == whole[name][part.numpy()].tobytes(), name
        kept = np.isin(whole["adversarial_index"], own["index"])
        assert whole["adversarial_index"][kept].tolist() == own["adversarial_index"].tolist()
        for name in ("adversarial", "clean"):
            assert whole[name][kept].tobytes() == own[name].tobytes()


@pytest.mark.usefixtures("short")
def test_runs_at_once_leave_the_receipts_of_runs_one_after_another(path: Path, silent: Any, tmp_path: Path) -> None:
    """Few images in many rows, so that targets go at once as a rule."""

    def only_due(turns: Turns, free: int) -> list[tuple[int, int]]:
        return [turns._begin(turns.due.popleft()) for _ in range(min(free, len(turns.due)))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turns, "begin", only_due)
        arrays, _ = result(job(path, images(14), chunk=16), tmp_path / "one", silent)
    result(job(path, images(14), chunk=16), tmp_path / "many", silent)
    assert (arrays["run.apgd-t"] > 0).any()
    assert receipts(tmp_path / "one") == receipts(tmp_path / "many")


@pytest.mark.usefixtures("short")
def test_looking_ahead_leaves_the_receipts_of_one_query_after_another(path: Path, silent: Any, tmp_path: Path) -> None:
    """Few images in many rows: Square's queries go several at once, but where every row looks for itself."""
    asked: list[int] = []
    advance = Square.advance

    def alone(attack: Square, surrogate: Surrogate, *rest: Any) -> None:
        before = surrogate.cost.forwards
        advance(attack, surrogate, *rest)
        asked.append(surrogate.cost.forwards - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Square, "advance", alone)
        patch.setattr(square, "_ahead", square._own)
        arrays, _ = result(job(path, images(14), chunk=16), tmp_path / "one", silent)
    assert is_robust(arrays).any()
    assert sum(asked) > 16 * 100
    result(job(path, images(14), chunk=16), tmp_path / "many", silent)
    assert receipts(tmp_path / "one") == receipts(tmp_path / "many")


@pytest.mark.parametrize("n", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_chunk_sizes_agree_on_verdicts_and_on_what_they_cost(
    path: Path, silent: Any, tmp_path: Path, n: int, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("short" if n == 60 else "fewer_queries")
    split = images(n)
    runs = {size: result(job(path, split, chunk=size), tmp_path / str(size), silent)[0] for size in (16, 64, 128)}
    first = runs.pop(16)
    for other in runs.values():
        differ = int(((first["found_by"] >= 0) != (other["found_by"] >= 0)).sum())
        assert differ <= 0.005 * n
        standing = is_robust(first) & is_robust(other)
        assert standing.sum() >= n / 10
        for name in ATTACKS:  # what an image costs follows from the attempts it took, not from the pool's size
            alike = (first[f"run.{name}"] == other[f"run.{name}"]) & (first[f"steps.{name}"] == other[f"steps.{name}"])
            assert alike[standing].all()
            # whether a query needs a look, or a run goes on, may hang on a bit
            spent = [run[f"forwards.{name}"] + run[f"backwards.{name}"] + run.get(f"spared.{name}", 0) for run in (first, other)]
            assert np.array_equal(spent[0][alike], spent[1][alike])


# Interruptions.


class Interrupting:
    """Presses Ctrl-C when it has been told of progress so many times; never for None."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.calls = after, 0

    def planned(self, attacks: int, passes: int, seconds: float) -> None: ...
    def started(self, done: int, total: int) -> None: ...

    def attacking(self, name: str, survivors: int, of: int) -> None: ...

    def advanced(self, done: int, spent: int, left: int) -> None:
        self.calls += 1
        assert done >= 0
        assert left >= 0
        assert spent >= 0
        if self.calls == self.after:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("short")
def test_ctrl_c_in_any_attack_changes_nothing(path: Path, silent: Any, tmp_path: Path) -> None:
    split, watcher = images(20), Interrupting()
    arrays, report = result(job(path, split, chunk=8), tmp_path / "whole", watcher)
    assert is_robust(arrays).any()
    stopped_in = set()
    for share in (0.0, 0.05, 0.3, 0.6, 0.9, 1.0):
        cut = tmp_path / str(share)
        with pytest.raises(InterruptedRunError):
            result(job(path, split, chunk=8), cut, Interrupting(max(1, int(share * watcher.calls))))
        ledger = Ledger(cut / "ledger")
        stopped_in |= {ledger.read_shard(number)[1]["entry"] for number in list(ledger.shards())[-1:]}
        _, again = result(job(path, split, chunk=8), cut, silent, resume=True)
        assert receipts(cut) == receipts(tmp_path / "whole")
        assert [again[key] for key in ("forwards", "backwards")] == [report[key] for key in ("forwards", "backwards")]
    assert len(stopped_in) >= 3


@pytest.mark.usefixtures("short")
def test_a_run_that_is_stopped_again_and_again_arrives(path: Path, tmp_path: Path) -> None:
    split = images(20)
    result(job(path, split, chunk=8), tmp_path / "whole", Interrupting())
    stops = 0
    while stops < 50:
        try:
            result(job(path, split, chunk=8), tmp_path / "cut", Interrupting(240), resume=True)
            break
        except InterruptedRunError:
            stops += 1
    assert 2 <= stops < 50
    assert receipts(tmp_path / "cut") == receipts(tmp_path / "whole")


_CHILD = """
import sys
from functools import partial
from pathlib import Path
import torch
torch.set_num_threads(1)
from advcli.evaluation import suites
from advcli.evaluation.session import Options, run
class Silent:
    def __getattr__(self, name):
        return lambda *args: None
suites.Square = partial(suites.Square, queries=500)
run(Options(Path(sys.argv[1]), "aa", n=24, eps=sys.argv[3], batch_size=4, out=Path(sys.argv[2]), resume=True, device="cpu"), Silent())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_queries")
def test_a_process_killed_at_many_moments_is_resumed_to_the_same_bytes(path: Path, silent: Any, tmp_path: Path) -> None:
    """One run, killed again and again: after every few new shards, and a moment later than a shard appears."""
    out, ledger, kills = tmp_path / "cut", Ledger(tmp_path / "cut" / "ledger"), 0
    options = Options(path, "aa", n=24, eps=EPS, batch_size=4, device="cpu")
    for shards, pause in ((1, 0.0), (2, 0.05), (1, 0.2), (3, 0.0), (2, 0.01), (1, 0.4)):
        before = {number: file.read_bytes() for number, file in ledger.shards().items()}
        command = [sys.executable, "-c", _CHILD, str(path), str(out), EPS]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(ledger.shards()) < len(before) + shards:
            time.sleep(0.002)
        time.sleep(pause)
        process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        if ledger.complete:
            break
        kills += 1
        now = {number: file.read_bytes() for number, file in ledger.shards().items()}
        assert {number: now[number] for number in before} == before  # shards are immutable
        with pytest.raises(UsageError, match="begun and not finished"):
            run(dataclasses.replace(options, out=out), silent)
    assert kills >= 4
    run(dataclasses.replace(options, out=out, resume=True), silent)
    run(dataclasses.replace(options, out=tmp_path / "whole"), silent)
    assert receipts(out) == receipts(tmp_path / "whole")
    assert [file.name for file in (out / "ledger").iterdir()] == ["ledger.safetensors"]


# Passes.


@pytest.mark.usefixtures("short")
def test_passes_are_sums_over_images_of_what_each_took(path: Path, silent: Any, tmp_path: Path) -> None:
    arrays, report = result(job(path, images(30), chunk=8), tmp_path / "e", silent)
    assert report["forwards"] == 30 + sum(int(arrays[f"forwards.{name}"].sum()) for name in ATTACKS)
    assert report["backwards"] == sum(int(arrays[f"backwards.{name}"].sum()) for name in ATTACKS)
    for name in ATTACKS:
        attacked = arrays[f"run.{name}"] >= 0
        assert np.array_equal(attacked, arrays[f"forwards.{name}"] > 0)
        assert np.array_equal(attacked, ~np.isnan(arrays[f"margin.{name}"]))
        assert not arrays[f"backwards.{name}"][~attacked].any()
        assert bool((arrays[f"steps.{name}"] >= 0)[arrays[f"broken.{name}"]].all())
        assert bool((arrays[f"steps.{name}"] == -1)[~arrays[f"broken.{name}"]].all())
    spared = arrays["spared.square"][is_robust(arrays)]
    assert set((arrays["forwards.square"][is_robust(arrays)] + spared).tolist()) == {100 + 2 + arrays["backwards.square"].max()}


# Against the authors' package.


@pytest.mark.slow
def test_native_differs_from_the_reference_no_more_than_its_seeds_do(path: Path, silent: Any, tmp_path: Path) -> None:
    """On the same 100 images. One image is allowed where the seeds agree on all, for two seeds are a small sample."""
    split = images(100)
    broken = {}
    for name, engine_name, seed in (("native", "native", 0), ("first", "reference", 0), ("second", "reference", 1)):
        arrays, report = result(job(path, split, chunk=50, engine=engine_name, seed=seed), tmp_path / name, silent)
        broken[name] = arrays["found_by"] >= 0
        assert 0.1 < report["robust"] < report["clean"] - 0.1
        assert report["protocol"].endswith(engine_name)
    seeds = max(1, int((broken["first"] != broken["second"]).sum()))
    assert int((broken["native"] != broken["first"]).sum()) <= seeds
    assert int((broken["native"] != broken["second"]).sum()) <= seeds
    assert int(broken["native"].sum()) >= int(broken["first"].sum()) - seeds  # robust accuracy is not above the reference's


# Few classes.


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a folder data set: zeros, ones and twos of the digits, as PNG files."""
    root = tmp_path_factory.mktemp("three") / "set"
    for part, limit in (("train", 240), ("test", 30)):
        split, _ = load_test(Data(name="digits"), part)
        rows = torch.nonzero(split.labels < 3)[:limit, 0]
        for row, label in zip(rows.tolist(), split.labels[rows].tolist(), strict=True):
            place = root / part / ("zero", "one", "two")[label] / f"{row:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.images[row, 0].numpy()).save(place)
    return root


@pytest.mark.usefixtures("short")
def test_below_four_classes_aa_runs_and_says_what_it_follows(three_classes: Path, silent: Any, tmp_path: Path) -> None:
    from advcli.recipe import load
    from advcli.training import session

    changes = ["data.name=folder", f"data.root={three_classes}", "data.validation=30", "model.width=0.25", "schedule.epochs=4"]
    changes += ["craft.steps=3", "train.batch_size=30", "select.metric=pgd-3", "select.train_images=20"]
    trained = session.run(load("quickstart", changes), silent, out=tmp_path / "run", resume=False, device="cpu").folder
    options = Options(trained / "model.safetensors", "aa", batch_size=16, device="cpu", eps=EPS)
    folder, report = run(dataclasses.replace(options, out=tmp_path / "aa"), silent)
    assert report["notes"] == ["3 classes: the targeted DLR loss needs four, so apgd-t follows the margin"]
    assert tuple(report["attacks"]) == ATTACKS
    assert report["n"] == 30
    assert 0 < report["robust"] < report["clean"]
    assert set(report["per_class"]) == {"zero", "one", "two"}
    arrays, _ = Ledger(folder / "ledger").read()
    assert set(arrays["run.apgd-t"].tolist()) <= {-1, 0, 1}  # two other classes, two targets
    assert 1 in arrays["run.apgd-t"]
    assert run(dataclasses.replace(options, suite="quick", out=tmp_path / "quick"), silent)[1]["notes"] == []
    reference = run(dataclasses.replace(options, engine="reference", out=tmp_path / "reference"), silent)[1]
    assert tuple(reference["attacks"]) == ("apgd-ce", "apgd-dlr", "fab-t", "square")
    assert reference["notes"] == []


# Suites that hold aa, or stand in for it.


def suite_result(path: Path, name: str, n: int, folder: Path, watcher: Any) -> tuple[Arrays, dict[str, Any]]:
    return result(dataclasses.replace(job(path, images(n), chunk=32), suite=name), folder, watcher)


@pytest.mark.slow
def test_fast_is_as_strong_as_aa_for_less_than_half_the_passes(path: Path, silent: Any, tmp_path: Path) -> None:
    """On the digits network, image by image: at most 2 points above aa, in either direction by no more than single images."""
    n = 100
    fast, report = suite_result(path, "fast", n, tmp_path / "fast", silent)
    whole, expected = suite_result(path, "aa", n, tmp_path / "aa", silent)
    assert 0.1 < expected["robust"] < 0.9, "the network is neither broken nor safe, so that the comparison says something"
    assert report["robust"] <= expected["robust"] + 0.02
    assert int((is_robust(fast) != is_robust(whole)).sum()) <= 3
    passes, of = (r["forwards"] + r["backwards"] for r in (report, expected))
    assert passes < of / 2
    assert report["verdict"] == "upper bound"


@pytest.mark.usefixtures("short")
def test_aa_plus_breaks_what_aa_breaks(path: Path, silent: Any, tmp_path: Path) -> None:
    """Same names, same draws: the first restart is aa's, so only what comes to different attacks first may differ."""
    plus, report = suite_result(path, "aa-plus", 40, tmp_path / "plus", silent)
    whole, expected = suite_result(path, "aa", 40, tmp_path / "aa", silent)
    assert not (is_robust(plus) & ~is_robust(whole)).any()
    assert report["robust"] <= expected["robust"]
    assert (plus["run.apgd-ce"].max() > 0, "broken.apgd-dlr" in plus) == (True, True)


@pytest.mark.usefixtures("short")
def test_a_ranked_attack_is_resumed_and_explained(path: Path, silent: Any, tmp_path: Path) -> None:
    work, watcher = dataclasses.replace(job(path, images(40), chunk=8), suite="fast", data={"name": "digits"}), Interrupting()
    unbroken, _ = result(work, tmp_path / "whole", watcher)
    for share in (0.1, 0.3, 0.5):
        folder = tmp_path / str(share)
        with pytest.raises(InterruptedRunError):
            result(work, folder, Interrupting(int(share * watcher.calls)))
        result(work, folder, silent, resume=True)
        assert receipts(folder) == receipts(tmp_path / "whole")
    evidence = verify.gather(folder, checkpoint=path, data_root=None)
    broken = unbroken["broken.apgd-t-20"] | unbroken["broken.apgd-t-50"]
    told = 0
    for row in np.flatnonzero(broken):
        story = verify.explain(evidence, int(unbroken["index"][row]))
        stored = {a["name"]: a for a in story["attacks"]}[story["found_by"]]
        x_adv = torch.from_numpy(unbroken["adversarial"][[np.searchsorted(unbroken["adversarial_index"], unbroken["index"][row])]])
        with torch.no_grad():
            told += str(int(load_network(path).network(x_adv).argmax())) == stored["target"]
    assert told > broken.sum() / 2, "an image is mostly taken for the target that the attack is said to have had"
