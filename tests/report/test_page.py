"""The page: what the receipts say and nothing else, harmless whatever the names in them, the same bytes each time."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from written import first, write_evaluation, write_run

from advcli.cli.app import app
from advcli.errors import CheckpointError, UsageError
from advcli.evaluation.stored import open_evaluation, open_run
from advcli.report import page, pictures, subject
from advcli.report.plots import plots
from advcli.runs.ledger import Ledger

HOSTILE = "\"><script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>"


class Seen(HTMLParser):
    """Tags with their attributes, text, and the order in which they came."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two evaluations and a log."""
    folder = tmp_path / "runs" / "net"
    weights = write_run(folder)
    write_evaluation(folder / "evals" / "quick-1", clean=first(18), attacks={"fgsm": first(15), "pgd-20": first(12)}, weights=weights)
    aa = {"apgd-ce": first(12), "square": first(11)}
    write_evaluation(folder / "evals" / "aa-1", clean=first(18), attacks=aa, suite="aa", on="survivors", weights=weights)
    return folder


def draw(path: Path) -> Seen:
    return Seen(page.render(subject.of(path)))


def change_ledger(folder: Path, **changes: Any) -> None:
    """Write an evaluation's ledger again with other header fields; arrays by their name."""
    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    ledger.finish(arrays, {**header, **{name: value for name, value in changes.items() if name not in arrays}})


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


# Pictures.


def pixels(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_examples_are_the_ledger_s_images(run: Path) -> None:
    folder = run / "evals" / "quick-1"
    kept = len(Ledger(folder / "ledger").read()[0]["adversarial_index"])
    clean = np.arange(kept * 64, dtype=np.uint8).reshape(kept, 1, 8, 8)
    adversarial = np.clip(clean.astype(np.float32) / 255 + 0.15 * np.where(np.arange(8) % 2, 1, -1), 0, 1).astype(np.float32)
    change_ledger(folder, clean=clean, adversarial=adversarial)
    found = pictures.examples(open_evaluation(folder), 4)
    assert len(found) == 4
    for number, example in enumerate(found):
        assert example.clean is not None
        assert example.perturbation is not None
        assert (pixels(example.clean) == clean[number, 0]).all()
        assert (pixels(example.adversarial) == np.round(adversarial[number, 0] * 255)).all()
        inside = (clean[number, 0] > 40) & (clean[number, 0] < 215)
        assert (pixels(example.perturbation)[inside] == np.where(np.arange(8) % 2, 255, 0)[None].repeat(8, 0)[inside]).all()


def test_a_ledger_without_clean_images_shows_the_others_and_says_so(run: Path) -> None:
    folder = run / "evals" / "aa-1"
    ledger = Ledger(folder / "ledger")
    arrays, header = ledger.read()
    ledger.finish({name: array for name, array in arrays.items() if name != "clean"}, header)
    seen = draw(folder)
    assert "keeps no clean ones" in seen.text
    assert len(seen.all("img")) == 7


def test_classes_take_turns() -> None:
    assert pictures._spread(np.array([2, 2, 0, 1, 2, 0])) == [2, 3, 0, 5, 1, 4]


@pytest.mark.parametrize(("norm", "ends"), [("linf", (0.25, 0.75)), ("l2", (0.0, 1.0))])
def test_perturbations_are_magnified(norm: str, ends: tuple[float, float]) -> None:
    shown = pictures.perturbation(np.array([[[-0.1, 0.0, 0.1]]]), norm, 0.2)
    assert shown[0, 0].tolist() == pytest.approx([ends[0], 0.5, ends[1]])


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


# Colours.


def tokens() -> list[dict[str, str]]:
    """The colours of each scheme: light, dark, paper."""
    css = (Path(page.__file__).parent / "templates" / "page.css").read_text()
    return [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_as_wcag_counts_it() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_text_has_the_contrast_of_wcag_aa(scheme: int) -> None:
    assert len(tokens()) == 3
    own = tokens()[scheme]
    for ground in ("ground", "raised"):
        for ink in ("ink", "muted", "mark", "good", "fair", "bad"):
            assert contrast(own[ink], own[ground]) >= 4.5, (ink, ground)
