"""Training objectives: one file each; awp wraps any of them."""

from advcli.objectives.build import build_objective
from advcli.objectives.objective import Crafted, LossParts, Objective

__all__ = ["Crafted", "LossParts", "Objective", "build_objective"]
