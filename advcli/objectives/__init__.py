"""Training objectives: one file each; awp wraps any of them."""

from advcli.objectives.build import build_objective
from advcli.objectives.objective import Objective
from advcli.objectives.parts import Crafted, LossParts

__all__ = ["Crafted", "LossParts", "Objective", "build_objective"]
