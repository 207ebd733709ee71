"""Checkpoints and states: tensors with a sealed header, from a network and back."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

import advcli
from advcli.errors import CheckpointError, UsageError
from advcli.models import Architecture, Network, build
from advcli.runs import atomic, container


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], kind: str) -> None:
    """One file, written atomically; equal tensors and header give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = container.tensors_digest(save_tensors(plain))
    atomic.write_bytes(path, save_tensors(plain, metadata=container.seal(header, kind, digest)))


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, header) of a file that `write` wrote; CheckpointError with the reason for any other."""
    header, data = container.read(path, kind)
    try:
        return load_tensors(data), header
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the file is damaged: {error}", where=str(path)) from None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory: the network in eval mode on the CPU, what it was built from, and the header with its receipts.

    path: its file, or what names it where it is fetched from somewhere. home: where its evaluations go; None: beside the file.
    """

    network: Network
    architecture: Architecture
    header: dict[str, Any]
    path: Path
    home: Path | None = None

    @property
    def evals(self) -> Path:
        return (self.home or self.path.parent) / "evals"


def write_network(path: Path, network: Network, architecture: Architecture, header: dict[str, Any]) -> None:
    """A model file: state dict, architecture, versions, and whatever receipts header brings along."""
    whole = {**header, "architecture": architecture.to_json(), "versions": versions()}
    write(path, network.state_dict(), json.loads(json.dumps(whole)), "model")


def load_network(path: Path) -> Loaded:
    """The network of a model file. Shapes are compared before memory is taken, so a hostile header costs nothing."""
    tensors, header = read(path, "model")
    try:
        architecture = Architecture.from_json(header["architecture"])
        with torch.device("meta"):
            expected = {name: tuple(t.shape) for name, t in build(architecture).state_dict().items()}
    except (KeyError, ValueError, UsageError) as error:
        raise CheckpointError(f"the header describes no known network: {error}", where=str(path)) from None
    check_fit(expected, {name: tuple(t.shape) for name, t in tensors.items()}, str(path))
    classes = header.get("classes")
    if not isinstance(classes, list) or len(classes) != architecture.num_classes or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"the header does not name the {architecture.num_classes} classes", where=str(path))
    if not all(isinstance(header.get(part), dict) for part in ("threat", "data")):
        raise CheckpointError("the header lacks the threat or the data set", where=str(path))
    network = build(architecture)
    network.load_state_dict(tensors)
    return Loaded(network.eval(), architecture, header, path)


def check_fit(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: str) -> None:
    """CheckpointError that lists what does not fit, both ways, unless names and shapes agree."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [
        f"{name} is {found[name]}, not {expected[name]}" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]
    rows = [
        f"{what}: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("unknown", extra), ("shapes", other))
        if names
    ]
    if rows:
        raise CheckpointError("the weights do not fit the network\n" + "\n".join(rows), where=where)


def initialise_from(
    network: Network, path: Path, architecture: Architecture, classes: Sequence[str], start: Loaded | None = None
) -> dict[str, Any]:
    """Copy the weights of a model file into a network of the same architecture, normalisation and classes (`model.init`).

    start: what is in the file, where it was read already. Returns the header.
    """
    loaded = start or load_network(path)
    state = loaded.network.state_dict()
    check_fit({k: tuple(t.shape) for k, t in network.state_dict().items()}, {k: tuple(t.shape) for k, t in state.items()}, str(path))
    own, wanted = loaded.header["classes"], list(classes)
    if own != wanted:
        what = f"the checkpoint was trained on other classes: {few(own)} instead of {few(wanted)}"
        raise CheckpointError(what, where=str(path), next="start from a checkpoint that was trained on this data set")
    trained, given = ((a.mean, a.std) for a in (loaded.architecture, architecture))
    if trained != given:
        what = f"the checkpoint goes with another normalisation (mean, std): {trained} instead of {given}"
        raise CheckpointError(what, where=str(path), next="give the recipe the model.mean and model.std of the checkpoint")
    network.load_state_dict(state)
    return loaded.header


def few(names: Sequence[str]) -> str:
    """The first four names, and how many there are in all where there are more; for messages."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {"advcli": advcli.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
