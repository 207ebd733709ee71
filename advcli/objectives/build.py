"""From a recipe's objective part to the objective."""

from __future__ import annotations

from advcli.attacks import Threat
from advcli.objectives.arrest import ArrestObjective
from advcli.objectives.awp import Awp
from advcli.objectives.mart import MartObjective
from advcli.objectives.objective import Objective
from advcli.objectives.pgd_at import PgdAtObjective
from advcli.objectives.standard import StandardTraining
from advcli.objectives.trades import TradesObjective
from advcli.recipe.schema import Arrest, Craft, Mart, PgdAt, Recipe, Standard, Trades, step_size


def build_objective(recipe: Recipe) -> Objective:
    """The objective with its wrapper around it."""
    threat = Threat(recipe.threat.norm, float(recipe.threat.eps))
    craft, size, part = recipe.craft or Craft(), step_size(recipe), recipe.objective
    objective: Objective
    match part:
        case Standard():
            objective = StandardTraining(float(part.aux_weight))
        case PgdAt():
            objective = PgdAtObjective(part, threat, craft, size)
        case Trades():
            objective = TradesObjective(part, threat, craft, size)
        case Mart():
            objective = MartObjective(part, threat, craft, size)
        case Arrest():
            objective = ArrestObjective(part, threat, craft, size)
    wrapper = part.wrapper
    return objective if wrapper is None else Awp(objective, float(wrapper.gamma), wrapper.warmup)
