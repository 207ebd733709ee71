"""Fast searches: settled once, judged exactly, audited; and a surrogate that is wrong makes no verdict wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advcli.attacks import Cost, Judge, Surrogate, Threat
from advcli.attacks.losses import attack_loss
from advcli.data import load_test, to_float
from advcli.draws import Draws
from advcli.errors import CheckpointError, InterruptedRunError, ResourceError, ResumeError, UsageError
from advcli.evaluation import audit, candidates, search, session, suites, verify
from advcli.evaluation.candidates import Probe, agreement
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, pick
from advcli.evaluation.masking import flags
from advcli.evaluation.search import COMPILED, Agreement, Search
from advcli.evaluation.session import Options
from advcli.models import Architecture, CompiledForward, FastCopy, ModelOutput, Network, build
from advcli.recipe.schema import Data, ReverseAttention
from advcli.runs.checkpoint import load_network
from advcli.runs.ledger import Arrays, Ledger

Asked = tuple[Network, Judge, Tensor, Tensor]
CPU = torch.device("cpu")
EPS, N = "0.2", 40
RECEIPTS = ("report.json", "ledger/ledger.safetensors", "identity.json", "search.json")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, less in (("Apgd", {"steps": 12}), ("Fab", {"steps": 6}), ("Square", {"queries": 40})):
        monkeypatch.setattr(suites, name, partial(getattr(suites, name), **less))


def job(path: Path, asked: str, *, n: int = N, suite: str = "aa") -> Job:
    images = pick(load_test(Data(name="digits"))[0], n, seed=0)
    return Job(load_network(path), images, Threat("linf", float(EPS)), EPS, suite, "native", 0, 16, search=asked)


def result(work: Job, folder: Path, watcher: Any, *, resume: bool = False) -> tuple[Arrays, dict[str, Any]]:
    folder, report = evaluate(work, folder, watcher, device=CPU, resume=resume)
    return Ledger(folder / "ledger").read()[0], report


def receipts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RECEIPTS}


def robust(arrays: Arrays) -> Any:
    return (arrays["run.square"] >= 0) & ~arrays["broken.square"]


@pytest.fixture(scope="module")
def path(trained_run: Path) -> Path:
    return trained_run / "model.safetensors"


# Verdicts.


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("asked", ["folded", "bf16"])
def test_fast_searches_find_what_float32_finds(path: Path, silent: Any, tmp_path: Path, asked: str) -> None:
    """At most one image in forty more stands, and every receipt holds for a fresh float32 network."""
    exact, _ = result(job(path, "fp32"), tmp_path / "fp32", silent)
    fast, report = result(job(path, asked), tmp_path / asked, silent)
    assert 5 < robust(exact).sum() < N - 5
    assert (robust(fast) & ~robust(exact)).sum() <= N / 40
    assert report["robust"] <= robust(exact).mean() + 1 / 40
    evidence = verify.gather(tmp_path / asked, checkpoint=path, data_root=None)
    assert verify.check(evidence, device=CPU, quantize=False)["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("eps", ["0.15", "0.2"])
def test_bfloat16_is_no_kinder_than_float32_over_the_whole_of_aa(path: Path, silent: Any, tmp_path: Path, eps: str) -> None:
    rows = {}
    for asked in ("fp32", "bf16"):
        images = pick(load_test(Data(name="digits"))[0], 100, seed=0)
        work = Job(load_network(path), images, Threat("linf", float(eps)), eps, "aa", "native", 0, 32, search=asked)
        rows[asked] = robust(result(work, tmp_path / asked, silent)[0])
    assert (rows["bf16"] & ~rows["fp32"]).sum() <= 1


class Noisy(nn.Module):
    """A network that lies about its margins, differently for every image, and about its gradients."""

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def trace(self, x: Tensor) -> Any:
        output = self.network.trace(x)
        noise = torch.sin(1e3 * x.flatten(1).sum(1, keepdim=True) + torch.arange(10.0))
        return output._replace(logits=output.logits + self.scale * noise)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("scale", "error"), [(20.0, 0.0), (20.0, 30.0)], ids=["boasting", "unsure"])
def test_a_wrong_surrogate_makes_no_false_verdict(
    path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, error: float
) -> None:
    """It may miss, which the audit says; but whatever it calls broken is broken."""
    for module in (search, candidates):
        monkeypatch.setattr(module, "followed", lambda network, head, precision: Noisy(network, scale))
    monkeypatch.setattr(candidates, "agreement", lambda *rest: Agreement(error, 1.0, 1.0))
    arrays, report = result(job(path, "bf16", n=24), tmp_path / "run", silent)
    evidence = verify.gather(tmp_path / "run", checkpoint=path, data_root=None)
    assert verify.check(evidence, device=CPU, quantize=False)["failures"] == []
    network = load_network(path).network.eval()
    x_adv = torch.from_numpy(arrays["adversarial"])
    labels = torch.from_numpy(arrays["label"][np.searchsorted(arrays["index"], arrays["adversarial_index"])])
    assert len(x_adv) > 0
    assert not bool((network(x_adv).argmax(1) == labels).any())
    assert report["search"]["missed"] == int((arrays["broken.audit"] & ~arrays["broken.apgd-ce"]).sum())


# The record.


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("call", [1, 30])
def test_a_stopped_run_goes_on_with_the_stored_decision(
    path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Never measured again, although the clock would now say otherwise; to the byte what a run in one go gives."""
    monkeypatch.setattr(Probe, "_seconds", lambda *rest, **more: {"fp32": 3e-6, "folded": 2e-6, "bf16": 1e-6})
    monkeypatch.setattr(search, "_SPREAD", 1.0)
    result(job(path, "auto"), tmp_path / "whole", silent)
    calls = []

    def advanced(*progress: Any) -> None:
        calls.append(progress)
        if len(calls) == call:
            raise KeyboardInterrupt

    silent.advanced = advanced
    with pytest.raises(InterruptedRunError):
        result(job(path, "auto"), tmp_path / "stopped", silent)
    silent.advanced = lambda *progress: None
    monkeypatch.setattr(Probe, "measure", lambda *rest: pytest.fail("measured twice"))
    result(job(path, "auto"), tmp_path / "stopped", silent, resume=True)
    assert receipts(tmp_path / "stopped") == receipts(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "search.json").read_text())["precision"] == "bf16"


