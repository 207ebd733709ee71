"""What runs without torch, and the order in which the rooms may import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import advcli
from advcli.recipe import find

PACKAGE = Path(advcli.__file__).parent
ROOMS = (
    "errors",
    "torchrun",
    "measures",
    "draws",
    "recipe",
    "data",
    "gates",
    "models",
    "attacks",
    "objectives",
    "runs",
    "training",
    "evaluation",
    "doctor",
    "report",
    "cli",
)
_PROBE = """
import sys
{body}
heavy = sorted({{name.partition('.')[0] for name in sys.modules}} & {{'torch', 'torchvision', 'sklearn', 'matplotlib'}})
assert {witness!r} in sys.modules, 'the probe did not run what it should'
assert not heavy, heavy
"""
_COMMAND = """
from advcli.cli.app import app
try:
    app({arguments!r})
except SystemExit as left:
    assert not left.code, left.code
"""


def probe(body: str, witness: str, cwd: Path) -> str:
    code = _PROBE.format(body=body, witness=witness)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (["--help"], "adv-train"),
        (["--version"], advcli.__version__),
        (["adv-train", "--help"], "--dry-run"),
        (["finetune", "--help"], "--from"),
        (["attack", "--help"], "--suite"),
        (["compare", "--help"], "--column"),
        (["deploy-ra", "--help"], "--no-eval"),
        (["bench", "--help"], "--peers"),
        (["doctor", "--help"], "RECIPE"),
        (["convert", "--help"], "--arch"),
        (["visualize", "--help"], "perturbations"),
        (["visualize", "perturbations", "--help"], "--attack"),
        (["report", "--help"], "EVAL-OR-RUN"),
        (["card", "--help"], "CKPT"),
        (["recipe", "list"], "quickstart"),
        (["recipe", "list", "--json"], '"quickstart"'),
        (["recipe", "show", "quickstart"], "arch: small-cnn"),
        (["recipe", "validate", "quickstart", "model.width=0.5"], "width: 0.5"),
        (["recipe", "schema"], '"additionalProperties": false'),
        (["recipe", "copy", "quickstart", "mine.yaml"], "mine.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_do_not_compute_run_without_torch(arguments: list[str], shows: str, tmp_path: Path) -> None:
    assert shows in probe(_COMMAND.format(arguments=arguments), "advcli.cli.app", tmp_path)
    if arguments[:2] == ["recipe", "copy"]:
        assert (tmp_path / "mine.yaml").read_text() == find("quickstart").read_text()


def test_a_wrong_recipe_is_refused_without_torch(tmp_path: Path) -> None:
    """A typing mistake costs no second of torch's import: exit 2, nothing on stdout."""
    body = _COMMAND.format(arguments=["adv-train", "quickstart", "optim.lrr=1"]).replace("not left.code", "left.code == 2")
    assert probe(body, "advcli.recipe.loader", tmp_path) == ""


@pytest.mark.parametrize(
    "module",
    [
        "advcli.doctor",
        "advcli.errors",
        "advcli.measures",
        "advcli.torchrun",
        "advcli.recipe",
        "advcli.recipe.schema",
        "advcli.report.card",
        "advcli.report.page",
        "advcli.report.comparison",
        "advcli.report.formats",
        "advcli.report.health",
        "advcli.report.speed",
        "advcli.report.figures.data",
        "advcli.report.papers",
        "advcli.report.subject",
        "advcli.report.terminal",
        "advcli.report.progress",
        "advcli.runs.atomic",
        "advcli.runs.container",
        "advcli.runs.folder",
        "advcli.runs.ledger",
        "advcli.runs.log",
        "advcli.evaluation.comparison",
        "advcli.evaluation.masking",
        "advcli.evaluation.methods",
        "advcli.evaluation.table",
        "advcli.evaluation.pairs",
        "advcli.evaluation.stored",
        "advcli.evaluation.summary",
    ],
)
def test_readers_import_without_torch(module: str, tmp_path: Path) -> None:
    probe(f"import {module}", module, tmp_path)


def room_of(path: Path) -> str:
    """The first name under the package: a directory or a module; the package's own files are the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the package in source, wherever it stands; package: the module's own package, for relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else str(node.module)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "advcli" and len(words) > 1 and not words[1].startswith("__"):
                yield node.lineno, words[1]


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import advcli", []),
        ("from advcli import __version__", []),
        ("import advcli.cli.app as a", ["cli"]),
        ("from advcli import draws, errors", ["draws", "errors"]),
        ("def f():\n    from advcli.training.loop import train", ["training"]),
        ("if TYPE_CHECKING:\n    import advcli.models", ["models"]),
        ("from ..cli import app", ["cli"]),
        ("from .split import x", ["data"]),
        ("import numpy, torch.nn", []),
    ],
)
def test_the_walk_sees_every_form_of_import(source: str, rooms: list[str]) -> None:
    assert [room for _, room in imported_rooms(source, ("advcli", "data"))] == rooms


def test_imports_go_up_the_list_only() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room in ("__init__", "__main__"):
            continue
        assert room in ROOMS, f"{path} is in no room of the house"
        package = ("advcli", *path.relative_to(PACKAGE).parent.parts)
        for line, other in imported_rooms(path.read_text(encoding="utf-8"), package):
            assert other in ROOMS, f"{path}:{line} imports {other}, which is no room"
            if ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_no_room() -> None:
    assert list(imported_rooms((PACKAGE / "__init__.py").read_text(encoding="utf-8"), ("advcli",))) == []
