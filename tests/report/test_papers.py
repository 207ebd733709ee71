"""The papers' numbers: every cell is there, and what the papers add up is added up again."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from advcli.measures import ardist
from advcli.recipe import load
from advcli.recipe.schema import ARCHITECTURES, DATA_SETS
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
    assert row in {cell.row for cell in find(method=papers.signature(load(recipe, overrides)))}


def test_variants_that_no_paper_has_find_nothing() -> None:
    for recipe, overrides in (("again", ["model.gates.0.open=true"]), ("ancra", ["objective.terms.0.negatives=random"])):
        found = {cell.row for cell in find(method=papers.signature(load(recipe, overrides)))}
        assert found <= {"HFF"}, "an open gate leaves fusion alone"
