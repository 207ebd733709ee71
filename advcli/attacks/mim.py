"""The momentum iterative method (Dong et al. 2018)."""

from __future__ import annotations

from advcli.attacks.losses import attack_loss
from advcli.attacks.pgd import Pgd
from advcli.attacks.threat import Threat


def mim(threat: Threat, *, steps: int, step_size: float, decay: float = 1.0) -> Pgd:
    """Iterative steps along the accumulated, L1-normalised gradient of the cross-entropy, from the image itself."""
    return Pgd(threat, attack_loss("ce"), steps=steps, step_size=step_size, start="none", momentum=decay)
