"""Where weights of others come from: a file, torchvision, timm, or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advcli.errors import CheckpointError, UsageError
from advcli.models.layouts import Normalization
from advcli.models.wrapped import import_extra
from advcli.runs import state_dict
from advcli.runs.folder import RUNS
from advcli.runs.state_dict import State

_LIBRARIES = ("torchvision:", "timm:", "hf:")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Fetched:
    """A state dict as its authors name it. where: its source, for messages; sha256: of its file, None where it came through a library.

    arch, normalization: where the source tells them. home: where evaluations go; None: beside the file.
    """

    state: State
    where: str
    sha256: str | None
    notes: list[str]
    arch: str | None = None
    normalization: Normalization | None = None
    home: Path | None = None


def is_remote(path: Path) -> bool:
    return str(path).startswith(_LIBRARIES)


def fetch(path: Path, channels: int) -> Fetched:
    """The state dict of a source; channels: of the images, for libraries that build networks for them."""
    library, _, name = str(path).partition(":")
    if not is_remote(path):
        return _file(path, str(path), None)
    if not name:
        raise UsageError(f"{library}: of what?", where=str(path), next="torchvision:NAME@WEIGHTS, timm:NAME or hf:REPO[/FILE]")
    home = RUNS / str(path).replace(":", "-").replace("/", "-").replace("@", "-")
    if library == "torchvision":
        return _torchvision(name, str(path), home)
    return _timm(name, channels, str(path), home) if library == "timm" else _hub(name, str(path), home)


def _file(path: Path, where: str, home: Path | None) -> Fetched:
    state, notes = state_dict.read(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(state, where, digest, notes, home=home)


def _torchvision(name: str, where: str, home: Path) -> Fetched:
    from torchvision import models

    network, _, wanted = name.partition("@")
    try:
        known = models.get_model_weights(network)
    except ValueError:
        raise UsageError(
            f"torchvision has no network {network!r}", where=where, next="such as torchvision:resnet50@IMAGENET1K_V2"
        ) from None
    if wanted not in known.__members__:
        what = f"torchvision has no weights {wanted!r} for {network}" if wanted else "which weights? a network without any is none to judge"
        raise UsageError(what, where=where, next=f"one of {', '.join(f'torchvision:{network}@{member}' for member in known.__members__)}")
    weights: Any = known[wanted]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub prints, and stdout may be somebody's JSON
            state = torch.hub.load_state_dict_from_url(weights.url, map_location="cpu", progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the disk, or of a file that is not what it should be
        raise _unfetched(where, error) from None
    transforms = weights.transforms()
    notes = [f"the weights were made for images of {transforms.crop_size[0]} pixels"]
    found, more = state_dict.find(dict(state), where)
    norm = Normalization(tuple(transforms.mean), tuple(transforms.std))
    return Fetched(found, where, None, notes + more, f"torchvision:{network}", norm, home)


def _timm(name: str, channels: int, where: str, home: Path) -> Fetched:
    timm = import_extra("timm", "timm")
    try:
        network = timm.create_model(name, pretrained=True, in_chans=channels)
    except Exception as error:  # an unknown name, no weights for it, or no way to them
        raise _unfetched(where, error) from None
    cfg = network.pretrained_cfg
    norm = Normalization(tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"])))
    notes = [f"the weights were made for images of {cfg['input_size'][-1]} pixels"] if cfg.get("input_size") else []
    return Fetched(dict(network.state_dict()), where, None, notes, f"timm:{name}", norm, home)


def _hub(name: str, where: str, home: Path) -> Fetched:
    hub = import_extra("huggingface_hub", "hf")
    parts = name.split("/")
    if len(parts) < 2:
        raise UsageError("a repository of the hub is OWNER/NAME", where=where, next="hf:OWNER/NAME or hf:OWNER/NAME/FILE")
    repository, files = "/".join(parts[:2]), ("/".join(parts[2:]),) if len(parts) > 2 else _HUB_FILES
    last: Exception | None = None
    for file in files:
        try:
            local = Path(hub.hf_hub_download(repo_id=repository, filename=file))
        except Exception as error:  # whatever the library raises for a missing repository, file or connection
            last = error
            continue
        return _file(local, where, home)
    raise _unfetched(where, last) from None


def _unfetched(where: str, error: Exception | None) -> CheckpointError:
    reason = str(error).strip().splitlines()[0][:300] if str(error or "").strip() else type(error).__name__
    return CheckpointError(f"the weights could not be fetched: {reason}", where=where, next="fetch the file by hand and name it instead")
