"""advcli visualize of logs, ledgers and reports: files and data of every kind, without torch, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from written import first, write_attacked_run, write_evaluation

from advcli.cli.app import app

RECORDS = ("curves", "tradeoff", "security", "steps", "deploy", "sweep")


def visualize(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["visualize", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/a and runs/b, which differ in craft.steps: logs, two radii, quick and aa; gated/quick-1 on the same images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name, steps in (("a", 2), ("b", 5)):
        run = write_attacked_run(name, f"craft.steps={steps}", quick=10 + steps, aa=8)
        event = {"epoch": 40, "lr": 0.1, "loss": 1.0, "validation": {"n": 9, "clean": 0.9, "robust": 0.5}, "selected": True}
        (run / "metrics.jsonl").write_text(json.dumps(event) + "\n")
        weights = json.loads((run / "evals/quick-1/identity.json").read_text())["tensors_sha256"]
        write_evaluation(run / "evals/quick-2", clean=first(18), attacks={"pgd-20": first(3)}, eps="0.3", weights=weights, on="survivors")
    write_evaluation(Path("gated/quick-1"), clean=first(18), attacks={"pgd-20": first(16)}, gates=["reverse-attention"])


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_writes_its_files_and_tells_its_data(kind: str) -> None:
    folders = ["runs/a/evals/quick-1", "gated/quick-1"] if kind == "deploy" else ["runs/a", "runs/b"]
    done = visualize(kind, *folders)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("figures").iterdir()) == [f"{kind}.png", f"{kind}.svg"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    whole = json.loads(visualize(kind, *folders, "--json").stdout)
    assert (whole["kind"], whole["files"]) == (kind, [f"figures/{kind}.png", f"figures/{kind}.svg"]), "drawn again, and the same"
    rows = list(csv.DictReader(io.StringIO(visualize(kind, *folders, "--csv").stdout)))
    assert [list(row) for row in rows] == [list(row) for row in whole["rows"]]
    assert " ".join(done.stdout.split()).endswith(whole["headline"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["curves", "absent"], 3, "no training log to draw"),
        (["curves"], 2, "RUN"),
        (["tradeoff", "runs/a", "--curve", "svhn"], 2, "is not one of"),
        (["tradeoff", "runs/a", "--column", "adaptive"], 3, "no run has a number for adaptive"),
        (["security", "gated"], 3, "no security curve to draw"),
        (["steps", "runs/a", "--suite", "fast"], 3, "no run has an evaluation of suite fast"),
        (["deploy", "runs/a"], 2, "make a pair"),
        (["sweep", "runs/a", "runs/b", "--field", "optim.lrr"], 2, "they differ in craft.steps"),
        (["sweep", "runs/a", "runs/b", "--column", "quick/none"], 2, "has no reading 'none'"),
        (["sweep", "runs/a", "--json", "--csv"], 2, "one of --json and --csv"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: list[str], code: int, says: str) -> None:
    done = visualize(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert not Path("figures").exists()


def test_they_are_drawn_without_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from advcli.cli.app import app\n"
        "for kind in ('curves', 'tradeoff', 'security', 'steps', 'sweep'):\n"
        "    assert CliRunner().invoke(app, ['visualize', kind, 'runs/a', 'runs/b']).exit_code == 0, kind\n"
        "assert CliRunner().invoke(app, ['visualize', 'deploy', 'runs/a/evals/quick-1', 'gated/quick-1']).exit_code == 0\n"
        "print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "['matplotlib']\n", done.stderr
