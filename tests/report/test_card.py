"""Model cards: what the receipts say, in the hub's layout, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save
from typer.testing import CliRunner
from written import first, write_evaluation

from advcli.cli.app import app
from advcli.errors import CheckpointError, UsageError
from advcli.evaluation.stored import open_evaluation
from advcli.recipe import load
from advcli.report import card
from advcli.report.terminal import percent
from advcli.runs import atomic, container
from advcli.runs.folder import store_recipe

HEADER: dict[str, Any] = {
    "name": "net",
    "architecture": {"arch": "small-cnn", "width": 0.5, "channels": 1, "size": 8, "gates": [{"name": "reverse-attention"}]},
    "classes": ["zero", "one"],
    "data": {"name": "digits", "validation": 150},
    "threat": {"norm": "linf", "eps": "0.15"},
    "objective": {"name": "trades", "terms": [{"name": "negative-contrast"}], "wrapper": None},
    "epoch": 17,
    "seed": 4,
    "precision": "fp32",
    "selection": {"metric": "pgd-10", "split": "validation", "measured": None},
    "recipe_sha256": "e" * 64,
    "versions": {"advcli": "0.1.0", "torch": "2.15.0"},
}

NUMBER = r"\d+(?:\.\d+)*"


def write_model(path: Path, **changes: Any) -> str:
    """A model file with one tensor; the digest of its weights."""
    tensors = {"w": np.zeros(3, np.float32)}
    digest = container.tensors_digest(save(tensors))
    atomic.make_folder(path.parent)
    atomic.write_bytes(path, save(tensors, metadata=container.seal({**HEADER, **changes}, "model", digest)))
    return digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run's model with two evaluations."""
    path = tmp_path / "net" / "model.safetensors"
    weights = write_model(path)
    store_recipe(path.parent, load("quickstart"))
    gates = ["reverse-attention"]
    for suite, n, right in (("quick", 20, 13), ("adaptive", 30, 11)):
        folder = write_evaluation(
            path.parent / "evals" / f"{suite}-1", clean=first(n - 1, n), attacks={"a": first(right, n)}, suite=suite, weights=weights
        )
        _gated(folder, gates)
    return path


def _gated(folder: Path, gates: list[str]) -> None:
    from advcli.runs.ledger import Ledger

    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    header["identity"]["architecture"]["gates"] = [{"name": name} for name in gates]
    ledger.finish(arrays, header)


def front(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(head))


def test_the_front_matter_is_what_the_hub_reads_and_what_the_ledgers_hold(model: Path) -> None:
    head = front(card.render(model))
    assert head["library_name"] == "advcli"
    assert head["pipeline_tag"] == "image-classification"
    assert head["datasets"] == ["digits"]
    assert head["tags"] == ["adversarial-robustness", "small-cnn", "trades", "negative-contrast", "reverse-attention"]
    [entry] = head["model-index"]
    [result] = entry["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    reports = [open_evaluation(folder).report for folder in sorted((model.parent / "evals").iterdir())]
    assert [row["value"] for row in result["metrics"]] == [value for r in reports for value in (r["clean"], r["robust"])]
    assert {row["type"] for row in result["metrics"]} == {"accuracy"}
    robust = [row["name"] for row in result["metrics"] if row["name"].startswith("robust")]
    assert all("linf eps 0.15" in name and "n = " in name for name in robust)
    assert "upper bound" in robust[1]


def test_every_number_is_in_a_receipt(model: Path) -> None:
    """Decimals and percents of the text, one by one, against headers and ledgers."""
    body = card.render(model).split("---\n", 2)[2].split("## Citation")[0]
    header = container.read_header(model, "model")
    known = [json.dumps(header), str(len(header["classes"])), str(model), "95 [0, 1] SHA-256"]
    percents = set()
    for folder in (model.parent / "evals").iterdir():
        evaluation = open_evaluation(folder)
        report, classes = evaluation.report, evaluation.report["per_class"].values()
        known += [json.dumps(evaluation.header), folder.name, str(report["n"]), *(str(row["n"]) for row in classes)]
        values = [report["clean"], report["robust"], *report["ci"], *(row["robust"] for row in classes)]
        percents |= {percent(value) for value in values}
    receipts = set(re.findall(NUMBER, " ".join(known)))
    numbers = re.findall(NUMBER, body)
    assert len(numbers) > 30
    assert set(numbers) <= receipts | percents


def test_a_number_from_nowhere_would_be_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = card.render
    monkeypatch.setattr(card, "render", lambda path: real(path).replace("Clean accuracy", "Clean accuracy 12.3"))
    with pytest.raises(AssertionError):
        test_every_number_is_in_a_receipt(model)


def test_what_leads_is_the_hardest_suite(model: Path) -> None:
    text = card.render(model)
    assert "**Robust accuracy 36.7 %** [21.9, 54.5], upper bound" not in text  # gated is what the ledger says, and it says not
    assert "**Robust accuracy 36.7 %** [21.9, 54.5], trustworthy" in text


@pytest.mark.parametrize("damage", ["header", "tensors", "short", "none", "ledger"])
def test_damage_is_refused_with_exit_3(model: Path, damage: str) -> None:
    file = model.parent / "evals" / "quick-1" / "ledger" / "ledger.safetensors" if damage == "ledger" else model
    data = bytearray(file.read_bytes())
    if damage == "short":
        data = data[:-1]
    elif damage == "header":
        data[200] ^= 1
    else:
        data[-1] ^= 1
    file.write_bytes(data) if damage != "none" else file.unlink()
    done = CliRunner().invoke(app, ["card", str(model)], catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (3, "")


@pytest.mark.parametrize("changes", [{"architecture": {}}, {"classes": None}, {"data": []}, {"threat": {"norm": "linf"}}])
def test_a_header_that_tells_too_little_is_refused(model: Path, changes: dict[str, Any]) -> None:
    write_model(model, **changes)
    with pytest.raises(CheckpointError, match="the header does not tell"):
        card.render(model)


def test_names_are_never_markup(model: Path) -> None:
    hostile = "# x\n<script>|[a](http://evil.example)`*"
    write_model(model, classes=[hostile, "---"], data={"name": hostile})
    text = card.render(model)
    assert "\\<script\\>\\|\\[a\\]" in text
    assert not re.search(r"^# x", text, re.MULTILINE)
    assert front(text)["datasets"] == [hostile]


def test_weights_without_evaluations_say_that_nothing_is_known(tmp_path: Path) -> None:
    write_model(tmp_path / "a.safetensors")
    text = card.render(tmp_path / "a.safetensors")
    assert "robust accuracy is not known" in text
    assert "model-index" not in front(text)


def test_evaluations_of_other_weights_are_left_out(model: Path) -> None:
    write_evaluation(model.parent / "evals" / "aa-9", clean=first(20), attacks={"a": first(20)}, suite="aa", weights="others")
    assert "aa/1" not in card.render(model)


def test_the_command_prints_or_writes_and_overwrites_nothing(model: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["card", str(model.parent)], catch_exceptions=False)
    assert done.stdout == card.render(model)
    file = tmp_path / "new" / "README.md"
    CliRunner().invoke(app, ["card", str(model), "-o", str(file)], catch_exceptions=False)
    assert file.read_text() == done.stdout
    with pytest.raises(UsageError, match="nothing is overwritten"):
        card.write(model, file)
