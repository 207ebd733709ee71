"""From a recipe's objective part to the objective."""

from __future__ import annotations

from advcli.objectives.arrest import ArrestObjective
from advcli.objectives.awp import Awp
from advcli.objectives.mart import MartObjective
from advcli.objectives.objective import Objective
from advcli.objectives.pgd_at import PgdAtObjective
from advcli.objectives.standard import StandardTraining
from advcli.objectives.trades import TradesObjective
from advcli.recipe.schema import Arrest, Mart, PgdAt, Recipe, Standard, Trades


def build_objective(recipe: Recipe) -> Objective:
    """The objective with its wrapper around it."""
    wrapper = recipe.objective.wrapper
    objective = _bare(recipe)
    return objective if wrapper is None else Awp(objective, float(wrapper.gamma), wrapper.warmup)


def _bare(recipe: Recipe) -> Objective:
    match part := recipe.objective:
        case Standard():
            return StandardTraining(part)
        case PgdAt():
            return PgdAtObjective(recipe, part)
        case Trades():
            return TradesObjective(recipe, part)
        case Mart():
            return MartObjective(recipe, part)
        case Arrest():
            return ArrestObjective(recipe, part)
