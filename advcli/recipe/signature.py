"""What a recipe trains, in one line that recipes of one method share."""

from __future__ import annotations

from advcli.recipe.schema import Arrest, HypersphereContrast, MaskedView, NegativeContrast, Recipe

_ORDER = ("negative-contrast", "masked-view", "hypersphere-contrast")


def signature(recipe: Recipe) -> str:
    """The sum of objective, closing gates, fusion, terms and wrapper: `trades+reverse-attention+negative-contrast:targeted`."""
    objective = recipe.objective
    parts: list[str] = [gate.name for gate in recipe.model.gates if not gate.open]
    parts += [recipe.model.fusion.name] if recipe.model.fusion else []
    parts += [_named(term) for term in sorted(getattr(objective, "terms", ()), key=lambda term: _ORDER.index(term.name))]
    if isinstance(objective, Arrest):
        parts += [f"distillation:{objective.distillation.name}"] if objective.distillation else []
        parts += [f"replay:{objective.replay.input}"] if objective.replay else []
    return "+".join([objective.name, *parts, *([objective.wrapper.name] if objective.wrapper else [])])


def _named(term: NegativeContrast | HypersphereContrast | MaskedView) -> str:
    """A term with the choice that makes it another method."""
    match term:
        case NegativeContrast():
            return f"{term.name}:{term.negatives}"
        case HypersphereContrast():
            return f"{term.name}:{term.similarity}"
        case MaskedView():
            return f"{term.name}:{len(term.ratios)}"
