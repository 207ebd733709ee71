"""advcli visualize: files, data, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advcli.cli.app import app


def visualize(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["visualize", *map(str, arguments)], catch_exceptions=False)


def test_files_land_in_the_run_and_the_headline_comes_last(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = visualize("perturbations", checkpoint.parent, "--n", 2)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (checkpoint.parent / "figures").iterdir()) == ["perturbations.png", "perturbations.svg"]
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("that were classified right are fooled")
    assert str(checkpoint.parent / "figures" / "perturbations.png") in lines


def test_data_comes_out_as_json_and_as_csv(checkpoint: Path, tmp_path: Path) -> None:
    done = visualize("perturbations", checkpoint, "--n", 3, "-o", tmp_path / "out", "--json")
    whole = json.loads(done.stdout)
    assert whole["files"] == [str(tmp_path / "out" / f"perturbations.{form}") for form in ("png", "svg")]
    rows = list(csv.DictReader(io.StringIO(visualize("perturbations", checkpoint, "--n", 3, "-o", tmp_path / "out", "--csv").stdout)))
    assert [row["index"] for row in rows] == [str(row["index"]) for row in whole["rows"]]
    assert len(list((tmp_path / "out").iterdir())) == 2  # drawn twice, and the same


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense", "runs/a"], 2, "there is no figure 'nonsense'"),
        (["nonsense", "runs/a"], 2, "perturbations"),
        (["perturbations"], 2, "RUN"),
        (["perturbations", "absent"], 3, "there is no such model file"),
        (["perturbations", "{run}", "--json", "--csv"], 2, "one of --json and --csv"),
        (["channels", "{run}", "{run}"], 2, "a run is named twice"),
        (["embedding", "{run}", "--n", "1"], 3, "too few"),
        (["embedding", "{run}", "--class", "x"], 2, "there is no class 'x'"),
        (["perturbations", "{run}", "--attack", "aa"], 3, "no finished aa evaluation"),
        (["perturbations", "{run}", "--data", "nonsense"], 2, "is not known"),
        (["perturbations", "{run}", "--device", "nonsense"], 2, "cannot be used"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: list[str], code: int, says: str, checkpoint: Path) -> None:
    done = visualize(*(argument.format(run=checkpoint) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert not (checkpoint.parent / "figures").exists()


def test_an_empty_folder_and_a_foreign_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "empty").mkdir()
    for run, says in ((tmp_path, "a Python pickle"), (tmp_path / "empty", "there is no such model file")):
        done = visualize("perturbations", run)
        assert (done.exit_code, done.stdout) == (3, "")
        assert says in " ".join(done.stderr.replace("│", " ").split())
