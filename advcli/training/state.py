"""Everything that a run needs to go on as if nothing had happened, in one file without pickle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advcli.errors import CheckpointError
from advcli.runs import checkpoint


@dataclass
class Counters:
    """epoch and step_in_epoch: what comes next. log_size, timing_size: bytes of the logs that belong to this state."""

    epoch: int = 0
    step_in_epoch: int = 0
    log_size: int = 0
    timing_size: int = 0
    best: list[float] | None = None  # (selection metric, clean accuracy), compared in this order
    best_epoch: int = 0
    measured: dict[str, Any] = field(default_factory=dict)  # the event of the best epoch
    counts: dict[str, int] = field(default_factory=dict)  # of each sum of the epoch so far: some scalars are known in some steps only
    start: dict[str, Any] | None = None  # the receipt of the checkpoint that the run started from, as it was then
    seconds: float = 0.0  # spent in this epoch before the state was saved


def save(
    path: Path,
    counters: Counters,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    sums: dict[str, Tensor],
    recipe_digest: str,
) -> None:
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{number}.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    tensors |= {f"sums.{key}": value for key, value in sums.items()}
    checkpoint.write(
        path, tensors, {"counters": asdict(counters), "recipe_sha256": recipe_digest, "versions": checkpoint.versions()}, "state"
    )


class Stored(NamedTuple):
    """A state file as it was read."""

    path: Path
    tensors: dict[str, Tensor]
    counters: Counters


def read(path: Path) -> Stored:
    tensors, header = checkpoint.read(path, "state")
    try:
        return Stored(path, tensors, Counters(**header["counters"]))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"the state does not fit this version: {error}", where=str(path)) from None


def restore(
    stored: Stored, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[Counters, dict[str, Tensor]]:
    """Fill modules and optimizer; returns the counters and the sums of the epoch so far."""
    path, tensors, counters = stored
    for name, module in modules.items():
        own = _under(tensors, name)
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        checkpoint.check_fit(shapes, {key: tuple(value.shape) for key, value in own.items()}, f"{path} ({name})")
        module.load_state_dict(own)
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(tensors, "optim").items():
        number, _, what = key.partition(".")
        states.setdefault(int(number), {})[what] = value
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for place, entries in states.items():  # laid out in memory as the weights are, or every step would rearrange them
        like = torch.empty_like(weights[place], device="cpu")
        entries |= {what: like.clone().copy_(value) for what, value in entries.items() if value.shape == like.shape}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return counters, {key: value.to(device) for key, value in _under(tensors, "sums").items()}


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
