"""Attacks crafted on another network: nothing of the target's gradient, all of its judgement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advcli.attacks import Surrogate
from advcli.cli.app import app
from advcli.data import load_test, to_float
from advcli.errors import CheckpointError, UsageError
from advcli.evaluation import matrix, verify
from advcli.evaluation.session import Options, run
from advcli.recipe.schema import Data
from advcli.report import terminal
from advcli.runs.checkpoint import load_network
from advcli.runs.ledger import Ledger
from advcli.training import session as training

N = 24


@pytest.fixture(scope="module")
def others(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two networks trained on the same images with other seeds; read only."""
    from advcli.recipe import load

    class Silent:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **kwargs: None

    root = tmp_path_factory.mktemp("sources")
    small = ["model.width=0.25", "schedule.epochs=2", "objective={name: standard}", "~craft", "name=other", "select.metric=last"]
    for seed in (1, 2):
        training.run(load("quickstart", [*small, f"seed={seed}"]), Silent(), out=root / str(seed), resume=False, device="cpu")
    return root / "1" / "model.safetensors", root / "2" / "model.safetensors"


def transfer(checkpoint: Path, silent: Any, *sources: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    whole = {"n": N, "device": "cpu", "batch_size": 8, **options}
    return run(Options(checkpoint, "transfer", source=sources, **whole), silent)


def label(path: Path) -> str:
    return f"other-{load_network(path).header['tensors_sha256'][:8]}"


def test_each_source_crafts_and_the_target_judges(checkpoint: Path, others: tuple[Path, Path], silent: Any) -> None:
    folder, report = transfer(checkpoint, silent, *others, eps="0.3")
    names = [f"{attack}@{label(path)}" for path in others for attack in ("pgd-100", "mim-100")]
    assert list(report["attacks"]) == names
    assert all(row["on"] == "all" for row in report["attacks"].values())
    assert report["verdict"] == "upper bound"
    assert report["robust"] < report["clean"], "at a radius of 0.3 something transfers"
    arrays, _ = Ledger(folder / "ledger").read()
    for name in names:
        attacked = arrays[f"run.{name}"] >= 0
        assert (arrays[f"forwards.{name}"][attacked] == 101).all(), "all steps, and one look by the target"
        assert (arrays[f"backwards.{name}"][attacked] == 100).all()
        assert (arrays[f"steps.{name}"][arrays[f"broken.{name}"]] == 100).all()
    checked = verify.check(verify.gather(folder, checkpoint=None, data_root=None), device=torch.device("cpu"), quantize=False)
    assert (checked["failures"], checked["robust"]) == ([], report["robust"])


def test_the_gradient_is_the_source_s(checkpoint: Path, others: tuple[Path, Path], silent: Any) -> None:
    """MIM has no random start, so its point can be crafted again by hand: 100 steps on the source, against the true labels."""
    eps = 0.3
    folder, _ = transfer(checkpoint, silent, others[0], eps=str(eps))
    arrays, header = Ledger(folder / "ledger").read()
    mim = header["entries"][1]["name"]
    rows = arrays["adversarial_index"][[arrays["found_by"][arrays["index"].tolist().index(i)] == 1 for i in arrays["adversarial_index"]]]
    split, _ = load_test(Data(name="digits"))
    source = load_network(others[0]).network
    kept = dict(zip(arrays["adversarial_index"].tolist(), arrays["adversarial"], strict=True))
    broken = arrays["index"][arrays[f"broken.{mim}"]].tolist()
    assert set(rows.tolist()) <= set(broken)
    for i in rows.tolist()[:2]:
        x, y = to_float(split.images[i : i + 1]), split.labels[i : i + 1]
        x_adv, velocity = x.clone(), torch.zeros_like(x)
        for _ in range(100):
            loss = lambda output, y, condition: torch.nn.functional.cross_entropy(output.logits, y, reduction="none")  # noqa: E731
            gradient, _, _ = Surrogate(source.trace).gradient(loss, x_adv, y, {})
            velocity = velocity + gradient / gradient.abs().mean().clamp_min(1e-12)
            x_adv = torch.max(torch.min(x_adv + eps / 10 * velocity.sign(), x + eps), x - eps).clamp(0, 1)
        assert float((x_adv[0] - torch.from_numpy(kept[i])).abs().max()) < 1e-4


def test_sources_are_part_of_the_identity(checkpoint: Path, others: tuple[Path, Path], silent: Any) -> None:
    one, _ = transfer(checkpoint, silent, others[0], n=4)
    two, _ = transfer(checkpoint, silent, others[1], n=4)
    assert one != two
    stored = json.loads((one / "identity.json").read_text())
    assert stored["sources"] == [load_network(others[0]).header["tensors_sha256"]]
    plain, _ = run(Options(checkpoint, "quick", n=4, device="cpu"), silent)
    assert "sources" not in json.loads((plain / "identity.json").read_text()), "identities of other suites are what they were"


def test_what_cannot_be_a_source_is_refused(checkpoint: Path, others: tuple[Path, Path], silent: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs other networks"):
        transfer(checkpoint, silent)
    with pytest.raises(UsageError, match="suite quick has no sources"):
        run(Options(checkpoint, "quick", n=4, device="cpu", source=(others[0],)), silent)
    with pytest.raises(UsageError, match="the checkpoint itself"):
        transfer(checkpoint, silent, checkpoint)
    with pytest.raises(UsageError, match="named twice"):
        transfer(checkpoint, silent, others[0], others[0])
    with pytest.raises(CheckpointError, match="no such model"):
        transfer(checkpoint, silent, tmp_path / "absent")
    assert not (checkpoint.parent / "evals").exists()


def test_a_source_of_other_classes_is_refused(
    checkpoint: Path, others: tuple[Path, Path], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from advcli.evaluation import session

    def renamed(path: Path) -> Any:
        loaded = load_network(path)
        return (
            loaded if path == checkpoint else type(loaded)(loaded.network, loaded.architecture, {**loaded.header, "classes": ["a"]}, path)
        )

    monkeypatch.setattr(session, "load_network", renamed)
    with pytest.raises(CheckpointError, match="other classes or images"):
        transfer(checkpoint, silent, others[0])


def test_the_command_takes_sources(checkpoint: Path, others: tuple[Path, Path]) -> None:
    words = ["attack", str(checkpoint), "--suite", "transfer", "--n", "4", "--quiet", "--json"]
    done = CliRunner().invoke(app, [*words, "--source", str(others[0]), "--source", str(others[1].parent)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["attacks"]) == 4


# Several targets.


def table(checkpoint: Path, others: tuple[Path, Path], silent: Any, tmp_path: Path) -> dict[str, Any]:
    options = Options(checkpoint, "transfer", source=(checkpoint, *others), n=N, device="cpu", batch_size=8, eps="0.3", out=tmp_path / "m")
    return matrix.run(options, [checkpoint, others[0]], silent)


def test_a_matrix_is_its_evaluations_side_by_side(checkpoint: Path, others: tuple[Path, Path], silent: Any, tmp_path: Path) -> None:
    found = table(checkpoint, others, silent, tmp_path)
    assert [row["target"] for row in found["matrix"]] == [str(checkpoint), str(others[0])]
    first, second = (row["sources"] for row in found["matrix"])
    assert list(first) == [label(path) for path in others], "a network is no source of its own"
    assert list(second) == [next(key for key in second if key not in first), label(others[1])]
    folder, alone = transfer(checkpoint, silent, others[0], eps="0.3", out=tmp_path / "alone")
    cell = first[label(others[0])]
    assert cell["robust"] == alone["robust"]
    assert cell["ci"] == alone["ci"]
    assert cell["attacks"] == {name.partition("@")[0]: row["accuracy"] for name, row in alone["attacks"].items()}
    assert cell["robust"] <= min(cell["attacks"].values())
    assert found["verdict"] == "upper bound"
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [f"1-{checkpoint.parent.name}", f"2-{others[0].parent.name}"]
    assert folder.is_dir()


def test_the_matrix_fits_and_ends_with_a_number(
    checkpoint: Path, others: tuple[Path, Path], silent: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = table(checkpoint, others, silent, tmp_path)
    terminal.show_matrix(found)
    lines = capsys.readouterr().out.splitlines()
    lowest = max(min(cell["robust"] for cell in row["sources"].values()) for row in found["matrix"])
    assert lines[-1].startswith(f"robust {100 * lowest:.1f} % [")
    assert lines[-1].endswith("an upper bound")
    assert any(line.count("-") and "net" in line for line in lines)


@pytest.mark.parametrize(
    ("suite", "twice", "sources", "what"),
    [
        ("quick", False, 2, "several checkpoints make a transfer matrix"),
        ("transfer", True, 2, "named twice"),
        ("transfer", False, 1, "no source is left"),
    ],
)
def test_matrices_that_cannot_be(
    suite: str, twice: bool, sources: int, what: str, checkpoint: Path, others: tuple[Path, Path], silent: Any
) -> None:
    targets = [checkpoint, checkpoint if twice else others[0]]
    with pytest.raises(UsageError, match=what):
        matrix.run(Options(checkpoint, suite, source=others[:sources], n=N), targets, silent)
    assert not (checkpoint.parent / "evals").exists(), "nothing was begun"
