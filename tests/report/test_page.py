"""The page: what the receipts say and nothing else, harmless whatever the names in them, the same bytes each time."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from seen import change_ledger, draw
from typer.testing import CliRunner
from written import first, write_evaluation

from advcli.cli.app import app
from advcli.errors import UsageError
from advcli.evaluation.stored import open_evaluation, open_run
from advcli.report import page, pictures, subject
from advcli.report.plots import plots
from advcli.runs.ledger import Ledger

HOSTILE = "\"><script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>"


# Harmless.


def test_nothing_comes_from_elsewhere(run: Path) -> None:
    seen = draw(run)
    assert not seen.all("script")
    assert not [value for value in seen.values("src") if not value.startswith("data:")]
    assert not [value for value in seen.values("href") if not value.startswith(("#", "data:,"))]
    assert "url(http" not in page.render(subject.of(run))
    policy = next(tag["content"] for tag in seen.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_never_markup(run: Path) -> None:
    folder = run / "evals" / "aa-1"
    header = Ledger(folder / "ledger").read()[1]
    entries = [{**entry, "about": HOSTILE} for entry in header["entries"]]
    threat = {**header["threat"], "eps": HOSTILE}
    told = {"classes": [HOSTILE, "one"], "notes": [HOSTILE], "data": {"name": HOSTILE}, "versions": {HOSTILE: HOSTILE}, "threat": threat}
    change_ledger(folder, **told, entries=entries, checkpoint=f"{HOSTILE}/model.safetensors")
    plain, seen = draw(run / "evals" / "quick-1"), draw(folder)
    assert not seen.all("script")
    assert "evil.example" not in "".join(seen.values("src"))
    assert not seen.values("onerror")
    assert seen.text.count("alert('x')") >= 8
    assert {tag for tag, _ in seen.tags} == {tag for tag, _ in plain.tags} | {"ul", "li"}


def test_it_can_be_read_aloud_and_walked_by_keyboard(run: Path) -> None:
    seen = draw(run)
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    named = [name for value in seen.values("aria-labelledby") for name in value.split()]
    assert set(named) | {value[1:] for value in seen.values("href") if value.startswith("#")} <= set(ids)
    assert seen.all("html") == [{"lang": "en"}]
    assert seen.tags[[tag for tag, _ in seen.tags].index("body") + 1] == ("a", {"class": "skip", "href": "#verdict"})
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert all(image.get("alt") for image in seen.all("img"))
    assert all(cell.get("scope") for cell in seen.all("th"))
    for attributes in [*seen.all("pre"), *(a for a in seen.all("div") if a.get("class") == "scroll")]:
        assert attributes["tabindex"] == "0"
        assert attributes["role"] == "region"
        assert attributes.get("aria-label") or attributes.get("aria-labelledby")


def test_equal_receipts_make_equal_bytes(run: Path) -> None:
    text = page.render(subject.of(run))
    code = "import sys; from pathlib import Path; from advcli.report import page, subject\n"
    code += "sys.stdout.write(page.render(subject.of(Path(sys.argv[1])))); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True, env=None)
    assert done.stdout == text


# True.


def logged(run: Path) -> Path:
    """The same run with three epochs in its log and a second radius."""
    row = {"n": 50, "clean": 0.9, "robust": 0.5, "attack": "pgd-10"}
    events = [{"event": "epoch", "epoch": k, "step": k, "lr": 0.1, "loss": 1 / k, "validation": row, "train": row} for k in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    weights = open_evaluation(run / "evals" / "aa-1").header["identity"]["tensors_sha256"]
    write_evaluation(run / "evals" / "quick-2", clean=first(18), attacks={"fgsm": first(8)}, weights=weights, eps="0.2")
    return run


def test_curves_are_drawn_where_there_is_something_to_draw(run: Path) -> None:
    assert plots(open_run(run)) == {}
    drawn = plots(open_run(logged(run)))
    assert list(drawn) == ["security", "training"]
    assert [row["accuracy"] for row in drawn["security"].rows] == [0.9, 0.6, 0.4]
    seen = draw(run)
    assert len(seen.all("svg")) == 2
    ids = seen.values("id")
    assert len(ids) == len(set(ids))
    inner = [value for attribute in ("clip-path", "xlink:href") for value in seen.values(attribute)]
    assert {re.search("#([^)]+)", value)[1] for value in inner} <= set(ids)  # type: ignore[index]
    assert "40.0 [21.9, 61.3] upper bound" in seen.text


def test_a_hostile_folder_is_no_markup_in_a_figure(run: Path) -> None:
    bad = run.with_name("--><script>alert('x')<")
    logged(run).rename(bad)
    seen = draw(bad)
    assert len(seen.all("svg")) == 2
    assert not seen.all("script")


def test_the_verdict_comes_first_and_is_the_hardest_suite_s(run: Path) -> None:
    seen = draw(run)
    text = seen.text
    assert text.index("55.0 %") < text.index("Attacks")
    assert "11 of 20 images are classified right and stay so under every attack of suite aa." in text
    assert "[34.2, 74.2]" in text  # Wilson for 11 of 20
    assert {"class": "verdict", "data-kind": "trustworthy", "id": "verdict", "aria-labelledby": "verdict-title"} in seen.all("section")
    assert "quick-1" in text[text.index("Other evaluations") :]


def test_every_attack_has_its_row(run: Path) -> None:
    text = draw(run / "evals" / "quick-1").text
    for name, percent in (("none", "90.0"), ("fgsm", "75.0"), ("pgd-20", "60.0")):
        assert re.search(rf"{name} \S+.*? all {percent} \[", text)
    assert "an upper bound" in text


def test_digests_are_all_there(run: Path) -> None:
    folder = run / "evals" / "aa-1"
    header = Ledger(folder / "ledger").read()[1]
    text = page.render(subject.of(run))
    for digest in (header["tensors_sha256"], header["identity"]["digest"], header["identity"]["images_sha256"]):
        assert f"<code>{digest}</code>" in text


def flagged(monkeypatch: pytest.MonkeyPatch, run: Path, flags: list[dict[str, Any]], **more: Any) -> str:
    report = {**open_evaluation(run / "evals" / "aa-1").report, "flags": flags, **more}
    monkeypatch.setattr("advcli.evaluation.stored.summarise", lambda *_: report)
    return draw(run / "evals" / "aa-1").text


def test_flags_that_are_raised_come_first_and_passed_ones_are_folded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = {"value": 0.0317, "threshold": 0.02, "p": 0.00042, "source": "Carlini et al. 2019"}
    flags = [
        {**flag, "name": "calm", "raised": False, "message": "nothing here", "p": None},
        {**flag, "name": "odd", "raised": True, "message": "something here"},
    ]
    text = flagged(monkeypatch, run, flags, verdict="masked", reasons=["because of odd"], worst={"aa": 0.6, "adaptive": 0.55})
    assert "not to be trusted" in text
    assert "because of odd" in text
    assert "under aa 60.0 %, under adaptive 55.0 %" in text
    assert "odd something here measured 0.0317, threshold 0.02, p 0.00042; Carlini et al. 2019" in text
    assert text.index("something here") < text.index("1 check passed") < text.index("nothing here")


def test_flags_of_an_older_report_are_raised_ones(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = flagged(monkeypatch, run, [{"name": "old", "value": 0.05, "threshold": 0.02, "message": "it was seen"}], verdict="masked")
    assert "old it was seen measured 0.05, threshold 0.02" in text
    assert "checks passed" not in text


# Files.


def test_its_own_file_is_drawn_again_and_another_is_never_replaced(run: Path, tmp_path: Path) -> None:
    found = subject.of(run)
    assert page.write(found) == page.write(found) == run / "report.html"
    other = tmp_path / "new" / "page.html"
    assert page.write(found, other).read_bytes() == (run / "report.html").read_bytes()
    with pytest.raises(UsageError, match="nothing is overwritten"):
        page.write(found, other)


def test_the_command_ends_with_the_number(run: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False)
    assert done.stdout.splitlines()[-1] == "robust 55.0 % [34.2, 74.2] worst case"
    facts = json.loads(CliRunner().invoke(app, ["report", str(run), "--json"], catch_exceptions=False).stdout)
    assert (facts["report"]["robust"], facts["file"]) == (0.55, str(run / "report.html"))


# What it says can be done.


def test_its_commands_make_the_same_evaluation_again(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the page finds the finished evaluation by its identity, so every option is right."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a b"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "recipe.yaml"):
        (folder / name).write_bytes((trained_run / name).read_bytes())
    options = ["--suite", "quick", "--n", "12", "--seed", "3", "--eps", "0.1", "--norm", "l2", "--batch-size", "5", "--split", "train"]
    made = CliRunner().invoke(app, ["attack", "runs/a b", *options, "--json", "--quiet"], catch_exceptions=False)
    evaluation = next((folder / "evals").iterdir())
    assert (evaluation / "report.html").is_file()
    found = dict(page.facts(subject.of(evaluation))["commands"])
    words = shlex.split(found["attack again"])
    again = CliRunner().invoke(app, [*words[1:], "--json", "--quiet"], catch_exceptions=False)
    assert json.loads(again.stdout)["identity"] == json.loads(made.stdout)["identity"]
    assert [path.name for path in (folder / "evals").iterdir()] == [evaluation.name]
    checked = shlex.split(next(line for what, line in found.items() if "without an attack" in what))
    assert CliRunner().invoke(app, checked[1:], catch_exceptions=False).exit_code == 0
    clean = Ledger(evaluation / "ledger").read()[0]["clean"]
    assert len(pictures.examples(open_evaluation(evaluation))) == min(8, len(clean))
    assert CliRunner().invoke(app, [*shlex.split(found["train again"])[1:], "--dry-run"], catch_exceptions=False).exit_code == 0
