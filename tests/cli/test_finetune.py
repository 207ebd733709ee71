"""advcli finetune: from a pretrained network to a robust one, exactly resumable, and every wrong start refused with a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advcli.cli.app import app
from advcli.models import Architecture, build
from advcli.recipe import Recipe, parse
from advcli.runs import checkpoint, log
from advcli.training import session
from advcli.training.step import Step

PROMISED = ("model.safetensors", "last.safetensors", "metrics.jsonl", "recipe.yaml")
ARREST = (
    "objective={name: arrest, distillation: {name: angular, weight: 5}, replay: {angle: 1, until: 1}}",
    "model.width=0.5",
    "optim.lr=0.02",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def pretrained(one_thread: None, tmp_path_factory: pytest.TempPathFactory, silent_watcher: Any) -> Path:
    """A run folder of standard training on digits."""
    from advcli.recipe import load

    overrides = ["objective={name: standard}", "~craft", "model.width=0.5", "schedule.epochs=4", "optim.lr=0.2", "name=undefended"]
    recipe = load("quickstart", overrides)
    return session.run(recipe, silent_watcher, out=tmp_path_factory.mktemp("standard") / "run", resume=False, device="cpu").folder


@pytest.fixture(scope="module")
def silent_watcher() -> Any:
    class Silent:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args, **kwargs: None

    return Silent()


def advcli_(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def finetune(source: Path, overrides: Sequence[str], *options: object) -> Any:
    return advcli_("finetune", "quickstart", *overrides, "--from", source, *options)


def refused(code: int, *arguments: object) -> str:
    """stderr of a command that must end with code and leave nothing behind, its lines joined and its frame taken off."""
    before = sorted(Path().iterdir())
    done = advcli_(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sorted(Path().iterdir()) == before
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in done.stderr.splitlines()).split())


def squeezed(text: object) -> str:
    return "".join(str(text).split())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(path, "state" if path.name.startswith("state") else "model")[0]


def promised(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PROMISED}


def test_from_standard_training_to_robust_features(pretrained: Path) -> None:
    """Digits: it starts at the pretrained weights, stays near their features, and is far more robust than they are."""
    overrides = [*ARREST[:2], "optim.lr=0.05", "schedule.epochs=4", "name=arrest", "select.metric=last", "objective.replay.angle=30"]
    done = finetune(pretrained, overrides, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["folder"] == "runs/arrest"
    stored = parse(Path("runs/arrest/recipe.yaml").read_text())
    assert stored.model.init == str(pretrained / "model.safetensors")
    events = list(log.read(Path("runs/arrest/metrics.jsonl")))
    before = list(log.read(pretrained / "metrics.jsonl"))[-1]["validation"]
    assert before["robust"] < 0.3 < events[-1]["validation"]["robust"]
    assert events[-1]["validation"]["clean"] > 0.9
    for event in events:
        assert 0.5 < event["validation"]["teacher_cosine"] <= 1
        assert event["loss"] == pytest.approx(event["ce_adv"] + 5 * event["distillation"], rel=1e-5)
    assert all(event["replayed"] == 0 for event in events[1:])
    kept = tensors(Path("runs/arrest/state.safetensors"))
    for name, value in tensors(pretrained / "model.safetensors").items():
        assert torch.equal(kept[f"objective.teacher.{name}"], value), "the teacher is the pretrained network"
    assert checkpoint.load_network(Path("runs/arrest/model.safetensors")).header["objective"]["name"] == "arrest"


@pytest.mark.parametrize("objective", ["pgd-at", "trades", "mart"])
def test_plain_adversarial_finetuning(pretrained: Path, tiny_overrides: Sequence[str], objective: str) -> None:
    """From a run folder or a file; the first epoch knows what pretraining taught."""
    overrides = [*tiny_overrides, "model.width=0.5", "optim.lr=0.001", f"objective={{name: {objective}}}", "~craft", "schedule.epochs=1"]
    done = finetune(pretrained / "model.safetensors", overrides, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["measured"]["validation"]["clean"] > 0.8


def test_model_init_stands_for_from(pretrained: Path, tiny_overrides: Sequence[str]) -> None:
    """And --from is what counts where both are given."""
    overrides = [*tiny_overrides, *ARREST]
    init = f"model.init={pretrained / 'model.safetensors'}"
    for out, arguments in (("a", [init]), ("b", ["--from", pretrained]), ("c", ["model.init=elsewhere", "--from", pretrained])):
        done = advcli_("finetune", "quickstart", *overrides, *arguments, "--out", out)
        assert done.exit_code == 0, done.output
    assert promised(Path("a")) == promised(Path("b")) == promised(Path("c"))


def test_a_dry_run_counts_both_networks(pretrained: Path, tiny_overrides: Sequence[str]) -> None:
    done = finetune(pretrained, [*tiny_overrides, *ARREST], "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["recipe"]["model"]["init"] == str(pretrained / "model.safetensors")
    assert (facts["forwards"], facts["backwards"]) == (3 + 1 + 2, 3 + 1)
    assert list(Path().iterdir()) == []


# Resume.


class KilledError(Exception):
    pass


def killed_after(steps: int, *arguments: object) -> None:
    """A run that ends in mid-training, as by a kill."""
    real, left = Step.__call__, iter(range(steps))

    def step(*args: Any) -> Any:
        if next(left, None) is None:
            raise KilledError
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", step)
        with pytest.raises(KilledError):
            advcli_(*arguments)


EVERYTHING = ("objective.wrapper.name=awp", "train.ema=0.8", "data.augment=[crop]")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_killed_run_ends_with_the_same_bytes(pretrained: Path, tiny_overrides: Sequence[str], steps: int) -> None:
    """In and after the epoch with replay; even if the file that training started from now holds other weights."""
    source = Path("source")
    shutil.copytree(pretrained, source)
    arguments = ["finetune", "quickstart", *tiny_overrides, *ARREST, *EVERYTHING, "--quiet", "--from", source]
    assert advcli_(*arguments, "--out", "whole").exit_code == 0
    events = list(log.read(Path("whole/metrics.jsonl")))
    assert events[0]["replayed"] > 0.1, "replay takes part"
    killed_after(steps, *arguments, "--out", "cut")
    shutil.copy(source / "model.safetensors", "kept")
    other = checkpoint.load_network(source / "model.safetensors")
    with torch.no_grad():
        for p in other.network.parameters():
            p.mul_(1.5)
    header = {key: other.header[key] for key in ("classes", "threat", "data")}
    checkpoint.write_network(source / "model.safetensors", other.network, other.architecture, header)
    done = advcli_(*arguments, "--out", "cut", "--resume")
    assert done.exit_code == 0, done.output
    assert promised(Path("cut")) == promised(Path("whole"))
    teacher = {key: value for key, value in tensors(Path("cut/state.safetensors")).items() if ".teacher." in key}
    for name, value in tensors(Path("kept")).items():
        assert torch.equal(teacher[f"objective.inner.teacher.{name}"], value)


def test_resume_from_another_checkpoint_is_refused(pretrained: Path, tiny_overrides: Sequence[str]) -> None:
    shutil.copytree(pretrained, "elsewhere")
    arguments = ["finetune", "quickstart", *tiny_overrides, *ARREST, "--quiet", "--out", "run"]
    assert advcli_(*arguments, "--from", pretrained).exit_code == 0
    before = promised(Path("run"))
    said = refused(2, *arguments, "--resume", "--from", "elsewhere")
    assert squeezed("model.init:") in squeezed(said)
    assert squeezed("'elsewhere/model.safetensors' now") in squeezed(said)
    assert promised(Path("run")) == before
    assert advcli_(*arguments, "--resume", "--from", pretrained / "model.safetensors").exit_code == 0


# Wrong starts.


@pytest.mark.parametrize("recipe", ["arrest", "pgd-at"])
def test_a_start_must_be_named(recipe: str) -> None:
    said = refused(2, "finetune", recipe)
    assert "finetuning starts from trained weights, and none were named" in said
    assert "advcli pretrain recipes/standard.yaml" in said
    assert "--from" in said


@pytest.mark.parametrize("command", ["adv-train", "pretrain"])
def test_arrest_belongs_to_finetune(command: str) -> None:
    said = refused(2, command, "arrest")
    assert f"objective arrest is not trained by {command}" in said
    assert "advcli finetune with the same recipe and --from CKPT" in said


def test_standard_training_belongs_to_pretrain(pretrained: Path) -> None:
    assert "advcli pretrain with the same recipe" in refused(2, "finetune", "standard", "--from", pretrained)


def empty_folder() -> Path:
    Path("empty").mkdir(exist_ok=True)
    return Path("empty")


def text() -> Path:
    Path("text").write_text("weights")
    return Path("text")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Path("nowhere"), "there is no such model"),
        (empty_folder, "there is no such model"),
        (text, "no safetensors file"),
    ],
    ids=["missing", "empty folder", "text"],
)
def test_an_unfit_start_is_refused(make: Callable[[], Path], reason: str, tiny_overrides: Sequence[str]) -> None:
    source = make()
    assert reason in refused(3, "finetune", "quickstart", *tiny_overrides, *ARREST, "--from", source)


def test_a_training_state_is_no_start(pretrained: Path, tiny_overrides: Sequence[str]) -> None:
    said = refused(3, "finetune", "quickstart", *tiny_overrides, *ARREST, "--from", pretrained / "state.safetensors")
    assert "not a 'model'" in said


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.width=0.25", "the weights do not fit the network"),
        ("model.arch=resnet18", "the weights do not fit the network"),
        ("model={arch: small-cnn, width: 0.5, mean: [0.5], std: [0.5]}", "another normalisation"),
    ],
)
def test_another_network_is_refused(pretrained: Path, tiny_overrides: Sequence[str], override: str, reason: str) -> None:
    assert reason in refused(3, "finetune", "quickstart", *tiny_overrides, *ARREST, override, "--from", pretrained)


def test_other_classes_are_refused(tiny: Callable[..., Recipe], tiny_overrides: Sequence[str]) -> None:
    """As many classes under other names: the shapes fit, and the head would be nonsense."""
    architecture = Architecture("small-cnn", 0.5, 10, 1, 8)
    header = {"classes": list("abcdefghij"), "threat": {"norm": "linf", "eps": "0.15"}, "data": {"name": "folder"}}
    checkpoint.write_network(Path("letters.safetensors"), build(architecture), architecture, header)
    said = refused(3, "finetune", "quickstart", *tiny_overrides, *ARREST, "--from", "letters.safetensors")
    assert "other classes: a, b, c, d, ... (10) instead of 0, 1, 2, 3, ... (10)" in said


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("objective.replay.until=3", "3 epochs of replay, but training has 2"),
        ("objective.replay.angle=0", "objective.replay.angle"),
        ("objective.replay.angle=120", "objective.replay.angle"),
        ("objective.replay.tau=0.1", "unknown key objective.replay.tau"),
        ("objective.distillation.name=kl", "objective.distillation.name is one of angular, squared, attention-map, logit; got 'kl'"),
        ("craft.batch_norm=train", "too few for batch statistics"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(override: str, problem: str, tiny_overrides: Sequence[str]) -> None:
    said = refused(2, "finetune", "quickstart", *tiny_overrides, *ARREST, override, "--from", "nowhere")
    assert squeezed(problem) in squeezed(said)


def test_a_missing_start_is_said_before_data_are_fetched(tmp_path: Path) -> None:
    data = f"data={{name: cifar10, root: {tmp_path}, download: false}}"
    said = refused(3, "finetune", "arrest", data, "--from", tmp_path / "nothing")
    assert "no such model file" in said
    assert "CIFAR" not in said
