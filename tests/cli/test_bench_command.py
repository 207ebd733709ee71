"""`bench` and `doctor` at the command line: what goes together, and screens of 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typed import advcli_, refused

from advcli.report import terminal
from advcli.training import throughput

QUICK = ("--rounds", "1", "--seconds", "0", "--device", "cpu", "--quiet")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ADVCLI_DATA", str(tmp_path / "no data"))
    monkeypatch.setattr(throughput, "peak", lambda device, precision: 1e10)
    monkeypatch.setattr(throughput, "_SYNTHETIC", 32)


def shown(*arguments: object) -> list[str]:
    """The lines of a screen, none wider than 80 columns."""
    done = advcli_(*arguments)
    assert done.exit_code == 0, done.output
    lines: list[str] = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to measure was named"),
        ([], "advcli bench --peers or advcli bench --attacks"),
        (["data.name=digits"], "nothing to measure was named"),
        (["model.safetensors"], "next advcli bench --attacks model.safetensors"),
        (["model.safetensors", "--peers"], "model.safetensors is a checkpoint"),
        (["--peers", "--only", "tf32"], "there are no rows 'tf32'"),
        (["--peers", "optim.lrr=1"], "unknown key optim.lrr"),
        (["--peers", "craft.loss=margin"], "no peer's loop trains as pgd-at does"),
        (["quickstart", "--n", "50"], "--n is about attacks"),
        (["quickstart", "--batch-size", "8"], "a recipe says it as train.batch_size=..."),
        (["quickstart", "--peers", "--eps", "0.1"], "a recipe says it as threat.eps=..."),
        (["runs/x", "--attacks", "--peers"], "--peers is about training"),
        (["runs/x", "--attacks", "--synthetic"], "--synthetic is about training"),
        (["runs/x", "--attacks", "seed=1"], "a checkpoint has no fields to change"),
        (["quickstart", "--only", "fp32"], "--only chooses rows of --peers or --attacks"),
        (["quickstart", "--peers", "--only", "tf32"], "there are no rows 'tf32'"),
        (["quickstart", "--json", "--markdown"], "one of --json and --markdown"),
        (["mart", "--peers"], "no peer's loop trains as mart does"),
        (["quikstart"], "there is no recipe 'quikstart' (did you mean quickstart?)"),
        (["quickstart", "optim.lrr=1"], "unknown key optim.lrr"),
        (["pgd-at", "data.name=folder", "data.root=.", "--synthetic"], "random images in place of folder have no known shape"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(arguments: list[str], said: str) -> None:
    assert said in refused(2, "bench", *arguments)


def test_a_missing_data_set_names_the_way_round() -> None:
    said = refused(3, "bench", "pgd-at", "data.download=false", *QUICK)
    assert "cifar10" in said.lower()
    assert "--synthetic, which measures on random images" in said


def test_a_recipe_s_screen_and_object(tiny_overrides: tuple[str, ...]) -> None:
    lines = shown("bench", "quickstart", *tiny_overrides, *QUICK)
    text = "\n".join(lines)
    assert lines[0] == "quickstart: small-cnn, digits, batch 30"
    assert all(
        part in text for part in ("one step", "crafting", "scoring and backward", "optimiser and the rest", "the whole recipe: about")
    )
    assert "image-steps/s" in lines[-1]
    assert not any(re.search(r"\de-?\d", line) for line in lines[2:9]), "no time has an exponent"
    assert lines[-1].endswith("% of the machine's peak")
    found = json.loads(advcli_("bench", "quickstart", *tiny_overrides, *QUICK, "--json").stdout)
    assert found["floor"]["F"] == pytest.approx(9, abs=0.25)
    assert found["hardware"]["device"] == "cpu"


def test_peers_on_a_screen_in_markdown_and_as_an_object(tiny_overrides: tuple[str, ...]) -> None:
    trades = ("objective={name: trades}", "craft.loss=kl", "craft.start=normal")
    arguments = ("bench", "quickstart", *tiny_overrides, *trades, "--synthetic", "--peers", "--only", "fp32", *QUICK)
    lines = shown(*arguments)
    assert lines[0] == "quickstart: small-cnn, random images in the shape of digits, batch 30"
    assert any(line.startswith("TRADES") and " fp32 " in line for line in lines)
    assert lines[-1].startswith("TRADES: ")
    assert lines[-1].endswith(" x in float32")
    table = [line for line in advcli_(*arguments, "--markdown").stdout.splitlines() if line.startswith("|")]
    assert table[0] == "| beside | as | ours s | theirs s | ratio | F | fools % |"
    assert table[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert table[2].startswith("| TRADES | fp32 | ")
    (row,) = json.loads(advcli_(*arguments, "--json").stdout)["rows"]
    assert row["ratio"]["median"] == pytest.approx(row["theirs"]["median"] / row["ours"]["median"])


def test_three_peers_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest screen: long names, slow steps, six figures."""
    from advcli.report import speed

    spread = {"median": 23.456, "q25": 20.1234, "q75": 30.4321}
    rows = [
        {
            "peer": "robust_overfitting",
            "numerics": numerics,
            "ours": spread,
            "theirs": spread,
            "ratio": spread,
            "F": {"ours": 23, "theirs": 35},
            "fooled": {"clean": 1.0, "ours": fooled, "theirs": 1.0, "p": 1e-4},
        }
        for numerics, fooled in (("shipped", 1.0), ("fp32", 1.0), ("bf16", 0.5))
    ]
    precision = {name: {"craft": low, "train": low} for name, low in (("shipped", "bf16"), ("fp32", "fp32"), ("bf16", "bf16"))}
    result = {"recipe": "pgd-at", "arch": "resnet18", "data": {"name": "cifar10", "synthetic": True}, "batch_size": 128, "rounds": 5}
    result |= {"steps": 1, "rows": rows, "precision": precision, "missing": ["torchattacks", "foolbox"], "versions": {"torch": "2.15"}}
    result |= {"hardware": {"device": "cuda", "name": "a processor", "threads": 2}}
    with terminal.OUT.capture() as capture:
        speed.show_peers(result)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("robust_overfitting") for line in lines) == 4
    ends = "robust_overfitting: 23.46 x as shipped (ours bfloat16, theirs float32 with TF32), 23.46 x in float32, 23.46 x in bfloat16"
    assert " ".join(" ".join(lines[-2:]).split()) == ends
    assert "23.46 [20.12, 30.43]" in lines[3]
    assert [line.split()[-1] for line in lines[3:6]] == ["100/100", "100/100", "50/100"]
    text = " ".join(" ".join(lines).split())
    assert text.count("ours crafts weaker images") == 1
    assert "note robust_overfitting, bf16: ours crafts weaker images, so this is no ratio at equal strength (p 0.0001)" in text


