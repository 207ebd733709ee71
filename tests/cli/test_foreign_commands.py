"""Checkpoints of others on the command line: attack, verify, compare, visualize, convert, finetune and deploy-ra take
them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advcli.cli.app import app
from advcli.evaluation import retrofit
from advcli.runs import checkpoint as checkpoints

DIGITS = ("--data", "digits", "--eps", "0.15")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def theirs(checkpoint: Path, tmp_path: Path) -> Path:
    """A trained network as somebody else would have saved it."""
    path = tmp_path / "theirs" / "net.pt"
    path.parent.mkdir()
    state = checkpoints.load_network(checkpoint).network.state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def advcli_(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(code: int, *arguments: object) -> str:
    done = advcli_(*arguments)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in done.stderr.splitlines()).split())


def facts(*arguments: object) -> Any:
    done = advcli_(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_attack_gives_the_numbers_of_the_same_weights_as_ours(theirs: Path, checkpoint: Path) -> None:
    done = advcli_("attack", theirs, *DIGITS, "--n", 40, "--json")
    found, own = json.loads(done.stdout), facts("attack", checkpoint, "--n", 40)
    assert {key: found[key] for key in ("clean", "robust", "attacks")} == {key: own[key] for key in ("clean", "robust", "attacks")}
    assert found["checkpoint"] == str(theirs)
    assert "read as small-cnn at width 0.5; normalisation: none" in " ".join(found["notes"])
    assert "clean accuracy 9" in done.stderr
    assert "warning" not in done.stderr
    (folder,) = (theirs.parent / "evals").iterdir()
    assert advcli_("verify", folder).exit_code == 0
    pair = facts("compare", folder, *(checkpoint.parent / "evals").iterdir())
    assert pair["comparisons"][0]["robust"]["difference"] == 0


def test_a_curve_of_a_checkpoint_of_others(theirs: Path) -> None:
    done = advcli_("attack", theirs, "--data", "digits", "--eps", "0.1,0.2", "--n", 20, "--json")
    assert [point["eps"] for point in json.loads(done.stdout)["curve"]] == ["0.1", "0.2"]
    assert done.stderr.count("clean accuracy") == 1


def test_a_checkpoint_of_others_needs_a_data_set(theirs: Path) -> None:
    assert "does not say which data it is for" in refused(2, "attack", theirs)
    assert not (theirs.parent / "evals").exists()


def test_code_in_a_file_is_named_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, ("executed",))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Bomb()}, tmp_path / "bomb.pt")
    for command in (["attack"], ["convert"], ["deploy-ra"], ["finetune", "arrest", "--from"]):
        assert "It asks for posix.mkdir" in refused(3, *command, tmp_path / "bomb.pt"), command
    assert not Path("executed").exists()


def test_low_accuracy_is_warned_of_with_the_likely_cause(theirs: Path) -> None:
    """A wrong normalisation is told by the right one, which is tried; permuted classes by their constant answers."""
    done = advcli_("attack", theirs, *DIGITS, "--n", 5, "--mean", "1/2", "--std", "-0.5")
    assert done.exit_code == 3
    done = advcli_("attack", theirs, *DIGITS, "--n", 5, "--mean", "50", "--std", "10", "--quiet")
    assert "near chance" in done.stderr
    assert "with another normalisation (none: --mean 0 --std 1) it would be 9" in done.stderr
    content = torch.load(theirs, weights_only=True)
    head = content["state_dict"]
    for name in ("module.linear.weight", "module.linear.bias"):
        head[name] = head[name].roll(3, 0)
    torch.save(content, theirs)
    done = advcli_("attack", theirs, *DIGITS, "--n", 5)
    assert "likely cause: the order of the classes" in done.stderr


def test_a_source_of_a_transfer_attack_may_be_anothers(theirs: Path, checkpoint: Path) -> None:
    """The same weights in another's file are the same network."""
    assert "the source is the checkpoint itself" in refused(2, "attack", checkpoint, "--suite", "transfer", "--source", theirs, "--quiet")


def test_options_about_others_weights_are_refused_for_ours(checkpoint: Path) -> None:
    assert "says itself what it is" in refused(2, "attack", checkpoint, "--arch", "resnet18")


@pytest.mark.parametrize("mean", ["much", "1,,2", ""])
def test_a_normalisation_is_numbers(mean: str, theirs: Path) -> None:
    assert "expected a number" in refused(2, "attack", theirs, *DIGITS, "--mean", mean, "--std", "1")


