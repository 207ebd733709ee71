"""Networks: ordered named blocks with the normalisation inside, and what switches their modes."""

from advcli.models.build import Architecture, build
from advcli.models.modes import batch_norm_state_kept, frozen
from advcli.models.network import ModelOutput, Network

__all__ = ["Architecture", "ModelOutput", "Network", "batch_norm_state_kept", "build", "frozen"]