def test_a_run_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").touch()
    assert "next advcli bench --attacks run" in refused(2, "bench", "run")


def test_a_ratio_as_shipped_is_never_shown_without_its_precisions_and_the_row_in_float32(tiny_overrides: tuple[str, ...]) -> None:
    changes = ("objective={name: trades}", "craft.loss=kl", "craft.start=normal", "craft.precision=bf16", "train.precision=fp32")
    lines = shown("bench", "quickstart", *tiny_overrides, *changes, "--peers", "--only", "shipped", *QUICK)
    text = " ".join(" ".join(lines).split())
    assert [line.split()[1] for line in lines if line.startswith("TRADES ")] == ["shipped", "fp32"]
    assert " x as shipped (ours bfloat16 and float32, theirs float32), " in text
    assert text.endswith(" x in float32")
    assert "ours attacks in eval mode, batch norm folded, and lies channels last" in text
    assert "rewritten from their description" in text


def test_only_rows_that_are_there_are_explained(tiny_overrides: tuple[str, ...]) -> None:
    changes = ("objective={name: trades}", "craft.loss=kl", "craft.start=normal")
    text = " ".join(shown("bench", "quickstart", *tiny_overrides, *changes, "--peers", "--only", "fp32", *QUICK))
    assert "fp32: both eager in float32" in text
    assert "bf16" not in text
    assert "shipped" not in text


