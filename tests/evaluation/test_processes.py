"""Processes that share an evaluation's images leave the receipts of one, however many there were before and after an interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lies
import pytest
import torch
from small import Silent
from together import LIMIT, Launched, apart, together

from advcli.attacks import Threat
from advcli.data import load_test
from advcli.errors import AdvcliError, InterruptedRunError
from advcli.evaluation import curve, matrix, session, suites
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, pick
from advcli.evaluation.session import Options
from advcli.gates.whole import processes
from advcli.recipe import Recipe
from advcli.recipe.schema import Data
from advcli.runs.checkpoint import load_network
from advcli.runs.ledger import Ledger
from advcli.training import distributed
from advcli.training import session as training

RECEIPTS = ("report.json", "ledger/ledger.safetensors", "identity.json")
EPS = "0.2"


class InSecondAttack(Silent):
    """Does something in the second attack, when so many of its images are done."""

    def __init__(self, after: int, act: Callable[[], None]) -> None:
        self.after, self.act, self.attacks = after, act, 0

    def attacking(self, name: str, survivors: int, of: int) -> None:
        self.attacks += 1

    def advanced(self, done: int, spent: float, left: float) -> None:
        if self.attacks == 2 and done >= self.after:
            self.act()


def leave_alone(there: Path) -> None:
    """The second process is killed when the first one has come here, which then works until it hears of that."""
    if distributed.rank() == 0:
        there.touch()
        time.sleep(LIMIT)
    while not there.is_file():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def attacked(path: str, folder: str, stop_after: int = 0, suite: str = "aa", n: int = 41, watcher: Any = None) -> int:
    """A suite in short; the number of verdicts in shards, where it was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        for name, less in (("Apgd", {"steps": 20}), ("Fab", {"steps": 20}), ("Square", {"queries": 100})):
            patch.setattr(suites, name, partial(getattr(suites, name), **less))
        images = pick(load_test(Data(name="digits"))[0], n, seed=0)
        work = Job(load_network(Path(path)), images, Threat("linf", float(EPS)), EPS, suite, "native", 0, 8)
        watcher = watcher or (InSecondAttack(stop_after, interrupt) if stop_after else Silent())
        try:
            evaluate(work, Path(folder), watcher, device=torch.device("cpu"), resume=True)
        except InterruptedRunError:
            distributed.wait()  # until the other one has written, too
            ledger = Ledger(Path(folder) / "ledger")
            return sum(len(ledger.read_shard(number)[0]["index"]) for number in ledger.shards())
    return 0


def receipts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RECEIPTS}


@pytest.fixture(scope="module")
def path(trained_run: Path) -> str:
    return str(trained_run / "model.safetensors")


