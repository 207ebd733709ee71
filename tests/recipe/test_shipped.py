"""The recipes that travel with the package: found by every name, loaded, and their heads tell the truth."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from advcli.cli.app import app
from advcli.errors import UsageError
from advcli.recipe import dump, find, load, names, parse, shipped
from advcli.training.schedule import factor
from advcli.training.session import check_command


def head(name: str) -> list[str]:
    """The comment lines at the top of a recipe."""
    lines = find(name).read_text(encoding="utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def commands(name: str) -> list[str]:
    """The command lines in a recipe's head, without their remarks in parentheses after two or more blanks."""
    return [re.sub(r"\s{2,}\(.*\)\s*$", "", line.removeprefix("#").strip()) for line in head(name) if re.match(r"#\s+advcli\s", line)]


COMMANDS = [(name, line) for name in names() for line in commands(name)]


def test_there_are_recipes() -> None:
    assert {"quickstart", "standard", "pgd-at", "trades", "mart", "arrest"} <= set(names())
    assert names() == sorted(path.stem for path in shipped.directory().iterdir() if path.suffix == ".yaml")


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_called_like_its_file_and_survives_its_dump(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    assert parse(dump(recipe)) == recipe
    assert dump(parse(dump(recipe))) == dump(recipe)


@pytest.mark.parametrize("name", names())
def test_the_first_line_says_what_it_is(name: str) -> None:
    first = head(name)[0]
    assert re.fullmatch(r"# \S.{19,}\.", first), "a sentence in a comment"
    assert shipped.summary(find(name)) == first[2:]
    assert any(line.startswith(("# Source:", "# Paper:")) for line in head(name)), "the head names its source"


@pytest.mark.parametrize("name", names())
def test_the_head_gives_the_command_that_trains_it(name: str) -> None:
    assert any(re.match(rf"advcli (pretrain|adv-train|finetune) recipes/{re.escape(name)}\.yaml(\s|$)", line) for line in commands(name))


def test_arrest_has_the_papers_learning_rates() -> None:
    """Section 5.2: 0.025, from epoch 11 on 0.02, then halved every two epochs."""
    recipe = load("arrest")
    rates = [float(recipe.optim.lr) * factor(recipe.schedule, step, 3) for step in range(3 * recipe.schedule.epochs)]
    expected = [0.025] * 10 + [0.02] * 2 + [0.01] * 2 + [0.005] * 2 + [0.0025] * 2 + [0.00125] * 2
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)], rel=1e-12)


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_every_command_line_in_a_head_is_accepted(name: str, line: str) -> None:
    """The command line parser takes it, the recipe takes its overrides, and the command trains that objective. Nothing is run."""
    program, command, *arguments = shlex.split(line)
    group = typer.main.get_command(app)
    context = group.commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    assert program == "advcli"
    if "recipe" in context.params:
        recipe = load(context.params["recipe"], context.params["overrides"] or [])
        own = {name, "standard"} if command == "pretrain" else {name}
        assert Path(context.params["recipe"]).stem in own, "a head speaks of its own recipe, and of the pretraining it starts from"
        check_command(recipe, command)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("form", ["{0}", "{0}.yaml", "recipes/{0}.yaml", "recipes/{0}"])
def test_found_by_name_from_anywhere(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(form.format(name)) == shipped.directory() / f"{name}.yaml"


def test_a_file_comes_before_a_shipped_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "quickstart.yaml"
    mine.write_text("# mine\n", encoding="utf-8")
    assert find("recipes/quickstart.yaml").resolve() == mine
    assert find(str(mine)) == mine
    (tmp_path / "quickstart").mkdir()
    assert find("quickstart") == shipped.directory() / "quickstart.yaml", "a folder of that name is no recipe"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("recipes/trade.yaml", "did you mean trades?"),
        ("quickstart.yml", "did you mean quickstart?"),
        ("elsewhere/quickstart.yaml", "did you mean quickstart?"),
        ("zzzzzz", ""),
        ("", ""),
        (".", ""),
    ],
)
def test_an_unknown_recipe_is_refused_with_a_hint(name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        find(name)
    assert hint in caught.value.what
    assert ("did you mean" in caught.value.what) == bool(hint)
    assert caught.value.where == str((tmp_path / name).absolute())
    assert "advcli recipe list" in caught.value.next


def test_an_installation_without_recipes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_HERE", tmp_path / "advcli" / "recipe")
    with pytest.raises(UsageError, match="missing from this installation"):
        names()


def test_in_a_wheel_the_recipes_lie_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "advcli" / "recipe" / "shipped"
    inside.mkdir(parents=True)
    (inside / "only.yaml").write_text("name: only\n", encoding="utf-8")
    monkeypatch.setattr(shipped, "_HERE", inside.parent)
    assert names() == ["only"]
    assert find("only") == inside / "only.yaml"
    assert shipped.summary(inside / "only.yaml") == "", "a recipe without a head has no summary"
