"""Screens: 80 columns in any encoding, names as they are, and the number that matters in the last line."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from advcli.errors import CheckpointError, InterruptedRunError, RecipeError, UsageError
from advcli.recipe import dump, load, names
from advcli.report import terminal

LISTEN = ["colour", "plain", "ascii"]


class Screen:
    """A console of 80 columns; text() is what was shown, without colour codes."""

    def __init__(self, kind: str) -> None:
        self.bytes = io.BytesIO()
        self.file = io.TextIOWrapper(self.bytes, encoding="ascii" if kind == "ascii" else "utf-8", newline="")
        colour = kind == "colour"
        system = "truecolor" if colour else None
        self.console = Console(file=self.file, width=80, highlight=False, force_terminal=colour, color_system=system)  # type: ignore[arg-type]

    def text(self) -> str:
        self.file.flush()
        return Text.from_ansi(self.bytes.getvalue().decode()).plain

    def lines(self) -> list[str]:
        return self.text().rstrip("\n").split("\n")


@pytest.fixture(params=LISTEN)
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen(request.param)
    monkeypatch.setattr(terminal, "OUT", shown.console)
    monkeypatch.setattr(terminal, "ERR", shown.console)
    return shown


def fitted(lines: list[str]) -> list[str]:
    """All lines but the checkpoint's path, which is never broken, so that it can be copied."""
    return [line for line in lines if not line.endswith("model.safetensors")]


def report(**changes: Any) -> dict[str, Any]:
    attacks = {name: {"accuracy": 0.5 + k / 100, "on": "all"} for k, name in enumerate(("fgsm", "pgd-100@eps/10", "cw-30", "apgd-ce"))}
    whole = {
        "checkpoint": "runs/quickstart/model.safetensors",
        "threat": {"norm": "linf", "eps": "8/255", "bounds": [0, 1]},
        "data": "digits",
        "split": "test",
        "notes": [],
        "suite": "quick",
        "n": 200,
        "clean": 0.9,
        "attacks": attacks,
        "robust": 0.455,
        "per_class": {str(k): {"n": 20, "clean": 0.9, "robust": 0.5 - k / 100} for k in range(10)},
        "worst_class": "9",
        "flags": [],
        "reasons": ["suite quick is a few attacks, and others may break more"],
        "verdict": "upper bound",
        "seconds": 12.3,
        "forwards": 123_456,
        "backwards": 99_999,
        "borderline": 0,
    }
    return {**whole, **changes}


FLAG = {
    "name": "black-box-beats-white-box",
    "raised": True,
    "value": 0.051,
    "threshold": 0.02,
    "p": 1e-5,
    "means": "masked",
    "source": "Athalye et al. 2018",
    "message": "a black-box attack (square) breaks images that no other broke",
}
LONG = "runs/" + "a-rather-long-name-of-a-run/" * 4 + "model.safetensors"

REPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "upper bound": ({}, "robust 45.5 % [38.7, 52.4] worst case of these attacks alone: an upper bound"),
    "trustworthy": ({"suite": "aa", "verdict": "trustworthy"}, "robust 45.5 % [38.7, 52.4] worst case"),
    "masked": (
        {"verdict": "masked", "flags": [FLAG]},
        "robust 45.5 % [38.7, 52.4] gradients look masked: at best an upper bound",
    ),
    "widest": ({"robust": 1.0, "n": 10**7}, "robust 100.0 % [100.0, 100.0] worst case of these attacks alone: an upper bound"),
    "no clock": ({"seconds": None, "robust": 0.0}, "robust 0.0 % [0.0, 1.9] worst case of these attacks alone: an upper bound"),
    "long path": ({"checkpoint": LONG}, "robust 45.5 % [38.7, 52.4] worst case of these attacks alone: an upper bound"),
    "many classes": (
        {"per_class": {f"class {k}": {"n": 2, "clean": 1, "robust": 0.5} for k in range(200)}, "worst_class": "class 7"},
        "robust 45.5 % [38.7, 52.4] worst case of these attacks alone: an upper bound",
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_an_evaluation_fits_and_ends_with_the_headline(screen: Screen, name: str) -> None:
    changes, headline = REPORTS[name]
    terminal.show_attack(report(**changes), "runs/quickstart/evals/quick-12345678")
    assert max(map(len, fitted(screen.lines()))) <= 80
    assert screen.lines()[-1].rstrip() == headline


def test_every_attack_has_its_row(screen: Screen) -> None:
    terminal.show_attack(report(), "folder")
    rows = {words[0]: words[1:] for words in (line.replace("│", " ").replace("|", " ").split() for line in screen.lines()) if words}
    assert rows["fgsm"] == ["all", "50.0", "[43.1,", "56.9]"]  # Wilson for 100 of 200
    assert rows["apgd-ce"][:2] == ["all", "53.0"]
    assert rows["none"][:3] == ["(clean)", "all", "90.0"]
    assert "123,456 forwards, 99,999 backwards in 12 s; 0 borderline" in screen.text()
    assert "worst class 9: 41.0 % robust of 20" in screen.text()
    assert "receipt folder" in screen.text()


def test_what_was_spared_is_told_with_its_sample(screen: Screen) -> None:
    runs = {"passes": 1000, "spared": 644, "sampled": 45, "mistaken": 1}
    queries = {"queries_sampled": 1900, "queries_mistaken": 3}
    told = {"fab-t": runs, "square@aux0": runs | queries, "square": {**runs, "sampled": 0, **queries}, "apgd-t": {**runs, "sampled": 0}}
    terminal.show_attack(report(sparing=told), "folder")
    spared = "spared 64.4 % of 1,000 passes"
    said = {line.split()[0]: line for line in screen.lines() if " spared " in line}
    assert said == {
        "fab-t": f"fab-t {spared}; 1 of a sample of 45 runs broke the image",
        "square@aux0": f"square@aux0 {spared}; 1 of a sample of 45 runs broke the image, 3 of 1,900 queries raised the margin",
        "square": f"square {spared}; 3 of 1,900 queries raised the margin",
        "apgd-t": f"apgd-t {spared}",
    }


def test_the_upper_bound_of_200_classes_is_not_a_wall_of_text(screen: Screen) -> None:
    terminal.show_attack(report(**REPORTS["many classes"][0]), "folder")
    assert len(screen.lines()) < 20


def test_checks_that_were_passed_are_not_shown(screen: Screen) -> None:
    passed = {**FLAG, "name": "calm", "raised": False}
    terminal.show_attack(report(verdict="masked", flags=[passed, {**FLAG, "raised": True}]), "folder")
    assert "calm" not in screen.text()
    assert screen.text().count("flag ") == 1


def test_a_name_that_the_terminal_lacks_is_escaped_before_it_is_laid_out(screen: Screen) -> None:
    terminal.show_attack(report(per_class={"\u732b" * 30: {"n": 1, "clean": 1, "robust": 1}}, worst_class="\u732b" * 30), "f")
    assert max(map(cell_len, fitted(screen.lines()))) <= 80
    assert ("\u732b" in screen.text()) != ("\\u732b" in screen.text())


def security_curve(**changes: Any) -> dict[str, Any]:
    point = {"robust": 0.5, "ci": [0.4, 0.6], "closed_by_smaller": 3, "verdict": "upper bound", "receipt": "runs/a/evals/aa-0"}
    points = [{**point, "eps": eps} for eps in ("2/255", "8/255")]
    return {**report(), "threat": {"norm": "linf", "eps": ["2/255", "8/255"], "bounds": [0, 1]}, "curve": points, **changes}


def test_a_curve_fits_and_ends_with_its_largest_radius(screen: Screen) -> None:
    terminal.show_curve(security_curve(flags=[{**FLAG, "eps": "8/255"}], notes=["a note"]))
    assert max(map(len, fitted(screen.lines()))) <= 80
    words = " ".join(screen.text().split())
    assert screen.lines()[-1].rstrip() == "robust 50.0 % [43.1, 56.9] at eps 8/255, an upper bound"
    assert "black-box-beats-white-box at eps 8/255" in words
    assert "2/255" in words
    assert "note a note" in words


BRACKETS = "[red]x[/red]/[bold]"


@pytest.mark.parametrize(
    "show",
    [
        lambda: terminal.show_attack(report(checkpoint=BRACKETS), "f"),
        lambda: terminal.show_attack(report(), BRACKETS),
        lambda: terminal.show_curve(security_curve(checkpoint=BRACKETS)),
        lambda: terminal.show_attack(report(per_class={BRACKETS: {"n": 1, "clean": 1, "robust": 1}}, worst_class=BRACKETS), "f"),
        lambda: terminal.show_attack(report(flags=[{**FLAG, "message": BRACKETS}]), "f"),
        lambda: terminal.show_training({"measured": {}, "checkpoint": BRACKETS, "best_epoch": 1, "epochs": 2}),
        lambda: terminal.show_error(UsageError(BRACKETS)),
        lambda: terminal.show_error(UsageError("x", where=BRACKETS)),
        lambda: terminal.show_error(UsageError("x", next=BRACKETS)),
        lambda: terminal.show_recipes([("name", BRACKETS)]),
        lambda: terminal.show_dry_run(f"root: {BRACKETS}", [("a", BRACKETS)], BRACKETS),
    ],
)
def test_brackets_in_names_are_not_markup(screen: Screen, show: Callable[[], None]) -> None:
    show()
    assert BRACKETS in screen.text()


ERRORS = [
    UsageError("there is no suite 'x'", where="--suite", next="quick: a look; paper: tables; aa: standard AutoAttack " * 3),
    RecipeError([f"recipe.yaml:{k}:3: unknown key optim.learning_rate (did you mean lr?)" for k in range(12)], next="advcli recipe schema"),
    CheckpointError("the file is damaged", where="/a/very/long/path" * 12 + "/model.safetensors"),
    InterruptedRunError("stopped on request; the state is saved"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_one_panel_with_what_where_and_next(screen: Screen, error: Any) -> None:
    terminal.show_error(error)
    assert max(map(len, fitted(screen.lines()))) <= 80
    assert error.title in screen.lines()[0]
    inside = "".join(line.strip("│|").strip() + " " for line in screen.lines()[1:-1])
    squeezed = "".join(inside.split())
    for part in (error.what, error.where, error.next):
        assert "".join(part.split()) in squeezed
    assert ("where" in inside, "next" in inside) == (bool(error.where), bool(error.next))


@pytest.mark.parametrize("verdict", ["trustworthy", "upper bound", "masked"])
def test_the_widest_headline_of_a_curve_is_one_line(screen: Screen, verdict: str) -> None:
    curve = security_curve(n=10**7)
    curve["curve"][-1] |= {"robust": 1.0, "eps": "127.5/255", "verdict": verdict}
    terminal.show_curve(curve)
    assert screen.lines()[-1].startswith("robust 100.0 % [100.0, 100.0] at eps 127.5/255, ")


LAST = {
    ("validation", "train"): "held out, n = 150: clean 98.0 %, pgd-10 75.0 % [67.2, 81.0], an upper bound",
    ("validation",): "held out, n = 150: clean 98.0 %, pgd-10 75.0 % [67.2, 81.0], an upper bound",
    ("train",): "training, n = 150: clean 98.0 %, pgd-10 75.0 % [67.2, 81.0], an upper bound",
    (): "no accuracy was measured",
}


@pytest.mark.parametrize("parts", LAST)
def test_a_training_ends_with_what_held_out_images_say(screen: Screen, parts: tuple[str, ...]) -> None:
    row = {"n": 150, "clean": 0.98, "robust": 0.75, "attack": "pgd-10"}
    path = "runs/quickstart/model.safetensors"
    terminal.show_training({"measured": dict.fromkeys(parts, row), "checkpoint": path, "best_epoch": 7, "epochs": 40})
    lines = screen.lines()
    assert max(map(len, fitted(lines))) <= 80
    assert lines[0].rstrip() == f"{path} epoch 7 of 40"
    assert lines[1].rstrip() == f"next: advcli attack {path} --suite aa"
    assert lines[-1].rstrip() == LAST[parts]
    assert screen.text().count("an upper bound") == len(parts)  # never a robust accuracy without its kind


@pytest.mark.parametrize("report", [report(), None])
def test_a_page_ends_with_its_headline(screen: Screen, report: Any) -> None:
    terminal.show_page("a/report.html", report)
    assert screen.lines()[0].rstrip() == "a/report.html"
    assert screen.lines()[-1].startswith("robust 45.5 % [38.7, 52.4] " if report else "robust accuracy not known")


def test_the_long_name_of_a_transfer_attack_is_whole(screen: Screen) -> None:
    name = "pgd-100@a-recipe-with-a-rather-long-name-indeed-0123abcd"
    terminal.show_attack(report(attacks={name: {"accuracy": 0.5, "on": "survivors"}}), "folder")
    assert max(map(len, fitted(screen.lines()))) <= 80
    first_cells = "".join(line.strip("│|").replace("|", "│").split("│")[0].strip() for line in screen.lines() if line[:1] in "│|")
    assert name in first_cells


@pytest.mark.parametrize("recipe", names())
def test_a_dry_run_of_every_shipped_recipe_fits(screen: Screen, recipe: str) -> None:
    terminal.show_dry_run(dump(load(recipe)), [("steps", "3")], "the end")
    assert max(map(len, screen.lines())) <= 80


def test_a_dry_run_prints_a_recipe_that_can_be_read_again(screen: Screen) -> None:
    from advcli.recipe import parse

    recipe = load("quickstart", ["threat.eps=8/255", "data.root=/some/where"])
    terminal.show_dry_run(dump(recipe), [("steps", "3")], "the end")
    text = screen.text()
    assert parse(text[: text.index("steps ")]) == recipe
    assert screen.lines()[-1].rstrip() == "the end"


def test_recipes_fit(screen: Screen) -> None:
    terminal.show_recipes([("pgd-at", "words " * 40), ("a-name-that-is-long-enough", "short")])
    assert max(map(len, fitted(screen.lines()))) <= 80
    assert "a-name-that-is-long-enough" in screen.text()


@pytest.mark.parametrize(("fraction", "text"), [(0, "0.0"), (1, "100.0"), (0.12345, "12.3"), (1 / 3, "33.3")])
def test_percent(fraction: float, text: str) -> None:
    assert terminal.percent(fraction) == text
