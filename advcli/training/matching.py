"""Which of others' loops trains as a recipe does, and what the recipe tells it."""

from __future__ import annotations

from dataclasses import dataclass

from advcli.recipe.schema import NegativeContrast, PgdAt, Recipe, Trades, step_size
from advcli.training.peers import Loop, Plan, ancra_loop, backward_loop, foolbox_loop, torchattacks_loop, trades_loop


@dataclass(frozen=True)
class Peer:
    """recipe: a shipped one that the loop does the same as; package: what must be installed."""

    name: str
    loop: Loop
    recipe: str
    package: str | None = None


PEERS = (
    Peer("robust_overfitting", backward_loop, "pgd-at"),
    Peer("torchattacks", torchattacks_loop, "pgd-at", "torchattacks"),
    Peer("foolbox", foolbox_loop, "pgd-at", "foolbox"),
    Peer("TRADES", trades_loop, "trades"),
    Peer("ANCRA", ancra_loop, "ancra"),
)

RECIPES = tuple(dict.fromkeys(peer.recipe for peer in PEERS))
"""The shipped recipes that have peers."""


def same_method(recipe: Recipe) -> str | None:
    """The shipped recipe whose method this recipe is, of those that have peers; None: no peer does the same."""
    part, craft = recipe.objective, recipe.craft
    if craft is None or recipe.threat.norm != "linf" or craft.batch_norm != "eval" or recipe.model.fusion or part.wrapper:
        return None
    if recipe.train.ema is not None:  # none of the loops averages its weights
        return None
    gates = {gate.name for gate in recipe.model.gates if not gate.open}
    terms = getattr(part, "terms", ())
    targeted = [isinstance(term, NegativeContrast) and term.negatives == "targeted" for term in terms] == [True]
    match part:
        case PgdAt(clean_pass=False, ramp=None) if not gates and not terms and craft.loss == "ce":
            return "pgd-at"
        case Trades(ramp=None) if not recipe.model.gates and not terms and craft.loss == "kl":
            return "trades"
        case Trades(ramp=None) if gates == {"reverse-attention"} and targeted and craft.loss == "ce":
            return "ancra"
    return None


def plan(recipe: Recipe) -> Plan:
    """recipe: of one of the methods that have peers."""
    part = recipe.objective
    steps = recipe.craft.steps if recipe.craft is not None else 0
    basis = Plan(float(recipe.threat.eps), step_size(recipe), steps)
    if not isinstance(part, Trades):
        return basis
    contrast = next((term for term in part.terms if isinstance(term, NegativeContrast)), None)
    weights = (float(contrast.weight), float(contrast.alpha)) if contrast is not None else (0.0, 1.0)
    return Plan(basis.eps, basis.step_size, steps, float(part.beta), float(part.aux_weight), *weights)