@pytest.mark.usefixtures("short")
def test_a_lost_decision_of_a_begun_run_is_an_error_of_ours(path: Path, silent: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result(job(path, "bf16"), folder, silent)
    arrays, _ = Ledger(folder / "ledger").read()
    (folder / "ledger" / "ledger.safetensors").unlink()
    Ledger(folder / "ledger").write_shard(0, {"index": arrays["index"][:1], "broken": arrays["broken.square"][:1]}, {"entry": "square"})
    (folder / "search.json").write_text("{")
    with pytest.raises(CheckpointError, match="how attacks searched"):
        result(job(path, "bf16"), folder, silent, resume=True)
    with pytest.raises(ResumeError, match="search: bf16 in the folder"):
        result(job(path, "auto"), folder, silent, resume=True)


def test_float32_is_what_it_was(path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe, no copy, no audit, no trace of any in what is written."""
    monkeypatch.setattr(Probe, "measure", lambda *rest: pytest.fail("measured"))
    monkeypatch.setattr(search, "FastCopy", lambda *rest: pytest.fail("copied"))
    arrays, report = result(job(path, "fp32", suite="quick", n=20), tmp_path / "run", silent)
    assert "search" not in report
    assert not any(name.startswith("judged") or name.endswith("audit") for name in arrays)
    assert "search" not in json.loads((tmp_path / "run" / "identity.json").read_text())
    assert not (tmp_path / "run" / "search.json").exists()


# The probe.


@pytest.fixture
def probe(path: Path) -> Asked:
    network = load_network(path).network.eval().requires_grad_(False)
    images = pick(load_test(Data(name="digits"))[0], 64, seed=1)
    return network, Judge(network, chunk=16), to_float(images.images), images.labels


def asking(probe: Asked, forwards: int) -> Probe:
    network, judge, x, y = probe
    return Probe(network, "final", judge, Threat("linf", 0.1), x, y, Draws(0, torch.arange(64), "probe"), forwards, pytest.fail)


def test_agreement_is_what_it_says(probe: Asked) -> None:
    network, judge, x, y = probe
    same = agreement(judge, network, [x], y)
    assert (same.bound, same.signs, same.holds) == (0.0, 1.0, True)
    folded, bf16 = (agreement(judge, FastCopy(network, name).network, [x], y) for name in ("folded", "bf16"))
    assert 0 < folded.bound < 1e-3 * bf16.bound
    assert folded.signs > bf16.signs > 0.9
    margins = [judge.margins(x, y), Judge(FastCopy(network, "bf16").network, chunk=16).margins(x, y)]
    error = (margins[0] - margins[1]).abs()
    assert float(error.quantile(0.99)) <= bf16.bound <= 2.01 * float(error.max())
    turned = agreement(judge, Noisy(network, 1.0), [x], y)  # type: ignore[arg-type]
    assert not turned.holds


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 1.2, 1.1), "fp32"),
        ((1.0, 0.95, 2.0), "fp32"),
        ((1.0, 0.8, 2.0), "folded"),
        ((1.0, 0.8, 0.4), "bf16"),
        ((1.0, 1.5, 0.4), "bf16"),
    ],
)
def test_auto_takes_the_quickest_that_agrees(
    probe: Asked, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], chosen: str
) -> None:
    monkeypatch.setattr(Probe, "_seconds", lambda *rest, **more: dict(zip(("fp32", "folded", "bf16"), seconds, strict=True)))
    settle = partial(asking(probe, 0).measure, "auto")
    monkeypatch.setattr(candidates, "agreement", lambda *rest: Agreement(0.01, 1.0, 0.99))
    assert settle().precision == chosen
    monkeypatch.setattr(candidates, "agreement", lambda *rest: Agreement(0.01, 1.0, 0.9))
    assert settle().precision == "fp32"
    monkeypatch.setattr(candidates, "agreement", lambda *rest: Agreement(0.2, 1.0, 0.99))
    assert settle().precision == "fp32"


class Interpreted(CompiledForward):
    """The same answers, moved by error, without a compiler."""

    def __init__(self, model: Network, error: float = 0.0) -> None:
        self.shapes: set[int] = set()

        def trace(x: Tensor) -> Any:
            self.shapes.add(len(x))
            output = model.trace(x)
            return output._replace(logits=output.logits + error * torch.eye(10)[0])

        self.trace = trace


@pytest.mark.parametrize(
    ("forwards", "second", "error", "taken"),
    [(10**9, 0.5, 0.0, True), (10**9, 0.95, 0.0, False), (10**9, 0.5, 0.01, False), (10, 0.5, 0.0, False)],
    ids=["quick", "slow", "wrong", "short"],
)
def test_forwards_are_compiled_where_that_pays_and_agrees(
    probe: Asked, monkeypatch: pytest.MonkeyPatch, forwards: int, second: float, error: float, taken: bool
) -> None:
    made: list[Interpreted] = []

    def compiled(model: Network) -> Interpreted:
        made.append(Interpreted(model, error))
        return made[-1]

    monkeypatch.setattr(search, "CompiledForward", compiled)
    seconds = {"fp32": 3.0, "folded": 1.0, "bf16": 1.0, COMPILED: second}
    monkeypatch.setattr(Probe, "_seconds", lambda self, models, *rest, **more: {name: seconds[name] for name in models})
    settled = asking(probe, forwards).measure("auto")
    assert (settled.precision, COMPILED in settled.agreements) == ("folded", taken)
    assert len(made) == (forwards > 10)
    assert all(follower.shapes == {16} for follower in made), "one shape, one graph"
    square = suites.suite("aa").entries(Threat("linf", 0.1), 10)[-1]
    assert settled.precision_of(square) == (COMPILED if taken else "folded")
    if taken:
        assert settled.seconds.items() >= {"folded forward": 1.0, "compiled forward": 0.5}.items()
        assert 0 < settled.error(COMPILED) < 1e-3
    monkeypatch.setattr(Probe, "_seconds", lambda *rest, **more: pytest.fail("what is asked for by name is not left to the clock"))
    assert set(asking(probe, forwards).measure("folded").agreements) == {"folded"}
    asked = asking(probe, forwards).measure(COMPILED)
    assert (asked.precision, set(asked.agreements)) == ("folded", {"folded", COMPILED})


def test_a_compiler_that_fails_costs_one_line(probe: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(CompiledForward):
        def __init__(self, model: Network) -> None:
            raise RuntimeError("no compiler here\nand much more")

    lines: list[str] = []
    monkeypatch.setattr(search, "CompiledForward", Broken)
    monkeypatch.setattr(Probe, "_seconds", lambda self, models, *rest, **more: {name: 3.0 if name == "fp32" else 1.0 for name in models})
    settled = replace(asking(probe, 10**9), noted=lines.append).measure("auto")
    assert lines == ["forwards are not compiled: no compiler here"]
    assert set(settled.agreements) == {"folded"}
    with pytest.raises(ResourceError, match="not compiled: no compiler here"):
        asking(probe, 10**9).measure(COMPILED)


@pytest.mark.usefixtures("short")
def test_a_compiled_search_goes_the_way_of_the_copy_and_on_after_a_stop(
    path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "CompiledForward", Interpreted)
    folded, _ = result(job(path, "folded"), tmp_path / "folded", silent)
    whole, _ = result(job(path, COMPILED), tmp_path / "whole", silent)
    assert set(folded) == set(whole)
    assert [name for name in folded if not np.array_equal(folded[name], whole[name], equal_nan=folded[name].dtype.kind == "f")] == []
    stop_in_square(silent, job(path, COMPILED), tmp_path / "stopped")
    result(job(path, COMPILED), tmp_path / "stopped", silent, resume=True)
    assert receipts(tmp_path / "stopped") == receipts(tmp_path / "whole")
    stop_in_square(silent, job(path, COMPILED), tmp_path / "moved")
    monkeypatch.setattr(search, "CompiledForward", MagicMock(side_effect=RuntimeError("no compiler on this machine")))
    with pytest.raises(ResourceError, match="no compiler on this machine"):
        result(job(path, COMPILED), tmp_path / "moved", silent, resume=True)


def stop_in_square(silent: Any, work: Job, folder: Path) -> None:
    """As Ctrl-C does, once Square has begun."""
    running: list[str] = []

    def advanced(*progress: Any) -> None:
        if running[-1] == "square":
            raise KeyboardInterrupt

    silent.attacking, silent.advanced = lambda name, *rest: running.append(name), advanced
    with pytest.raises(InterruptedRunError):
        result(work, folder, silent)
    silent.attacking = silent.advanced = lambda *rest: None


def test_who_only_answers_has_gradients_asked_of_another() -> None:
    """Counted once, and never of the compiled graph, which has none."""
    cost, asked = Cost(), list[str]()
    x, network = torch.rand(3, 3), lambda z: ModelOutput(2 * z, (), z, z)
    copy = Surrogate(lambda z: (asked.append("copy"), network(z))[1], cost)
    both = Surrogate(lambda z: (asked.append("graph"), network(z))[1], cost, follow=copy)
    gradient, _, _ = both.gradient(attack_loss("margin"), x, torch.zeros(3, dtype=torch.int64), {})
    assert bool((gradient[:, 0] == -2).all())
    both(x, {})
    assert (asked, cost.forwards, cost.backwards) == (["copy", "graph"], 6, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
def test_a_really_compiled_search_gives_the_same_bytes_after_a_stop(path: Path, silent: Any, tmp_path: Path) -> None:
    whole, report = result(job(path, COMPILED), tmp_path / "whole", silent)
    assert report["robust"] <= robust(result(job(path, "fp32"), tmp_path / "fp32", silent)[0]).mean() + 1 / N
    stop_in_square(silent, job(path, COMPILED), tmp_path / "stopped")
    result(job(path, COMPILED), tmp_path / "stopped", silent, resume=True)
    assert receipts(tmp_path / "stopped") == receipts(tmp_path / "whole")
    assert "judged.square" in whole


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("gates", [(), (ReverseAttention(name="reverse-attention"),)], ids=["plain", "gated"])
def test_a_compiled_forward_answers_as_the_copy_does(gates: tuple[Any, ...]) -> None:
    network = build(Architecture("resnet18", 0.0625, 5, 3, 16, gates=gates), 0).eval()
    copy = FastCopy(network, "folded").network
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = copy.trace(x), CompiledForward(copy).trace(x)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
    assert len(got.aux_logits) == len(gates)


def test_who_searches_in_what() -> None:
    entries = suites.suite("aa").entries(Threat("linf", 0.1), 10)
    settled = Search("bf16", "bf16", {}, {})
    assert [settled.precision_of(entry) for entry in entries] == ["bf16", "bf16", "folded", "folded"]
    assert settled.precision_of(search.audit(entries, 10)) == "fp32"
    assert {Search("fp32", "fp32", {}, {}).precision_of(entry) for entry in entries} == {"fp32"}


def test_auto_looks_where_there_is_something_to_gain(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, radius = load_network(path), Threat("linf", 0.1)
    asked = partial(session._search, loaded, radius)
    assert asked(Options(path, "aa")) == "fp32"  # a small network
    assert asked(Options(path, "aa", search="bf16")) == "bf16"
    monkeypatch.setattr(session, "FLOOR", 0.0)
    assert asked(Options(path, "aa")) == "auto"
    assert asked(Options(path, "quick")) == "fp32"  # a short suite
    assert asked(Options(path, "aa", engine="reference")) == "fp32"
    with pytest.raises(UsageError, match="searches in float32"):
        asked(Options(path, "aa", engine="reference", search="bf16"))


# The audit.


def test_the_audit_takes_a_small_part_of_the_passes() -> None:
    for name in ("quick", "fast", "aa", "aa-plus", "adaptive"):
        entries = suites.suite(name).entries(Threat("linf", 0.1), 10)
        total = sum(entry.attack.passes for entry in entries)
        for n in (100, 10_000):
            row = search.audit(entries, n)
            assert 0 < row.sample <= min(n, 256)
            assert row.sample * row.attack.passes <= 0.05 * n * total
            assert (row.attack, row.audits) == (entries[0].attack, entries[0].name)


@pytest.mark.usefixtures("short")
def test_the_audit_compares_the_same_attack_on_the_same_draws(
    path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A surrogate that is the network itself leaves nothing to disagree about, to the byte."""
    for module in (search, candidates):
        monkeypatch.setattr(module, "followed", lambda network, head, precision: network)
    arrays, report = result(job(path, "folded", suite="fast"), tmp_path / "run", silent)
    audited = arrays["run.audit"] >= 0
    assert report["search"]["audited"] == audited.sum() > 30
    for column in ("broken", "margin", "steps"):
        assert np.array_equal(arrays[f"{column}.audit"][audited], arrays[f"{column}.apgd-ce-20"][audited])
    assert report["search"]["agreement_verdict"] == 1.0
    assert report["attacks"]["audit"]["accuracy"] == report["robust"]
    asked = sum(arrays[f"judged.{name}"].sum() for name in report["attacks"])
    assert report["search"]["judge_calls"] == asked
    assert all((arrays[f"judged.{name}"] <= arrays[f"forwards.{name}"]).all() for name in report["attacks"])


@pytest.mark.parametrize(("missed", "gained", "raised"), [(0, 0, False), (9, 9, False), (1, 0, False), (20, 1, True)])
def test_a_search_that_misses_is_flagged(missed: int, gained: int, raised: bool) -> None:
    rows = np.arange(120)
    both = rows >= 90
    ledger = {"broken.audit": (rows < missed) | both, "broken.a": ((rows >= missed) & (rows < missed + gained)) | both}
    ledger["run.audit"] = np.where(rows < 100, 0, -1)
    column = audit.pairs(ledger, {"entries": [{"name": "a"}, {"name": "audit", "audits": "a"}]})
    assert (column >= 0).sum() == 100
    (flag,) = flags({}, {}, {"fast-search-misses": column}, {})
    assert (flag["raised"], flag["value"]) == (raised, (missed - gained) / 100)


@pytest.mark.usefixtures("short")
def test_what_the_audit_breaks_is_broken(path: Path, silent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that finds nothing: float32's finds are kept, flagged, and in the worst case."""
    monkeypatch.setattr(search, "followed", lambda network, head, precision: Blind(network))
    _, report = result(job(path, "bf16", suite="fast"), tmp_path / "run", silent)
    assert report["search"]["missed"] > 5
    assert "fast-search-misses" in {flag["name"] for flag in report["flags"] if flag["raised"]}
    assert report["verdict"] != "trustworthy"
    assert report["robust"] <= report["clean"] - report["search"]["missed"] / N + 1e-9


class Blind(nn.Module):
    """Flat and sure of itself."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def trace(self, x: Tensor) -> Any:
        output = self.network.trace(x)
        with torch.no_grad():
            sure = self.network.trace(x.round()).logits
        return output._replace(logits=1e3 * sure + 0 * output.logits)
