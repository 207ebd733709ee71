"""A metric against a recipe field: values in order, seeds folded, other differences apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from written import write_attacked_run, write_run

from advcli.errors import ResourceError, UsageError
from advcli.report.figures import sweep

Make = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)
    return write_attacked_run


def points(data: sweep.FigureData, column: str, series: str = "") -> list[tuple[object, float]]:
    return [(row["value"], row["mean"]) for row in data.rows if (row["column"], row["series"]) == (column, series)]


def test_the_field_that_differs_is_found_and_seeds_fold(made: Make) -> None:
    runs = [
        made("a", "craft.steps=10", "seed=0", quick=12),
        made("b", "craft.steps=2", "seed=0", quick=6),
        made("c", "craft.steps=2", "seed=1", quick=8),
        made("d", "craft.steps=5", "name=other", quick=10),
    ]
    data = sweep.gather(runs)
    assert data.more == {"field": "craft.steps"}
    assert points(data, "quick") == [(2, 0.35), (5, 0.5), (10, 0.6)]
    assert points(data, "clean") == [(2, 0.9), (5, 0.9), (10, 0.9)]
    folded = data.rows[[row["column"] for row in data.rows].index("quick")]
    assert (folded["seeds"], folded["low"], folded["std"]) == (2, None, pytest.approx(0.1 / 2**0.5))
    assert data.headline == "highest quick: 60.0 % at craft.steps=10"


def test_fields_inside_lists_and_fractions_are_numbers(made: Make) -> None:
    gate = "model.gates=[{{name: attribution-span, alpha: {}}}]"
    runs = [made(f"r{k}", gate.format(alpha), quick=quick) for k, (alpha, quick) in enumerate(((0.9, 9), (0.5, 5), (0.7, 7)))]
    assert points(sweep.gather(runs, "model.gates.0.alpha"), "quick") == [(0.5, 0.25), (0.7, 0.35), (0.9, 0.45)]
    eps = [made(f"e{k}", f"optim.weight_decay={text}", quick=8) for k, text in enumerate(("8/255", "1/255", "2e-2"))]
    assert [value for value, _ in points(sweep.gather(eps), "quick")] == ["1/255", 0.02, "8/255"]


def test_other_differences_are_series_of_their_own(made: Make) -> None:
    runs = [
        made(f"r{k}", f"craft.steps={steps}", f"optim.lr={rate}", quick=quick)
        for k, (steps, rate, quick) in enumerate(((1, 0.1, 4), (2, 0.1, 5), (1, 0.2, 6), (2, 0.2, 9)))
    ]
    with pytest.raises(UsageError, match="do not differ in one field alone") as raised:
        sweep.gather(runs)
    assert raised.value.next == "name one: they differ in craft.steps, optim.lr"
    data = sweep.gather(runs, "craft.steps", ["quick/fgsm"])
    assert points(data, "quick/fgsm", "optim.lr=0.1") == [(1, 0.3), (2, 0.35)]
    assert points(data, "quick/fgsm", "optim.lr=0.2") == [(1, 0.4), (2, 0.55)]
    assert data.headline == "highest quick/fgsm: 55.0 % at craft.steps=2 (optim.lr=0.2)"


def test_what_is_drawn_is_the_data(made: Make) -> None:
    runs = [made("a", "craft.steps=8", quick=12), made("b", "craft.steps=2", quick=6)]
    (runs[0] / "timing.jsonl").write_text('{"epoch": 1, "seconds": 7200}\n')
    figure = sweep.draw(sweep.gather(runs, None, ["quick", "hours"]))
    drawn = {axes.get_ylabel(): [line[0].get_xydata().tolist() for line in axes.containers] for axes in figure.axes}
    assert drawn == {
        "accuracy, %": [[[2, pytest.approx(90)], [8, pytest.approx(90)]], [[2, pytest.approx(30)], [8, pytest.approx(60)]]],
        "training, hours": [[[8, 2.0]]],
    }
    assert figure.axes[-1].get_xlabel() == "craft.steps"


def test_words_are_set_side_by_side(made: Make) -> None:
    runs = [made("a", "objective.name=pgd-at", quick=9), made("b", "objective={name: mart}", quick=8)]
    data = sweep.gather(runs, "objective.name")
    axes = sweep.draw(data).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["mart", "pgd-at"]


@pytest.mark.parametrize(
    ("field", "says"),
    [("craft.stepz", "no recipe of these has the field craft.stepz"), ("optim.lr", "the same in every run"), ("seed", "same in every run")],
)
def test_fields_that_give_no_sweep_are_refused(made: Make, field: str, says: str) -> None:
    runs = [made("a", "craft.steps=8", quick=12), made("b", "craft.steps=2", quick=6)]
    with pytest.raises(UsageError, match=says) as raised:
        sweep.gather(runs, field)
    assert raised.value.next == "they differ in craft.steps"


def test_runs_without_recipe_or_numbers_are_refused(made: Make) -> None:
    foreign = made("foreign", recipe=None, quick=8)
    with pytest.raises(ResourceError, match="no recipe to sweep over"):
        sweep.gather([foreign])
    for steps in (1, 2):
        write_run(Path(f"runs/bare-{steps}"), f"craft.steps={steps}")
    with pytest.raises(ResourceError, match="none of the runs was attacked"):
        sweep.gather([Path("runs/bare-1"), Path("runs/bare-2")])