@pytest.mark.parametrize(
    ("options", "says"), [(["--eps", "8"], "did you mean --eps 8/255?"), (["--norm", "l2"], "another norm needs a radius of its own")]
)
def test_a_threat_that_is_none_is_refused_before_anything_is_written(options: list[str], says: str, theirs: Path) -> None:
    for command in ("attack", "convert"):
        assert says in refused(2, command, theirs, "--data", "digits", *options)
    assert list(Path.cwd().iterdir()) == []


def test_a_radius_that_is_assumed_is_said(theirs: Path) -> None:
    assert "no --eps, so linf eps 8/255 is assumed" in advcli_("convert", theirs, "--data", "digits").stderr


# convert


def test_convert_writes_a_checkpoint_that_everything_takes(theirs: Path) -> None:
    made = facts("convert", theirs, *DIGITS, "--mean", "0.1", "--std", "0.9", "--num-classes", 10)
    assert made["checkpoint"] == "runs/net/model.safetensors"
    assert (made["foreign"]["source"], len(made["foreign"]["source_sha256"])) == (str(theirs), 64)
    header = checkpoints.load_network(Path(made["checkpoint"])).header
    assert (header["threat"], header["data"]["name"]) == ({"norm": "linf", "eps": "0.15"}, "digits")
    found = facts("attack", made["checkpoint"], "--n", 20)
    assert (found["threat"]["eps"], found["data"]) == ("0.15", "digits")
    straight = facts("attack", theirs, *DIGITS, "--mean", "0.1", "--std", "0.9", "--n", 20)
    assert straight["identity"] == found["identity"]


def test_convert_overwrites_nothing(theirs: Path, checkpoint: Path) -> None:
    assert advcli_("convert", theirs, *DIGITS, "-o", "net.safetensors").exit_code == 0
    before = Path("net.safetensors").read_bytes()
    assert "there is a file already" in refused(2, "convert", theirs, *DIGITS, "-o", "net.safetensors", "--quiet")
    assert Path("net.safetensors").read_bytes() == before
    assert "advcli's already" in refused(2, "convert", checkpoint)


# finetune


def test_finetuning_starts_from_weights_of_others(theirs: Path, tiny_overrides: tuple[str, ...]) -> None:
    overrides = [part for part in tiny_overrides if "width" not in part] + ["model.width=0.5", "schedule.epochs=1", "name=tuned"]
    done = advcli_("finetune", "quickstart", *overrides, "--from", theirs, "--arch", "small-cnn", "--num-classes", 10, "--quiet")
    assert done.exit_code == 0, done.output
    start = checkpoints.load_network(Path("runs/tuned/model.safetensors")).header["init"]
    assert (start["foreign"]["source"], start["foreign"]["read_as"]) == (str(theirs), "small-cnn at width 0.5")
    says = refused(3, "finetune", "quickstart", *overrides, "model.width=0.25", "--from", theirs)
    assert "layer1.0.weight is (16, 1, 3, 3), not (8, 1, 3, 3)" in says
    assert "tell 10 classes apart, not 5" in refused(2, "finetune", "quickstart", "--from", theirs, "--num-classes", 5)
    assert "resnet19" in refused(2, "finetune", "quickstart", "--from", theirs, "--arch", "resnet19")


# deploy-ra


def test_deploy_ra_adds_no_tensor_and_says_that_it_was_not_evaluated(checkpoint: Path) -> None:
    made = facts("deploy-ra", checkpoint, "--no-eval")
    before, after = checkpoints.load_network(checkpoint), checkpoints.load_network(Path(made["checkpoint"]))
    plain, gated = before.network.state_dict(), after.network.state_dict()
    assert list(plain) == list(gated)
    assert all(torch.equal(plain[name], gated[name]) for name in plain)
    assert [name for name, _ in after.network.named_buffers()] == [name for name, _ in before.network.named_buffers()]
    assert after.network.gate_sites == ("features",)
    assert (made["evaluated"], after.header["evaluated"], after.header["retrofit"]["of"]) == (False, False, str(checkpoint))
    assert after.header["tensors_sha256"] == before.header["tensors_sha256"]
    assert "has gates already" in refused(2, "deploy-ra", made["checkpoint"], "--no-eval")


