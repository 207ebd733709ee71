"""Networks: ordered named blocks with the normalisation inside, and what switches their modes."""

from advcli.models.build import Architecture, build
from advcli.models.fast import CompiledForward, FastCopy
from advcli.models.modes import batch_norm_state_kept, frozen
from advcli.models.network import ModelOutput, Network
from advcli.models.view import HeadView, head_of, with_gate

__all__ = [
    "Architecture",
    "CompiledForward",
    "FastCopy",
    "HeadView",
    "ModelOutput",
    "Network",
    "batch_norm_state_kept",
    "build",
    "frozen",
    "head_of",
    "with_gate",
]
