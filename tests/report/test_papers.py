"""The papers' numbers: every cell is there, and what the papers add up is added up again."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

import pytest

from advcli.errors import UsageError
from advcli.measures import ardist
from advcli.recipe import load
from advcli.recipe.schema import ARCHITECTURES, DATA_SETS
from advcli.recipe.signature import signature
from advcli.report import papers
from advcli.report.papers import Printed, find, numbers

ROUNDING = 0.005 + 1e-9  # the papers print two places

COUNTS = {  # rows times columns, less the cells that are left empty; ANCRA's table I holds no number
    "ancra": {"II": 150, "III": 12, "IV": 12, "V": 24, "VI": 8, "VII": 24, "VIII": 16, "IX": 25, "X": 9},
    "again": {"1": 16, "2": 77, "3": 77, "4": 30, "5": 16, "6": 12},
    "stayfocused": {"1": 153, "2": 154, "3": 20, "4": 12},
    "arrest": {"1": 48, "2": 24, "3": 5, "4": 6, "5": 4},
}


def test_every_table_is_whole() -> None:
    found = Counter((cell.paper, cell.table) for cell in numbers())
    assert found == {(paper, table): count for paper, tables in COUNTS.items() for table, count in tables.items()}
    assert papers.CITATIONS.keys() == COUNTS.keys()


def test_no_cell_stands_twice() -> None:
    places = Counter((c.paper, c.table, c.row, c.column, c.data, c.network, c.setting) for c in numbers())
    assert max(places.values()) == 1


@pytest.mark.parametrize(
    ("paper", "table", "row", "column", "conditions", "value"),
    [
        ("ancra", "II", "PGD-AT-ANCRA", "PGD", {"data": "cifar10"}, 89.03),
        ("ancra", "II", "MART-ANCRA", "AA", {"data": "cifar100"}, 35.05),
        ("ancra", "II", "S2O†", "PGD", {"data": "cifar100"}, 30.58),
        ("ancra", "III", "TRADES-ANCRA", "PGD", {"data": "tiny-imagenet", "network": "preact-resnet18"}, 31.27),
        ("ancra", "VI", "TRADES-ANCRA", "AA", {"network": "wrn-34-10"}, 51.99),
        ("ancra", "VII", "TRADES-ANCRA", "MIM-100 from TRADES", {}, 60.43),
        ("ancra", "IX", "Targeted attack", "Time", {"unit": "hours"}, 9.3),
        ("ancra", "IX", "Soft-LS", "Last-PGD", {"weights": "last"}, 58.47),
        ("ancra", "X", "Final PV wo RA P''", "Adaptive PGD", {}, 52.81),
        ("again", "1", "Std training", "Original adv", {"network": "resnet18"}, 0.7),
        ("again", "2", "AGAIN-PGD-AT", "AA", {}, 49.31),
        ("again", "3", "AGAIN-AWP", "C&W", {"data": "cifar100"}, 40.02),
        ("again", "4", "AGAIN-AWP", "C&W", {"network": "wrn-34-10"}, 68.13),
        ("again", "5", "Layer3", "PGD-100", {}, 42.00),
        ("again", "6", "HFF", "C&W", {}, 43.91),
        ("stayfocused", "1", "StayFocused Head=4", "AA", {"network": "resnet18"}, 67.29),
        ("stayfocused", "2", "CIFS", "PGD-50", {"network": "wrn-34-10", "data": "svhn"}, 57.46),
        ("stayfocused", "3", "w/o SHC", "C&W", {}, 61.75),
        ("stayfocused", "4", "InfoNCE", "PGD-100", {}, 55.79),
        ("arrest", "1", "LBGAT", "ARDist", {"data": "cifar100"}, 6.639),
        ("arrest", "2", "ST", "AutoAttack", {"network": "wrn-34-10"}, 0),
        ("arrest", "3", "ARREST", "Cosine similarity", {}, 0.901),
        ("arrest", "5", "ARREST w/ RST", "AutoAttack", {}, 55.73),
    ],
)
def test_cells_are_where_they_stand(paper: str, table: str, row: str, column: str, conditions: dict[str, str], value: float) -> None:
    (cell,) = find(paper=paper, table=table, row=row, column=column, **conditions)
    assert cell.value == value


def rows() -> dict[tuple[str, ...], list[Printed]]:
    grouped: dict[tuple[str, ...], list[Printed]] = {}
    for cell in numbers():
        part = cell.setting if (cell.paper, cell.table) == ("again", "1") else ""
        grouped.setdefault((cell.paper, cell.table, cell.row, cell.data, cell.network, cell.weights, part), []).append(cell)
    return grouped


def attacked(cells: list[Printed]) -> list[Printed]:
    return [cell for cell in cells if cell.unit == "percent" and cell.reading not in ("clean", "mean")]


def test_means_and_sums_are_those_of_their_rows_or_remarked() -> None:
    wrong = []
    for cells in rows().values():
        of = {cell.reading: cell for cell in cells}
        if "mean" in of:
            exact = fmean(cell.value for cell in attacked(cells))
            if abs(exact - of["mean"].value) > ROUNDING:
                wrong.append((of["mean"].row, of["mean"].data, of["mean"].value, round(exact, 2)))
                assert f"{exact:.2f}" in of["mean"].remark
            else:
                assert not of["mean"].remark
        if "sum" in of:
            assert of["sum"].value == pytest.approx(of["clean"].value + of["aa"].value, abs=ROUNDING)
    assert wrong == [("AWP", "cifar100", 31.18, 32.18)], "ANCRA, table II: a slip of one point"


def test_stayfocuseds_gains_are_the_differences_of_their_columns() -> None:
    for gain in find(paper="stayfocused", row="Increased"):
        reading = gain.reading.removeprefix("gain of ")
        column = find(paper="stayfocused", table=gain.table, data=gain.data, network=gain.network, reading=reading)
        own, others = ([c.value for c in column if c.row.startswith("StayFocused") == mine] for mine in (True, False))
        assert gain.value == pytest.approx(max(own) - max(others), abs=ROUNDING)


def test_ardist_is_the_printed_one_but_for_the_remarked_cell() -> None:
    cells = find(paper="arrest", table="1")
    wrong = []
    for cell in find(cells, reading="ardist"):
        row = {c.reading: c.value for c in find(cells, row=cell.row, data=cell.data)}
        exact = ardist(row["clean"], row["aa"], cell.data)
        if abs(exact - cell.value) >= 0.0005:
            wrong.append((cell.row, cell.data, cell.value, round(exact, 3)))
            assert "2.434" in cell.remark
    assert wrong == [("AWP", "cifar100", 2.424, 2.434)]


def test_what_cannot_be_is_remarked() -> None:
    """An attack that raises accuracy, and AutoAttack above a weaker attack, in exactly the cells where it is so."""
    for cells in rows().values():
        of = {cell.reading: cell for cell in cells}
        for cell in attacked(cells):
            above = "clean" in of and cell.value > of["clean"].value
            assert ("above the clean accuracy" in cell.remark) == above
            weaker = [c for c in attacked(cells) if c is not cell and c.value < cell.value]
            assert ("AutoAttack should be below" in cell.remark) == (cell.reading == "aa" and bool(weaker))


def test_one_experiment_has_one_number_in_a_paper_or_a_remark() -> None:
    seen: dict[tuple[str, ...], Printed] = {}
    for cell in numbers():
        if cell.method and not cell.weights and not cell.setting.startswith("transfer"):
            first = seen.setdefault((cell.paper, cell.method, cell.data, cell.network, cell.reading), cell)
            assert cell.value == first.value or cell.remark or first.remark, (first, cell)


def test_conditions_are_in_the_words_of_recipes() -> None:
    assert {cell.data for cell in numbers()} <= set(DATA_SETS)
    assert {cell.network for cell in numbers()} <= {"", "vgg16", *ARCHITECTURES}
    assert {cell.unit for cell in numbers()} == {"percent", "points", "hours", "cosine"}
    assert all(0 <= cell.value <= 100 for cell in numbers() if cell.unit == "percent")


@pytest.mark.parametrize(
    ("recipe", "overrides", "row"),
    [
        ("pgd-at", [], "PGD-AT"),
        ("pgd-at", ["objective.wrapper={name: awp}"], "AWP"),
        ("mart", [], "MART"),
        ("cas", [], "CAS"),
        ("again", [], "AGAIN-PGD-AT"),
        ("again", ["objective.name=mart"], "AGAIN-MART"),
        ("again", ["objective.wrapper={name: awp}"], "AGAIN-AWP"),
        ("again", ["~model.fusion"], "ASE"),
        ("again", ["model.gates=[]"], "HFF"),
        ("ancra", [], "TRADES-ANCRA"),
        ("ancra", ["objective.terms=[]"], "TRADES-RA"),
        ("ancra", ["model.gates=[]"], "TRADES-ANC"),
        ("ancra", ["objective.terms.0.negatives=hard"], "Hard-LS"),
        ("stayfocused", [], "StayFocused Head=2"),
        ("stayfocused", ["objective.terms.0.ratios=[0.25, 0.5, 0.75]"], "StayFocused Head=4"),
        ("stayfocused", ["~objective.terms.1"], "w/o SHC"),
        ("stayfocused", ["objective.terms.1={name: hypersphere-contrast, similarity: infonce}"], "InfoNCE"),
        ("arrest", [], "ARREST"),
        ("arrest", ["~objective.replay"], "AFT + RGKD"),
        ("arrest", ["~objective.distillation", "~objective.replay"], "AFT"),
    ],
)
def test_recipes_find_their_rows(recipe: str, overrides: list[str], row: str) -> None:
    assert row in {cell.row for cell in find(method=signature(load(recipe, overrides)))}


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("cas", ["objective.name=trades"]),
        ("ancra", ["objective.wrapper={name: awp}"]),
        ("quickstart", ["model.fusion={name: hybrid-statistics}", "objective.wrapper={name: awp}"]),
    ],
)
def test_what_no_paper_has_finds_nothing(recipe: str, overrides: list[str]) -> None:
    assert find(method=signature(load(recipe, overrides))) == []


def described(name: str, suite: str, reading: str, *, last: bool = False, unit: str = "percent") -> dict[str, Any]:
    return {"name": name, "suite": suite, "reading": reading, "last": last, "unit": unit}


COLUMNS = [
    described("clean", "", "clean"),
    described("aa", "aa", "worst"),
    described("quick", "quick", "worst"),
    described("paper/pgd-20@eps/4", "paper", "pgd-20@eps/4"),
    described("paper/pgd-20-joint@eps/4", "paper", "pgd-20-joint@eps/4"),
    described("quick/cw-30", "quick", "cw-30"),
    described("last:clean", "", "clean", last=True),
    described("average", "", "average"),
    described("hours", "", "hours", unit="hours"),
    described("aa/worst-class", "aa", "worst-class"),
]


def row_of(recipe: str, *overrides: str) -> dict[str, Any]:
    made = load(recipe, list(overrides))
    threat = {"norm": made.threat.norm, "eps": float(made.threat.eps)}
    trains = {"method": signature(made), "data": made.data.name, "network": made.model.arch, "width": float(made.model.width), **threat}
    return {"name": recipe, "trains": trains}


def printed(paper: str, recipe: str, *overrides: str) -> dict[str, Any]:
    (row,) = papers.beside({"columns": COLUMNS, "rows": [row_of(recipe, *overrides)]}, [paper])["rows"]
    found: dict[str, Any] = row["printed"][paper]
    return found


def values(paper: str, recipe: str, *overrides: str) -> dict[str, float]:
    return {name: cell["value"] for name, cell in printed(paper, recipe, *overrides).items() if cell}


def test_a_row_finds_its_printed_numbers() -> None:
    approx = pytest.approx
    assert values("again", "pgd-at") == approx({"clean": 0.8425, "aa": 0.4169, "paper/pgd-20@eps/4": 0.4656, "quick/cw-30": 0.4575})
    assert values("again", "again") == approx({"clean": 0.8788, "aa": 0.4931, "paper/pgd-20-joint@eps/4": 0.5443})
    assert values("ancra", "ancra") == approx(
        {"clean": 0.8170, "aa": 0.5970, "quick/cw-30": 0.8301, "average": 0.7710, "last:clean": 0.8218, "hours": 9.3}
    )
    assert values("arrest", "arrest") == approx({"clean": 0.8663, "aa": 0.4614}), "a ResNet-18, as the recipe says"
    assert values("stayfocused", "ancra") == {}


def test_conditions_are_the_runs_where_a_paper_has_them() -> None:
    def aa(*overrides: str) -> tuple[Any, ...]:
        cell = printed("again", "pgd-at", *overrides)["aa"]
        return cell["value"], cell["data"], cell["same"]

    assert aa() == (0.4169, "cifar10", True)
    assert aa("data.name=cifar100") == (0.1976, "cifar100", True)
    assert aa("data.name=svhn") == (0.4169, "cifar10", False)
    assert aa("model.width=0.5") == (0.4169, "cifar10", False)
    assert aa("threat.eps=4/255") == (0.4169, "cifar10", False)
    assert printed("arrest", "arrest", "model.arch=wrn-34-10")["clean"]["value"] == 0.9024


def test_a_paper_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no paper 'trades'") as raised:
        papers.beside({"columns": [], "rows": []}, ["trades"])
    assert raised.value.next == "one of again, ancra, arrest, stayfocused"


def test_a_checkpoint_without_recipe_has_no_printed_numbers() -> None:
    (row,) = papers.beside({"columns": COLUMNS, "rows": [{"name": "x", "trains": None}]}, ["again"])["rows"]
    assert set(row["printed"]["again"].values()) == {None}