def test_peers_alone_takes_each_recipe_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes as shipped but for the changes, one table after the other, or one object with all."""
    from advcli.training import side_by_side

    monkeypatch.setattr(side_by_side, "importable", lambda package: False)
    small = ("model.width=0.125", "train.batch_size=4", "craft.steps=1")
    arguments = ("bench", "--peers", *small, "--synthetic", "--only", "fp32", *QUICK)
    lines = shown(*arguments)
    heads = [line.partition(":")[0] for line in lines if "random images in the shape of cifar10" in line]
    assert heads == ["pgd-at", "trades", "ancra"]
    assert [line.partition(":")[0] for line in lines if line.endswith(" x in float32")] == ["robust_overfitting", "TRADES", "ANCRA"]
    found = json.loads(advcli_(*arguments, "--json").stdout)["recipes"]
    assert [(one["recipe"], one["rows"][0]["peer"]) for one in found] == [
        ("pgd-at", "robust_overfitting"),
        ("trades", "TRADES"),
        ("ancra", "ANCRA"),
    ]


def test_too_much_validation_is_refused_on_random_images_too() -> None:
    said = refused(3, "bench", "quickstart", "--synthetic", "data.validation=2000", *QUICK)
    assert "validation would take 2000 of 1437 training images" in said
    assert "set data.validation to at most 718" in said
    assert "--synthetic" not in refused(3, "bench", "quickstart", "data.validation=2000", *QUICK)  # which would not help


def test_doctor_says_what_is_there(tmp_path: Path) -> None:
    lines = shown("doctor", "--device", "cpu", "--quiet")
    text = " ".join(" ".join(lines).split())
    assert "digits built in; " in text
    assert "lacks cifar10, cifar100, svhn, tiny-imagenet" in text
    assert "torch.compile could work" in text
    assert lines[-1] == "nothing stands in the way"
    found = json.loads(advcli_("doctor", "--device", "cpu", "--quiet", "--json").stdout)
    assert found["problems"] == []
    assert found["data"]["root"] == str(tmp_path / "no data")


def test_doctor_of_a_recipe_estimates_its_time(tiny_overrides: tuple[str, ...]) -> None:
    done = advcli_("doctor", "quickstart", *tiny_overrides, "--device", "cpu", "--quiet")
    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    assert "quickstart: about" in text
    assert "6 steps of" in text
    assert "crafts in fp32, scores in fp32" in text


def test_doctor_of_a_recipe_that_crafts_nothing_names_no_precision_of_it(tiny_overrides: tuple[str, ...]) -> None:
    changes = [change for change in tiny_overrides if not change.startswith("craft.")]
    done = advcli_("doctor", "quickstart", *changes, "objective.name=standard", "~craft", "--device", "cpu", "--quiet")
    text = " ".join(done.stdout.split())
    assert "scores in fp32" in text
    assert "crafts" not in text


def test_doctor_names_a_missing_data_set_and_goes_on_without() -> None:
    tiny = ("model.width=0.125", "train.batch_size=4", "craft.steps=1")
    done = advcli_("doctor", "pgd-at", *tiny, "--device", "cpu", "--quiet")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "problem cifar10: CIFAR10 is not there" in text
    assert "pgd-at on random images: about" in text
    assert done.stdout.splitlines()[-1] == "1 problem"


def test_doctor_refuses_what_is_no_recipe_or_no_device() -> None:
    assert "did you mean quickstart?" in refused(2, "doctor", "quikstart")
    assert "device 'cuda:99' cannot be used" in refused(2, "doctor", "--device", "cuda:99")


@pytest.mark.parametrize(
    ("change", "said", "next"),
    [
        ("train.batch_size=100000", "train.batch_size: a batch of 100000, but only", "train.batch_size="),
        ("model.init=nothere.safetensors", "nothere.safetensors: there is no such model file", ""),
        ("data.validation=2000", "digits: validation would take 2000 of 1437", "set data.validation to at most 718"),
    ],
)
def test_doctor_of_a_recipe_that_is_refused_says_the_rest(change: str, said: str, next: str) -> None:
    done = advcli_("doctor", "quickstart", change, "--device", "cpu", "--quiet", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["versions"]["torch"]
    assert found["data"]["found"]["digits"]
    (problem,) = found["problems"]
    assert said in problem["what"]
    assert problem["next"].startswith(next)
    assert problem["next"]


@pytest.mark.parametrize("root", ["~nosuchuser/x", "x" * 300])
def test_doctor_goes_on_where_data_cannot_be_looked_for(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown("doctor", "--data-root", root, "--device", "cpu", "--quiet")
    assert any(line.split()[:3] == ["problem", "data", "sets"] for line in lines)
    assert any(line.startswith("disk") for line in lines)
    monkeypatch.setenv("ADVCLI_DATA", "x" * 300)
    assert shown("doctor", "--device", "cpu", "--quiet")[-1] == "1 problem"


def test_all_rows_of_training_are_in_the_help() -> None:
    from advcli.training.side_by_side import NUMERICS

    said = " ".join(advcli_("bench", "--help").stdout.replace("│", " ").split())
    _, _, told = said.partition("--only ")
    assert all(name in told.partition("--rounds")[0] for name in NUMERICS), told