@pytest.fixture(scope="module")
def alone(path: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone") / "eval"
    attacked(path, str(folder))
    return receipts(folder)


@pytest.mark.slow
def test_two_processes_leave_the_receipts_of_one(path: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    together(attacked, tmp_path, path, str(tmp_path / "eval"))
    assert receipts(tmp_path / "eval") == alone
    assert json.loads((tmp_path / "eval" / "timing.json").read_text())["processes"] == 2
    assert not list((tmp_path / "eval" / "ledger").glob("shard-*"))
    attacks = json.loads(alone["report.json"])["attacks"]
    assert 0 < attacks["square"]["accuracy"] < attacks["apgd-ce"]["accuracy"] + 1e-9


@pytest.mark.slow
def test_more_processes_than_some_have_work_for(path: str, tmp_path: Path) -> None:
    attacked(path, str(tmp_path / "one"), suite="quick", n=3)
    together(partial(attacked, suite="quick", n=3), tmp_path, path, str(tmp_path / "many"), size=4)
    assert receipts(tmp_path / "many") == receipts(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(path: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    assert 41 < attacked(path, str(tmp_path / "eval"), 4) < 60
    together(attacked, tmp_path, path, str(tmp_path / "eval"))
    assert receipts(tmp_path / "eval") == alone


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(path: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    counts = together(attacked, tmp_path, path, str(tmp_path / "eval"), 4)
    assert 41 < counts[0] == counts[1] < 60
    names = list(Ledger(tmp_path / "eval" / "ledger").shards())
    assert {number % 2 for number in names} == {0, 1}, "both wrote shards, under numbers of their own"
    attacked(path, str(tmp_path / "eval"))
    assert receipts(tmp_path / "eval") == alone


def bereft(path: str, folder: Path) -> None:
    attacked(path, str(folder / "eval"), watcher=InSecondAttack(4, partial(leave_alone, folder / "there")))


@pytest.mark.slow
def test_one_process_goes_on_where_the_other_was_killed(path: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    """It hears of that in the middle of its work, and saves what is finished."""
    codes, shown = apart(tmp_path, partial(bereft, path), partial(bereft, path))
    assert codes == [InterruptedRunError.exit_code, -signal.SIGKILL]
    assert "nothing was heard of process 1" in shown[0]
    ledger = Ledger(tmp_path / "eval" / "ledger")
    entries = {ledger.read_shard(number)[1]["entry"] for number in ledger.shards() if number % 2 == 0}
    assert len(entries) == 2, "the first process has saved of the second attack, too"
    attacked(path, str(tmp_path / "eval"))
    assert receipts(tmp_path / "eval") == alone


def refused(path: str, folder: str, apart: str) -> dict[str, str]:
    """Errors by what was wrong; each process its own."""
    rank, found = distributed.rank(), {}
    assert processes() == 2

    def try_(name: str, images: Any, network: Any, folder: Path) -> None:
        work = Job(network, images, Threat("linf", 0.1), "0.1", "quick", "native", 0, 8)
        try:
            evaluate(work, folder, Silent(), device=torch.device("cpu"), resume=False)
        except AdvcliError as error:
            found[name] = str(error)
        except RuntimeError as error:
            found[name] = type(error).__name__

    whole, network = load_test(Data(name="digits"))[0], load_network(Path(path))
    try:
        session.job(Options(Path(path), "aa", engine="reference", device="cpu"), Silent())
    except AdvcliError as error:
        found["reference"] = str(error)
    company = lies.tell(network, "batch norm in train mode")
    try_("company", whole.take(torch.arange(8)), company, Path(folder) / "company")
    try_("random", whole.take(torch.arange(8)), lies.tell(network, "random noise"), Path(folder) / "random")
    if apart == "images":
        try_("apart", whole.take(torch.arange(8) + rank), network, Path(folder) / "eval")
    else:
        try_("apart", whole.take(torch.arange(8)), network, Path(folder) / f"disk{rank}")
    return found


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused(path: str, tmp_path: Path) -> None:
    """Each process writes into a folder of its own: unnoticed, what is missing would count as robust."""
    first, second = together(refused, tmp_path, path, str(tmp_path), "disks")
    for found in (first, second):
        assert "draws by batch" in found["reference"]
        assert "would depend on the number of processes" in found["random"]
        assert "would depend on the number of processes" in found["company"]
    assert "verdicts of other processes are missing (fgsm, pgd-20, cw-30)" in first["apart"]
    assert second["apart"] == "RuntimeError"
    assert not Ledger(tmp_path / "disk0" / "ledger").complete


@pytest.mark.slow
def test_other_images_on_another_machine_are_refused(path: str, tmp_path: Path) -> None:
    first, second = together(refused, tmp_path, path, str(tmp_path), "images")
    assert "process 1 would evaluate something else than process 0: images_sha256" in second["apart"]
    assert first["apart"] == "RuntimeError"


def reports(path: str, other: str, folder: str) -> list[dict[str, Any]]:
    """A curve and a transfer matrix, without the clock and the places."""
    options = Options(Path(path), "quick", n=12, device="cpu", eps="0.2,0.1", out=Path(folder) / "curve")
    across = Options(None, "transfer", n=12, device="cpu", source=(Path(path), Path(other)), out=Path(folder) / "matrix")
    found = [curve.run(options, Silent()), matrix.run(across, [Path(path), Path(other)], Silent())]
    for report in found:
        for row in (report, *report.get("curve", []), *report.get("matrix", [])):
            row.pop("seconds", None), row.pop("receipt", None)
    return found


@pytest.mark.slow
def test_curves_and_matrices_are_shared_too(path: str, tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    other = str(training.run(tiny(), Silent(), out=tmp_path / "other", resume=False, device="cpu").checkpoint)
    alone = reports(path, other, str(tmp_path / "one"))
    assert together(reports, tmp_path, path, other, str(tmp_path / "two")) == [alone, alone]


@pytest.mark.slow
def test_the_command_prints_one_report(path: str, checkpoint: Path, tmp_path: Path) -> None:
    job = Launched(tmp_path, "attack", str(checkpoint), "--n", "20", "--json", "--strict")
    assert job.finish() != 0
    out, err = job.shown()
    report = json.loads(out)
    _, alone = session.run(Options(Path(path), "quick", n=20, device="cpu", out=tmp_path / "alone"), Silent())
    same = {key for key in alone if key not in ("checkpoint", "seconds")}
    assert {key: report[key] for key in same} == {key: alone[key] for key in same}
    assert err.count("╭") == 1, err
    assert "not trustworthy" in err
    assert len(list(checkpoint.parent.glob("evals/*/report.html"))) == 1
