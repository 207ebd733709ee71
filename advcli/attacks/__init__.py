"""Attacks: each is a callable over a surrogate, a judge, per-example conditions and draws; none holds a model."""

from advcli.attacks.apgd import Apgd
from advcli.attacks.attack import Attack, Found
from advcli.attacks.cw import cw
from advcli.attacks.fab import Fab
from advcli.attacks.fgsm import fgsm
from advcli.attacks.judge import Judge, measure_bound
from advcli.attacks.mim import mim
from advcli.attacks.pgd import Pgd, ascend
from advcli.attacks.square import Square
from advcli.attacks.surrogate import Condition, Cost, Surrogate
from advcli.attacks.threat import Threat

__all__ = [
    "Apgd",
    "Attack",
    "Condition",
    "Cost",
    "Fab",
    "Found",
    "Judge",
    "Pgd",
    "Square",
    "Surrogate",
    "Threat",
    "ascend",
    "cw",
    "fgsm",
    "measure_bound",
    "mim",
]
