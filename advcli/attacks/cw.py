"""The Carlini-Wagner margin (2017) raised inside the ball by projected ascent: what adversarial-training papers call C&W."""

from __future__ import annotations

from advcli.attacks.losses import attack_loss
from advcli.attacks.pgd import Pgd, Start
from advcli.attacks.threat import Threat


def cw(threat: Threat, *, steps: int, step_size: float, start: Start = "uniform") -> Pgd:
    """PGD on max_{k != y} z_k - z_y."""
    return Pgd(threat, attack_loss("margin"), steps=steps, step_size=step_size, start=start)
