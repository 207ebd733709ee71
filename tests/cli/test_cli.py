"""The command line: every wrong input is a panel, an exit code and a way out, and never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typed import advcli_, refused

import advcli
from advcli.cli.output import notices_shown
from advcli.errors import Notice
from advcli.recipe import names, parse

RECIPES = ["recipe", "recipe list", "recipe show", "recipe copy", "recipe validate", "recipe schema"]
COMMANDS = ["pretrain", "adv-train", "finetune", "attack", "deploy-ra", "convert", "compare", "report", "card", "bench", "doctor", *RECIPES]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ADVCLI_DATA", str(tmp_path / "no data"))


def listed(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def squeezed(text: object) -> str:
    return "".join(str(text).split())


# Help and version.


def test_the_version_is_the_package_s() -> None:
    assert advcli_("--version").stdout == f"advcli {advcli.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    done = advcli_(*command.split(), "--help")
    assert done.exit_code == 0
    assert f"Usage: root {command}".strip() in " ".join(done.stdout.split()) or command in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not done.stderr


def test_help_lists_every_command() -> None:
    text = advcli_("--help").stdout
    assert all(command in text for command in ("pretrain", "adv-train", "finetune", "attack", "recipe"))


@pytest.mark.parametrize("command", ["pretrain", "adv-train", "finetune", "attack"])
def test_commands_that_compute_show_an_example_and_the_common_options(command: str) -> None:
    text = advcli_(command, "--help").stdout
    assert f"Example: advcli {command}" in " ".join(text.split())
    assert all(option in text for option in ("--json", "--quiet", "--device", "--out", "--resume"))


def test_no_arguments_show_the_help() -> None:
    done = advcli_()
    assert "adv-train" in done.output
    assert done.exit_code in (0, 2)


def test_the_module_and_its_exit_code_are_real() -> None:
    done = subprocess.run([sys.executable, "-m", "advcli", "recipe", "show", "quickstartt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean quickstart?" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


# Training.

TRAINERS = ["adv-train", "pretrain", "finetune"]


@pytest.mark.parametrize("command", [*TRAINERS, "recipe show", "recipe validate", "recipe copy"])
def test_an_unknown_recipe_gets_a_hint(command: str) -> None:
    said = refused(2, *command.split(), "quikstart")
    assert "there is no recipe 'quikstart' (did you mean quickstart?)" in said
    assert "advcli recipe list" in said


@pytest.mark.parametrize("command", [*TRAINERS, "recipe validate"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [unclosed\n", "not valid YAML"),
        ("", "a recipe is a mapping of parts"),
        ("- 1\n", "a recipe is a mapping of parts"),
        ("name: x\nname: y\n", "bad.yaml:2:1: 'name' is given twice"),
        ("name: x\n\tdata: 1\n", "bad.yaml:2:"),
    ],
)
def test_bad_yaml_is_placed(command: str, text: str, problem: str) -> None:
    Path("bad.yaml").write_text(text)
    assert problem in refused(2, *command.split(), "bad.yaml")


@pytest.mark.parametrize("command", [*TRAINERS, "recipe validate"])
@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not text", "a directory"])
def test_what_is_no_text_is_refused(command: str, content: bytes | None) -> None:
    path = Path("bad.yaml")
    path.write_bytes(content) if content is not None else path.mkdir()
    refused(2, *command.split(), "bad.yaml")


@pytest.mark.parametrize("command", [*TRAINERS, "recipe validate"])
@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.learning_rate=0.1", "override optim.learning_rate=0.1: unknown key optim.learning_rate"),
        ("optim.lr=-1", "override optim.lr=-1: optim.lr"),
        ("optim.lr=fast", "expected a number such as 0.1, 1e-3 or 8/255, got 'fast'"),
        ("threat.eps=8", "did you mean 8/255?"),
        ("threat.norm=l7", "threat.norm is one of linf, l2; got 'l7'"),
        ("data.name=mnist", "data.name is one of digits, cifar10"),
        ("model.arch=resnet81", "resnet18"),
        ("optim", "'optim' is no override"),
        ("~absent", "the recipe has no absent"),
        ("train.batch_size=0", "train.batch_size"),
        ("select.metric=pgd", "select.metric"),
    ],
)
def test_a_bad_override_is_named(command: str, override: str, problem: str) -> None:
    assert squeezed(problem) in squeezed(refused(2, *command.split(), "quickstart", override))


def test_all_problems_come_at_once() -> None:
    said = refused(2, "adv-train", "quickstart", "optim.lr=x", "seed=-1", "threat.norm=l7")
    assert all(f"override {override}" in said for override in ("optim.lr=x", "seed=-1", "threat.norm=l7"))


@pytest.mark.parametrize(("command", "recipe", "other"), [("adv-train", "standard", "pretrain"), ("pretrain", "pgd-at", "adv-train")])
def test_a_recipe_for_the_other_command_names_it(command: str, recipe: str, other: str) -> None:
    assert f"next advcli {other} with the same recipe" in refused(2, command, recipe)


@pytest.mark.parametrize("command", ["adv-train", "attack"])
@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "xpu:7"])
def test_a_device_that_is_not_there_is_refused(checkpoint: Path, command: str, device: str) -> None:
    said = refused(2, command, "quickstart" if command == "adv-train" else checkpoint, "--device", device)
    assert f"device '{device}' cannot be used" in said
    assert "--device auto" in said
    assert listed() == []


def test_cuda_is_refused_without_one(checkpoint: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so that cuda is no wrong answer")
    assert "device 'cuda' cannot be used" in refused(2, "adv-train", "quickstart", "--device", "cuda")
    assert "device 'cuda' cannot be used" in refused(2, "attack", checkpoint, "--device", "cuda")


@pytest.mark.parametrize("command", ["adv-train", "attack"])
def test_an_out_folder_that_holds_something_is_refused(checkpoint: Path, command: str) -> None:
    Path("mine").mkdir()
    Path("mine/notes").write_text("x")
    assert "nothing is overwritten" in refused(2, command, "quickstart" if command == "adv-train" else checkpoint, "--out", "mine")
    assert listed("mine") == ["notes"]


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "svhn", "tiny-imagenet"])
def test_absent_data_says_where_it_belongs(data: str, tmp_path: Path) -> None:
    said = refused(3, "adv-train", "pgd-at", f"data.name={data}", "data.download=false")
    assert squeezed(tmp_path / "no data") in squeezed(said)
    assert "data.root" in said
    assert listed() == []


def test_training_ends_with_the_checkpoint_and_the_next_command(tiny_overrides: Sequence[str], one_thread: None) -> None:
    done = advcli_("adv-train", "quickstart", *tiny_overrides)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("runs/quickstart/model.safetensors epoch ")
    assert lines[1] == "next: advcli attack runs/quickstart/model.safetensors --suite aa"
    assert lines[-1].startswith("held out, n = ")
    assert lines[-1].endswith(", an upper bound")
    assert done.stderr.count("epoch ") == 2
    assert listed("runs/quickstart") == [
        "last.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "probe.json",
        "recipe.yaml",
        "state.safetensors",
        "timing.jsonl",
    ]


# JSON and silence.


def one_object(done: Any) -> dict[str, Any]:
    """stdout of a command is exactly one JSON object."""
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def standard(overrides: Sequence[str]) -> list[str]:
    return [*(override for override in overrides if not override.startswith("craft")), "objective={name: standard}", "~craft"]


def test_json_of_training(tiny_overrides: Sequence[str], one_thread: None) -> None:
    for command, overrides in (("adv-train", list(tiny_overrides)), ("pretrain", standard(tiny_overrides))):
        facts = one_object(advcli_(command, "quickstart", *overrides, "--json", "--out", command))
        assert facts.keys() == {"folder", "checkpoint", "epochs", "best_epoch", "measured"}
        assert (facts["folder"], facts["checkpoint"], facts["epochs"]) == (command, f"{command}/model.safetensors", 2)
        assert facts["measured"]["epoch"] == facts["best_epoch"]


def test_json_of_a_dry_run(tiny_overrides: Sequence[str], one_thread: None) -> None:
    facts = one_object(advcli_("adv-train", "quickstart", *tiny_overrides, "--dry-run", "--json"))
    assert parse(json.dumps(facts["recipe"])).name == "quickstart"
    assert (facts["steps"], facts["forwards"]) == (6, 4)
    assert listed() == []


def test_a_dry_run_for_people_writes_nothing(tiny_overrides: Sequence[str], one_thread: None) -> None:
    done = advcli_("adv-train", "quickstart", *tiny_overrides, "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].endswith("no run folder was made")
    assert listed() == []


def test_json_of_an_attack(checkpoint: Path) -> None:
    facts = one_object(advcli_("attack", checkpoint, "--n", 12, "--json"))
    assert (facts["n"], facts["suite"], facts["checkpoint"]) == (12, "quick", str(checkpoint))
    assert facts["ci"][0] <= facts["robust"] <= facts["ci"][1]


def test_json_of_recipes() -> None:
    assert [row["name"] for row in json.loads(advcli_("recipe", "list", "--json").stdout)] == names()
    assert one_object(advcli_("recipe", "validate", "quickstart", "--json"))["name"] == "quickstart"
    assert {"data", "model", "objective", "optim", "schedule"} <= one_object(advcli_("recipe", "schema"))["properties"].keys()


def test_a_notice_is_one_line_and_others_warnings_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "no cache of [bold] images in /a/place that is longer than any terminal is wide: so much memory is taken"

    def warn() -> None:
        warnings.warn(text, Notice, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="another"), notices_shown():
        warn()
    assert capsys.readouterr().err == f"note {text}\n"


def test_quiet_says_nothing_on_stderr(tiny_overrides: Sequence[str], one_thread: None) -> None:
    done = advcli_("adv-train", "quickstart", *tiny_overrides, "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    done = advcli_("attack", "--n", 5, "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("robust ")


# Attacks.


def bomb(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, ("executed",))

    path.write_bytes(pickle.dumps(Bomb()))


def damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: p.unlink(), "there is no such model"),
    "pickle": (bomb, "a Python pickle; it was not opened"),
    "damaged": (damage, "the file is damaged"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:5000]), "damaged or truncated"),
    "text": (lambda p: p.write_text("weights"), "no safetensors file"),
    "empty folder": (lambda p: (p.unlink(), p.mkdir()), "there is no such model"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_checkpoint_is_refused(checkpoint: Path, name: str) -> None:
    make, reason = UNFIT[name]
    make(checkpoint)
    said = refused(3, "attack", checkpoint, "--n", 5)
    assert reason in said
    assert squeezed(checkpoint) in squeezed(said)
    assert listed() == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--suite", "autoattack"], "there is no suite 'autoattack'"),
        (["--eps", "8"], "did you mean --eps 8/255?"),
        (["--eps", "0"], "eps is over 0"),
        (["--eps", "-0.1"], "eps is over 0"),
        (["--eps", "much"], "got 'much'"),
        (["--eps", "1/0"], "divides by zero"),
        (["--norm", "l7"], "norm is linf or l2"),
        (["--data", "mnist"], "the data set 'mnist' is not known"),
        (["--data", "folder"], "needs its place"),
        (["--n", "0"], "--n"),
        (["--n", "many"], "--n"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "-1"], "--seed"),
        (["--split", "all"], "--split"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_option_is_refused(checkpoint: Path, options: list[str], reason: str) -> None:
    assert squeezed(reason) in squeezed(refused(2, "attack", checkpoint, *options))
    assert not (checkpoint.parent / "evals").exists()


def images(root: Path, classes: Sequence[str], *, side: int, colour: bool = False) -> Path:
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((side, side, 3) if colour else (side, side), np.uint8)).save(root / split / name / "a.png")
    return root


DIGITS = [str(k) for k in range(10)]


@pytest.mark.parametrize(
    ("classes", "side", "colour", "reason"),
    [
        (["cat", "dog"], 8, False, "other classes than the checkpoint: cat, dog instead of 0, 1, 2, 3, ... (10)"),
        (DIGITS, 16, False, "images are (1, 16, 16) (channels, height, width), and the network takes (1, 8, 8)"),
        (DIGITS, 8, True, "images are (3, 8, 8)"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    checkpoint: Path, tmp_path: Path, classes: list[str], side: int, colour: bool, reason: str
) -> None:
    root = images(tmp_path / "images", classes, side=side, colour=colour)
    assert reason in refused(3, "attack", checkpoint, "--data", "folder", "--data-root", root)


def test_images_of_one_s_own_that_fit_are_attacked(checkpoint: Path, tmp_path: Path) -> None:
    root = images(tmp_path / "images", DIGITS, side=8)
    assert one_object(advcli_("attack", checkpoint, "--data", "folder", "--data-root", root, "--json"))["n"] == 10


def test_absent_images_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert "train/CLASS/*" in refused(3, "attack", checkpoint, "--data", "folder", "--data-root", tmp_path / "nowhere")


def test_no_checkpoint_under_runs_tells_how_to_make_one() -> None:
    said = refused(3, "attack")
    assert "no checkpoint was named, and there is none under runs/" in said
    assert "advcli adv-train recipes/quickstart.yaml" in said


def test_a_checkpoint_left_out_is_the_newest_and_said_aloud(trained_run: Path) -> None:
    for age, name in ((5, "old"), (1, "new"), (9, "older")):
        path = Path("runs") / name / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes((trained_run / "model.safetensors").read_bytes())
        os.utime(path, (1e9 - age, 1e9 - age))
    done = advcli_("attack", "--n", 5)
    assert done.exit_code == 0
    assert "taking the newest, runs/new/model.safetensors" in " ".join(done.stderr.split())
    assert "runs/new/model.safetensors" in done.stdout
    assert listed("runs/new/evals")


def test_a_run_folder_stands_for_its_checkpoint(checkpoint: Path) -> None:
    (checkpoint.parent / "last.safetensors").write_bytes(b"not this one")
    facts = one_object(advcli_("attack", checkpoint.parent, "--n", 5, "--json"))
    assert facts["checkpoint"] == str(checkpoint)


def test_strict_is_not_content_with_an_upper_bound(checkpoint: Path) -> None:
    done = advcli_("attack", checkpoint, "--n", 5, "--strict", "--quiet")
    assert done.exit_code == 4
    assert "upper bound" in done.stderr
    assert "--suite aa" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("robust ")  # the report all the same


def test_a_list_of_eps_is_a_curve(checkpoint: Path) -> None:
    options = ["--n", 12, "--eps", "0.05,0.2", "--quiet"]
    facts = one_object(advcli_("attack", checkpoint, *options, "--json"))
    assert [point["eps"] for point in facts["curve"]] == ["0.05", "0.2"]
    assert facts["curve"][0]["ci"][0] <= facts["curve"][0]["robust"] <= facts["curve"][0]["ci"][1]
    done = advcli_("attack", checkpoint, *options, "--strict")
    assert (done.exit_code, "upper bound" in done.stderr) == (4, True)
    assert " ".join(done.stdout.split()).endswith("at eps 0.2, an upper bound")


def test_options_reach_the_evaluation(checkpoint: Path) -> None:
    options = ["--n", 6, "--norm", "l2", "--eps", "64/255", "--seed", 3, "--split", "train", "--batch-size", 4, "--out", "here"]
    facts = one_object(advcli_("attack", checkpoint, *options, "--json"))
    assert facts["threat"] == {"norm": "l2", "eps": "64/255", "bounds": [0.0, 1.0]}
    identity = json.loads(Path("here/identity.json").read_text())
    assert (identity["seed"], identity["chunk"], identity["threat"]["eps"]) == (3, 4, 64 / 255)


# Recipes.


def test_list_names_every_shipped_recipe() -> None:
    done = advcli_("recipe", "list")
    assert all(name in done.stdout for name in names())


@pytest.mark.parametrize("name", names())
def test_show_copy_and_validate_agree(name: str) -> None:
    shown = advcli_("recipe", "show", name).stdout
    assert advcli_("recipe", "copy", name).stdout == f"{name}.yaml\n"
    assert Path(f"{name}.yaml").read_text() == shown
    resolved = advcli_("recipe", "validate", f"{name}.yaml").stdout
    assert parse(resolved) == parse(shown)
    assert yaml.safe_load(resolved)["optim"]["momentum"] == 0.9  # every default is written out


def test_copy_overwrites_nothing(tmp_path: Path) -> None:
    Path("quickstart.yaml").write_text("mine")
    Path("folder").mkdir()
    assert "nothing is overwritten" in refused(2, "recipe", "copy", "pgd-at", "quickstart.yaml")
    assert Path("quickstart.yaml").read_text() == "mine"
    assert "no such directory" in refused(2, "recipe", "copy", "pgd-at", "absent/x.yaml")
    assert advcli_("recipe", "copy", "pgd-at", "folder").exit_code == 0
    assert "nothing is overwritten" in refused(2, "recipe", "copy", "pgd-at", "folder")


def test_validate_applies_overrides() -> None:
    done = advcli_("recipe", "validate", "quickstart", "optim.lr=1/8", "~seed")
    assert parse(done.stdout).optim.lr == 0.125


def test_recipes_are_looked_at_without_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from advcli.cli.app import app\n"
        "for words in ('list', 'show quickstart', 'validate quickstart', 'schema', 'copy quickstart'):\n"
        "    assert CliRunner().invoke(app, ['recipe', *words.split()]).exit_code == 0, words\n"
        "assert CliRunner().invoke(app, ['attack', '--help']).exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
