"""Receipts are checked again without an attack, and every way in which one can be false is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from advcli.cli.app import app
from advcli.errors import CheckpointError, UsageError
from advcli.evaluation import verify
from advcli.evaluation.session import Options, run
from advcli.runs.ledger import Arrays, Ledger

CPU = torch.device("cpu")


@pytest.fixture
def evaluation(checkpoint: Path, silent: Any) -> Path:
    """A finished evaluation beside its checkpoint, with broken and robust images."""
    folder, report = run(Options(checkpoint, "quick", n=40, batch_size=32, device="cpu"), silent)
    assert 0 < report["robust"] < report["clean"]
    return folder


def gather(folder: Path) -> verify.Evidence:
    return verify.gather(folder, checkpoint=None, data_root=None)


def tamper(folder: Path, change: Callable[[Arrays, dict[str, Any]], None]) -> None:
    """Rewrite the ledger, properly sealed, with something in it changed."""
    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, header)
    ledger.finish(arrays, {key: value for key, value in header.items() if key not in ("kind", "format", "tensors_sha256")})


def test_an_honest_evaluation_holds(evaluation: Path) -> None:
    result = verify.check(gather(evaluation), device=CPU, quantize=False)
    report = json.loads((evaluation / "report.json").read_text())
    assert result["failures"] == []
    assert result["robust"] == report["robust"]
    assert result["checked"] == round((report["clean"] - report["robust"]) * report["n"])


def shift(arrays: Arrays, header: dict[str, Any]) -> None:
    first = arrays["adversarial"][0]
    first += np.where(first < 0.5, 0.4, -0.4).astype(np.float32)


def leave_box(arrays: Arrays, header: dict[str, Any]) -> None:
    arrays["adversarial"][0, 0, 0, 0] = -0.01


def spoil(arrays: Arrays, header: dict[str, Any]) -> None:
    arrays["adversarial"][0, 0, 0, 0] = np.nan


def lose_one(arrays: Arrays, header: dict[str, Any]) -> None:
    arrays["adversarial"], arrays["adversarial_index"] = arrays["adversarial"][1:], arrays["adversarial_index"][1:]


def claim_more(arrays: Arrays, header: dict[str, Any]) -> None:
    """One robust image fewer than the report says."""
    row = int(np.flatnonzero((arrays["found_by"] < 0) & (arrays["clean_margin"] < -header["bound"]))[0])
    arrays["broken.fgsm"][row], arrays["steps.fgsm"][row], arrays["found_by"][row] = True, 1, 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shift, "is over eps"),
        (leave_box, "pixels outside"),
        (spoil, "pixels outside"),
        (lose_one, "no adversarial example is stored"),
        (claim_more, "report.json differs"),
    ],
)
def test_what_does_not_hold_is_found_and_exits_4(evaluation: Path, change: Any, reason: str) -> None:
    tamper(evaluation, change)
    failures = verify.check(gather(evaluation), device=CPU, quantize=False)["failures"]
    assert any(reason in failure["reason"] for failure in failures)
    result = CliRunner().invoke(app, ["verify", str(evaluation), "--device", "cpu"])
    assert result.exit_code == 4
    assert "Traceback" not in result.output


def test_a_clean_image_is_no_adversarial_example(evaluation: Path) -> None:
    evidence = gather(evaluation)
    row = int(np.searchsorted(evidence.ledger["index"], evidence.ledger["adversarial_index"][0]))
    clean = evidence.images.images[row].float().numpy() / 255

    def change(arrays: Arrays, header: dict[str, Any]) -> None:
        arrays["adversarial"][0] = clean

    tamper(evaluation, change)
    (failure,) = verify.check(gather(evaluation), device=CPU, quantize=False)["failures"]
    assert failure["index"] == evidence.ledger["adversarial_index"][0]
    assert "classified right" in failure["reason"]


def test_rounding_to_8_bits_is_checked_on_rounded_images(evaluation: Path) -> None:
    """An example that only float pixels can hold passes as stored and fails as a file."""
    evidence = gather(evaluation)
    x_adv = torch.from_numpy(evidence.ledger["adversarial"])
    rows = torch.from_numpy(np.searchsorted(evidence.ledger["index"], evidence.ledger["adversarial_index"]))
    with torch.no_grad():
        logits = evidence.loaded.network((x_adv * 255).round() / 255)
    held = (logits.argmax(1) != evidence.images.labels[rows]).tolist()
    failures = verify.check(evidence, device=CPU, quantize=True)["failures"]
    expected = [int(i) for i, ok in zip(evidence.ledger["adversarial_index"], held, strict=True) if not ok]
    assert [f["index"] for f in failures if "classified right" in f["reason"]] == expected


def test_another_checkpoint_or_folder_is_refused(evaluation: Path, checkpoint: Path, tmp_path: Path) -> None:
    from advcli.runs.checkpoint import load_network, write_network

    loaded = load_network(checkpoint)
    with torch.no_grad():
        loaded.network.linear.bias += 1e-3
    other = tmp_path / "other.safetensors"
    header = {key: value for key, value in loaded.header.items() if key not in ("kind", "format", "tensors_sha256")}
    write_network(other, loaded.network, loaded.architecture, header)
    with pytest.raises(CheckpointError, match="the checkpoint is not what"):
        verify.gather(evaluation, checkpoint=other, data_root=None)
    with pytest.raises(CheckpointError, match="no evaluation here"):
        verify.gather(tmp_path, checkpoint=None, data_root=None)


def test_a_moved_run_folder_still_finds_its_checkpoint(evaluation: Path, checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    checkpoint.parent.rename(moved)
    assert gather(moved / "evals" / evaluation.name).loaded.path == (moved / "model.safetensors").resolve()


def test_explain_tells_each_fate(evaluation: Path) -> None:
    evidence = gather(evaluation)
    ledger, header = evidence.ledger, evidence.header
    for row in range(len(ledger["index"])):
        story = verify.explain(evidence, int(ledger["index"][row]))
        tried = [entry["name"] for entry in header["entries"]] if ledger["clean_margin"][row] < -header["bound"] else []
        assert [attack["name"] for attack in story["attacks"]] == tried
        first = next((attack["name"] for attack in story["attacks"] if attack["broken"]), None)
        assert story["found_by"] == first
        assert story["robust"] == (bool(tried) and first is None)
    with pytest.raises(UsageError, match="not part of"):
        verify.explain(evidence, 10**6)


def test_the_export_holds_all_images_and_the_true_numbers(evaluation: Path, tmp_path: Path) -> None:
    evidence = gather(evaluation)
    verify.export_robustbench(evidence, tmp_path / "out")
    images = torch.load(tmp_path / "out" / "adversarial.pt", weights_only=True)
    with torch.no_grad():
        right = evidence.loaded.network(images).argmax(1) == evidence.images.labels
    fields = json.loads((tmp_path / "out" / "model.json").read_text())
    assert images.shape == evidence.images.images.shape
    assert fields["external"] == f"{100 * right.float().mean().item():.2f}"
    with pytest.raises(UsageError, match="not empty"):
        verify.export_robustbench(evidence, tmp_path / "out")


def test_the_command_line(evaluation: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["verify", str(evaluation), "--json", "--device", "cpu"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["failures"] == []
    index = int(gather(evaluation).ledger["adversarial_index"][0])
    told = runner.invoke(app, ["verify", str(evaluation), "--explain", str(index)])
    assert told.exit_code == 0
    assert "broken by" in told.stdout.splitlines()[-1]
    assert runner.invoke(app, ["verify", str(evaluation.parent)]).exit_code == 3
