"""advcli compare on networks that were trained and attacked for it, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advcli.cli.app import app


def advcli_(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def runs(tiny_overrides: Sequence[str], one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs/a-0, a-1 (two seeds) and b (fewer crafting steps), each attacked on 60 images; read only."""
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, overrides in (("a-0", ["seed=0"]), ("a-1", ["seed=1"]), ("b", ["name=b", "craft.steps=1"])):
            done = advcli_("adv-train", "quickstart", *tiny_overrides, *overrides, "--quiet", "--out", f"runs/{name}")
            assert done.exit_code == 0, done.output
            assert advcli_("attack", f"runs/{name}", "--n", 60, "--quiet").exit_code == 0
    return root


@pytest.fixture(autouse=True)
def _there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("COLUMNS", "80")


def stored(run: str) -> tuple[Path, dict[str, Any]]:
    (folder,) = Path("runs", run, "evals").iterdir()
    return folder, json.loads((folder / "report.json").read_text())


def test_runs_fold_to_what_their_reports_say() -> None:
    done = advcli_("compare", "runs/a-0", "runs/a-1", "runs/b", "--json")
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    reports = [stored(run)[1] for run in ("a-0", "a-1", "b")]
    first, second = table["rows"]
    assert (first["name"], first["seeds"], second["name"]) == ("quickstart", [0, 1], "b")
    for column, key in (("clean", "clean"), ("quick", "robust")):
        assert first["cells"][column]["mean"] == pytest.approx((reports[0][key] + reports[1][key]) / 2)
        assert second["cells"][column]["mean"] == reports[2][key]
    assert second["cells"]["quick"]["ci"] == reports[2]["ci"]
    assert (first["verdict"], table["columns"][1]["upper_bound"]) == ("upper bound", True)


def test_a_table_for_people_and_one_for_a_page() -> None:
    done = advcli_("compare", "runs/a-0", "runs/a-1", "runs/b", "--column", "quick/pgd-20", "--column", "aa/worst")
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "* an upper bound" in text
    assert "no aa evaluation: advcli attack runs/a-0 --suite aa" in text
    assert text.endswith("linf eps 0.15, digits test, n = 60")
    assert max(map(len, done.stdout.splitlines())) <= 80
    page = advcli_("compare", "runs/a-0", "runs/b", "--format", "markdown")
    assert page.stdout.startswith("| method | seeds | clean % | quick %\\* | verdict |\n| --- |")


def test_evaluations_are_paired() -> None:
    (a, report_a), (b, report_b) = stored("a-0"), stored("b")
    done = advcli_("compare", a, b, "--json")
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    assert [row["robust"] for row in table["evaluations"]] == [report_a["robust"], report_b["robust"]]
    (row,) = table["comparisons"]
    assert row["robust"]["difference"] == pytest.approx(report_b["robust"] - report_a["robust"])
    assert row["attacks"].keys() == report_a["attacks"].keys()
    assert (row["robust"]["only_this"] - row["robust"]["only_first"]) / 60 == row["robust"]["difference"]
    shown = advcli_("compare", a, b)
    assert "points of upper bounds, p" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "RUN-OR-EVAL"),
        (["runs/absent"], 3, "there is no such folder"),
        (["runs"], 3, "there is no run and no evaluation here"),
        (["runs/a-0", "runs/a-0"], 2, "a run is named twice"),
        (["runs/b", "--json", "--format", "csv"], 2, "one of --json and --format"),
        (["runs/b", "--paper", "nonsense"], 2, "one of again, ancra, arrest, stayfocused"),
        (["runs/b", "--column", "last:hours"], 2, "names no column"),
        (["runs/b", "--column", "quick/nonsense"], 2, "has no reading 'nonsense'"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: list[str], code: int, says: str) -> None:
    done = advcli_("compare", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.replace("│", " ").split())


def test_other_images_are_refused_with_the_difference() -> None:
    folder, _ = stored("b")
    other = Path("other")
    assert advcli_("attack", "runs/b", "--n", 30, "--quiet", "--out", other).exit_code == 0
    done = advcli_("compare", folder, other)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "n: 60 in the first, 30 in this one" in " ".join(done.stderr.replace("│", " ").split())


def test_it_runs_without_torch() -> None:
    folders = [str(stored(run)[0]) for run in ("a-0", "b")]
    code = (
        "import sys; from typer.testing import CliRunner; from advcli.cli.app import app\n"
        f"for words in (['runs/a-0', 'runs/b'], {folders!r}):\n"
        "    for option in ([], ['--json'], *(['--format', form] for form in ('markdown', 'latex', 'csv', 'json'))):\n"
        "        assert CliRunner().invoke(app, ['compare', *words, *option]).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['compare', 'runs/a-0', '--paper', 'again', '--column', 'validation']).exit_code == 0\n"
        "print(sorted({'torch', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
