"""Run folders: found, numbered, never overwritten; and a resume continues the same recipe only."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from advcli.errors import CheckpointError, RecipeError, ResumeError, UsageError
from advcli.recipe import Recipe, load
from advcli.runs import folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quickstart(*overrides: str) -> Recipe:
    return load("quickstart", overrides)


def test_names_count_up() -> None:
    assert [folder.create("again", None) for _ in range(3)] == [Path("runs/again"), Path("runs/again-2"), Path("runs/again-3")]


def test_a_file_in_the_way_counts_as_taken() -> None:
    Path("runs").mkdir()
    Path("runs/again").write_text("mine")
    assert folder.create("again", None) == Path("runs/again-2")
    assert Path("runs/again").read_text() == "mine"


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: (p.mkdir(), (p / "x").touch())], ids=["file", "full folder"])
def test_out_is_never_overwritten(make: object) -> None:
    out = Path("mine")
    make(out)  # type: ignore[operator]
    with pytest.raises(UsageError, match="nothing is overwritten") as raised:
        folder.create("again", out)
    assert "--resume" in raised.value.next


@pytest.mark.parametrize("made", [False, True], ids=["absent", "empty"])
def test_out_that_holds_nothing_is_taken(made: bool) -> None:
    out = Path("a/b")
    if made:
        out.mkdir(parents=True)
    assert folder.create("again", out) == out
    assert out.is_dir()


def test_threads_get_different_folders() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: folder.create("again", None), range(40)))
    assert len(set(made)) == 40
    assert {p.name for p in Path("runs").iterdir()} == {p.name for p in made}


def test_processes_get_different_folders() -> None:
    code = "from advcli.runs import folder\nfor _ in range(30): print(folder.create('again', None))"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [line for process in started for line in process.communicate()[0].split()]
    assert len(made) == len(set(made)) == 60


def test_newest_goes_by_number_and_by_the_whole_name() -> None:
    for name in ("again", "again-2", "again-9", "again-10", "against", "again-x", "other-77", "xagain-99"):
        (Path("runs") / name).mkdir(parents=True)
    Path("runs/again-11").write_text("a file")
    assert folder.newest("again") == Path("runs/again-10")
    assert folder.newest("against") == Path("runs/against")
    assert folder.newest("agai") is None


def test_a_run_folder_does_for_its_model_file() -> None:
    Path("runs/a").mkdir(parents=True)
    assert folder.model_file(Path("runs/a")) == Path("runs/a/model.safetensors")
    assert folder.model_file(Path("runs/a/last.safetensors")) == Path("runs/a/last.safetensors")


def test_newest_checkpoint_goes_by_time() -> None:
    for age, name in ((30, "a"), (10, "b/deep"), (20, "c")):
        path = Path("runs") / name / "model.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (Path("runs") / "c" / "last.safetensors").touch()
    assert folder.newest_checkpoint() == Path("runs/b/deep/model.safetensors")


def test_no_checkpoint_names_the_way_out() -> None:
    with pytest.raises(CheckpointError, match="none under runs/") as raised:
        folder.newest_checkpoint()
    assert "advcli adv-train" in raised.value.next


def test_a_stored_recipe_comes_back_equal() -> None:
    recipe = quickstart("threat.eps=8/255", "objective.name=trades", "train.ema=0.999")
    Path("run").mkdir()
    assert folder.stored_recipe(Path("run")) is None
    folder.store_recipe(Path("run"), recipe)
    assert folder.stored_recipe(Path("run")) == recipe
    folder.check_same(recipe, quickstart("threat.eps=8/255", "objective.name=trades", "train.ema=0.999"), Path("run"))


@pytest.mark.parametrize("damage", [b"name: [", b"name: quickstart\n", b"\xff\xfe\x00", b""])
def test_a_damaged_stored_recipe_is_an_error_of_ours(damage: bytes) -> None:
    Path("recipe.yaml").write_bytes(damage)
    with pytest.raises((RecipeError, UsageError, CheckpointError), match=r"recipe\.yaml"):
        folder.stored_recipe(Path())


@pytest.mark.parametrize(
    ("override", "row"),
    [
        ("optim.lr=0.2", "optim.lr: 0.1 in the run, 0.2 now"),
        ("seed=1", "seed: 0 in the run, 1 now"),
        ("threat.eps=8/255", "threat.eps: 0.15 in the run, '8/255' now"),
        ("train.precision=bf16", "train.precision: 'fp32' in the run, 'bf16' now"),
        ("objective.name=mart", "objective.name: 'pgd-at' in the run, 'mart' now"),
        ("schedule.epochs=41", "schedule.epochs: 40 in the run, 41 now"),
        ("data.limit=500", "data.limit: None in the run, 500 now"),
        ("name=else", "name: 'quickstart' in the run, 'else' now"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(override: str, row: str) -> None:
    with pytest.raises(ResumeError) as raised:
        folder.check_same(quickstart("train.precision=fp32"), quickstart(override), Path("run"))
    assert row in raised.value.what.splitlines()
    assert raised.value.exit_code == 2


def test_all_differences_are_named_at_once() -> None:
    with pytest.raises(ResumeError) as raised:
        folder.check_same(quickstart("train.precision=fp32"), quickstart("seed=3", "optim.lr=1", "data.root=/x"), Path("run"))
    assert [row.split(":")[0] for row in raised.value.what.splitlines()[1:]] == ["optim.lr", "seed"]


@pytest.mark.parametrize("override", ["data.root=/elsewhere", "data.download=false", "train.save_every=1", "train.precision=auto"])
def test_what_does_not_change_the_numbers_may_differ(override: str) -> None:
    stored, given = quickstart("train.precision=tf32"), quickstart("train.precision=tf32", override)
    assert stored != given
    folder.check_same(stored, given, Path("run"))


@pytest.mark.parametrize("override", ["data.root=/elsewhere", "data.download=false", "train.save_every=1"])
def test_the_digest_ignores_what_does_not_change_the_numbers(override: str) -> None:
    assert folder.digest(quickstart(override)) == folder.digest(quickstart())


@pytest.mark.parametrize("override", ["seed=1", "optim.lr=0.2", "train.precision=bf16", "objective.wrapper.name=awp", "select.every=2"])
def test_the_digest_sees_what_changes_the_numbers(override: str) -> None:
    assert folder.digest(quickstart(override)) != folder.digest(quickstart())
