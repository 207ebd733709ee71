"""What a page is about: the evaluation that leads, the run it lies in, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from seen import draw
from typer.testing import CliRunner
from written import first, write_evaluation, write_run

from advcli.cli.app import app
from advcli.errors import CheckpointError
from advcli.evaluation.stored import open_evaluation
from advcli.report import subject


@pytest.mark.parametrize("suite", ["adaptive", "full"])
def test_a_suite_that_knows_gates_leads(run: Path, suite: str) -> None:
    weights = open_evaluation(run / "evals" / "aa-1").header["identity"]["tensors_sha256"]
    write_evaluation(run / "evals" / "z", clean=first(9, 10), attacks={"apgd-ce": first(9, 10)}, suite=suite, weights=weights)
    found = subject.of(run)
    assert found.evaluation is not None
    assert found.evaluation.suite == suite
    assert [e.suite for e in found.others] == ["aa", "quick"]


def test_other_threats_and_training_images_do_not_lead(run: Path) -> None:
    weights = open_evaluation(run / "evals" / "aa-1").header["identity"]["tensors_sha256"]
    for name, other in (("a", {"eps": "0.3"}), ("b", {"split": "train"}), ("c", {"data": "svhn"})):
        write_evaluation(run / "evals" / name, clean=first(40, 40), attacks={"x": first(40, 40)}, suite="full", weights=weights, **other)
    found = subject.of(run).evaluation
    assert found is not None
    assert found.suite == "aa"


# What is not there.


def test_a_run_that_was_not_attacked_says_so_and_names_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "net")
    text = draw(tmp_path / "net").text
    assert "not known" in text
    assert f"advcli attack {tmp_path / 'net'} --suite aa" in text


def test_an_unfinished_evaluation_is_named(run: Path) -> None:
    (run / "evals" / "fast-1" / "ledger").mkdir(parents=True)
    assert "fast-1: the fast-1 evaluation is not finished" in draw(run).text


def test_an_evaluation_alone_has_a_page(run: Path, tmp_path: Path) -> None:
    alone = write_evaluation(tmp_path / "alone", clean=first(18), attacks={"fgsm": first(15)})
    text = draw(alone).text
    assert "75.0 %" in text
    assert "Recipe" not in text


def test_a_run_of_other_weights_is_left_out(run: Path) -> None:
    other = write_evaluation(run / "evals" / "old", clean=first(18), attacks={"fgsm": first(15)}, weights="others")
    text = draw(other).text
    assert "the run folder holds other weights" in text
    assert "Recipe" not in text


def test_damage_beside_an_evaluation_takes_nothing_from_it(run: Path) -> None:
    (run / "evals" / "quick-1" / "ledger" / "ledger.safetensors").write_bytes(b"damaged")
    text = draw(run / "evals" / "aa-1").text
    assert "55.0 %" in text
    assert "the run folder could not be read" in text
    with pytest.raises(CheckpointError):
        subject.of(run)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["nothing", "an empty folder"])
def test_where_there_is_nothing_the_command_says_so(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x")
    assert CliRunner().invoke(app, ["report", str(tmp_path / "x")]).exit_code == 3


def test_a_broken_ledger_is_exit_3(run: Path) -> None:
    file = run / "evals" / "aa-1" / "ledger" / "ledger.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert CliRunner().invoke(app, ["report", str(run / "evals" / "aa-1")]).exit_code == 3