def test_deploy_ra_shows_before_and_after(checkpoint: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half is what attack prints; stopped or repeated, the command goes on from its ledgers."""
    monkeypatch.setattr(retrofit, "SUITE", "quick")
    found = facts("deploy-ra", theirs, *DIGITS, "--n", 30, "-o", "ra")
    own = facts("attack", theirs, *DIGITS, "--n", 30)
    assert found["before"] == own
    assert found["after"] == facts("attack", "ra", "--n", 30)
    assert (found["before"]["gated"], found["after"]["gated"]) == (False, True)
    row = found["differences"]["worst case, adaptive"]
    assert row["difference"] == pytest.approx(found["after"]["robust"] - found["before"]["robust"])
    header = checkpoints.load_network(Path("ra/model.safetensors")).header
    assert (header["evaluated"]["verdict"], header["evaluated"]["after"]) == (found["verdict"], found["after"]["identity"])
    assert facts("deploy-ra", theirs, *DIGITS, "--n", 30, "-o", "ra", "--resume") == found
    assert "not empty" in refused(2, "deploy-ra", theirs, *DIGITS, "--n", 30, "-o", "ra", "--quiet")
    assert "another network" in refused(2, "deploy-ra", theirs, *DIGITS, "--mean", "0.1", "--std", "1", "-o", "ra", "--resume", "--quiet")


def test_the_screen_of_deploy_ra_fits_and_ends_with_the_verdict(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrofit, "SUITE", "quick")
    done = advcli_("deploy-ra", checkpoint, "--n", 20, "--quiet")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    table = next(number for number, line in enumerate(lines) if "before %" in line)
    assert all(len(line) <= 80 and "…" not in line for line in lines[table:])
    assert " ".join(lines).rstrip().endswith("points.")


def test_deploy_ra_on_a_network_of_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate stands on the vector that enters the last linear layer."""
    from PIL import Image
    from torchvision import models

    for split in ("train", "test"):
        for number, name in enumerate("ab"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(4):
                Image.new("RGB", (32, 32), (60 * k, 120 * number, 30)).save(tmp_path / "images" / split / name / f"{k}.png")
    torch.manual_seed(0)
    torch.save(models.mobilenet_v3_small(num_classes=2).state_dict(), "mobile.pth")
    data = ("--data", "folder", "--data-root", tmp_path / "images", "--arch", "torchvision:mobilenet_v3_small")
    monkeypatch.setattr(retrofit, "SUITE", "quick")
    found = facts("deploy-ra", "mobile.pth", *data, "-o", "ra", "--quiet")
    assert (found["before"]["gated"], found["after"]["gated"]) == (False, True)
    loaded = checkpoints.load_network(Path("ra/model.safetensors"))
    x = torch.rand(3, 3, 32, 32)
    output = loaded.network.trace(x)
    rows = loaded.network.linear.weight[output.aux_logits[0].argmax(1)]
    torch.testing.assert_close(output.features.flatten(1), output.ungated.flatten(1) * rows)
    torch.testing.assert_close(output.logits, loaded.network.linear(output.ungated.flatten(1) * rows))
    chosen = loaded.network.all_gate_logits(output)[torch.arange(3), output.aux_logits[0].argmax(1)]
    torch.testing.assert_close(chosen, output.logits)


def test_figures_show_weights_of_others_as_they_show_the_same_of_ours(theirs: Path, checkpoint: Path) -> None:
    advcli_("attack", theirs, *DIGITS, "--n", 20, "--quiet")
    done = advcli_("visualize", "perturbations", theirs, *DIGITS, "--n", 20, "--json")
    found = json.loads(done.stdout)
    assert "clean accuracy 9" in done.stderr
    assert [Path(file).parent for file in found["files"]] == [theirs.parent / "figures"] * 2
    assert any("quick-" in note for note in found["notes"]), "images of the evaluation beside it"
    own = facts("visualize", "perturbations", checkpoint, "--n", 20, "--attack", "pgd-20", "-o", "own")
    crafted = json.loads(
        advcli_("visualize", "perturbations", theirs, *DIGITS, "--n", 20, "--attack", "pgd-20", "-o", "x", "--json").stdout
    )
    unnamed = [[{**row, "run": ""} for row in data["rows"]] for data in (own, crafted)]
    assert unnamed[0] == unnamed[1]
    assert "does not say which data it is for" in refused(2, "visualize", "cam", theirs)
    assert "say themselves what they are" in refused(2, "visualize", "cam", checkpoint, "--arch", "small-cnn")
