"""The fast gradient sign method (Goodfellow et al. 2015), plain or after a random start (Wong et al. 2020)."""

from __future__ import annotations

from advcli.attacks.losses import attack_loss
from advcli.attacks.pgd import Pgd, Start
from advcli.attacks.threat import Threat


def fgsm(threat: Threat, *, start: Start = "none") -> Pgd:
    """One step of size eps on the cross-entropy."""
    return Pgd(threat, attack_loss("ce"), steps=1, step_size=threat.eps, start=start)
