"""The numbers of the four papers' tables as data (papers.csv), and which of them belong beside a run."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from advcli.recipe import Recipe
from advcli.recipe.schema import Arrest, HypersphereContrast, MaskedView, NegativeContrast

CITATIONS = {
    "again": "Yin et al., AGAIN, CVPR 2023",
    "ancra": "Zhou et al., ANCRA",
    "arrest": "Suzuki et al., ARREST, ICCV 2023",
    "stayfocused": "Chen et al., StayFocused, ACM MM 2024",
}


class Printed(NamedTuple):
    """One cell of a table. paper, table, row, column: where it stands. value: as printed, in `unit`, percent for accuracies.

    reading: what it measures, in the names of this program's suites: `clean`, `pgd-20@eps/10`, `aa`, `mean` of the row's attacks, ...
    `-joint` where the gates' heads were attacked too. data, network, eps: as recipes write them; empty where the paper does not say.
    method: the `signature` of recipes that train this; empty where none does. weights: best or last, where the table has both.
    setting: any other condition. remark: what does not add up in the paper, or cannot be what it is called.
    """

    paper: str
    table: str
    row: str
    column: str
    value: float
    unit: str
    reading: str
    data: str
    network: str
    method: str
    eps: str
    weights: str
    setting: str
    remark: str


@cache
def numbers() -> tuple[Printed, ...]:
    """All of them, in the order of papers and tables."""
    with Path(__file__).with_name("papers.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Printed(**{**row, "value": float(row["value"])}) for row in csv.DictReader(file))  # type: ignore[arg-type]


def find(cells: Iterable[Printed] | None = None, **fields: str) -> list[Printed]:
    """The cells whose fields are these: find(paper="again", table="2", reading="aa")."""
    chosen = numbers() if cells is None else cells
    return [cell for cell in chosen if all(getattr(cell, name) == value for name, value in fields.items())]


def signature(recipe: Recipe) -> str:
    """What a recipe trains, as a sum of its parts, as in a cell's `method`: `trades+reverse-attention+negative-contrast:targeted`."""
    objective = recipe.objective
    parts: list[str] = [gate.name for gate in recipe.model.gates if not gate.open]
    parts += [recipe.model.fusion.name] if recipe.model.fusion else []
    parts += [_named(term) for term in sorted(getattr(objective, "terms", ()), key=lambda term: _ORDER.index(term.name))]
    if isinstance(objective, Arrest):
        parts += [f"distillation:{objective.distillation.name}"] if objective.distillation else []
        parts += [f"replay:{objective.replay.input}"] if objective.replay else []
    return "+".join([objective.name, *parts, *([objective.wrapper.name] if objective.wrapper else [])])


_ORDER = ("negative-contrast", "masked-view", "hypersphere-contrast")


def _named(term: NegativeContrast | HypersphereContrast | MaskedView) -> str:
    """A term with the choice that makes it another method."""
    match term:
        case NegativeContrast():
            return f"{term.name}:{term.negatives}"
        case HypersphereContrast():
            return f"{term.name}:{term.similarity}"
        case MaskedView():
            return f"{term.name}:{len(term.ratios)}"
