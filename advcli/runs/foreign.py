"""Checkpoints of others: where they come from, and how one becomes a network of ours with a header.

A source is a file (.pt, .pth, ... or .safetensors without our header), `torchvision:NAME@WEIGHTS`, `timm:NAME` or
`hf:REPO[/FILE]`. Its header says so, under `foreign`, and its tensors have the digest that they have after `advcli convert`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from advcli.errors import CheckpointError, UsageError
from advcli.models import Architecture, build
from advcli.models.layouts import Candidate, State, candidates, head_name, unwrap
from advcli.models.wrapped import Wrapped, is_wrapped
from advcli.runs import container, state_dict, zoo
from advcli.runs.checkpoint import Loaded, check_fit
from advcli.runs.given import Given, normalization
from advcli.runs.zoo import Fetched

_ROOMY = 128  # pixels, which all networks here take, with any number of cells
Shapes = dict[str, tuple[int, ...]]


def is_foreign(path: Path) -> bool:
    """Whether path is a checkpoint of others."""
    return zoo.is_remote(path) or container.is_foreign(path)


def check_readable(path: Path) -> None:
    """CheckpointError where a file is missing, damaged, without a state dict, or would run code; what is fetched is checked then."""
    if not zoo.is_remote(path):
        state_dict.read(path)


def check_classes(path: Path, num_classes: int) -> None:
    """UsageError where a file of others holds a head for another number of classes."""
    if zoo.is_remote(path) or not is_foreign(path):
        return
    state, _ = unwrap(state_dict.read(path)[0])
    head = head_name(state)
    if head is not None and len(state[f"{head}.weight"]) != num_classes:
        found = len(state[f"{head}.weight"])
        raise UsageError(f"the weights tell {found} classes apart, not {num_classes}", where="--num-classes")


@dataclass(frozen=True)
class Match:
    """What a state dict was read as: an architecture with its sizes, its tensors under our names, and what brought the normalisation."""

    architecture: Architecture
    state: State
    normalized_by: str


def load(path: Path, given: Given, classes: Sequence[str], image: tuple[int, ...], data: dict[str, Any], threat: dict[str, Any]) -> Loaded:
    """A checkpoint of others for a data set: image is (channels, side, side); data and threat go into the header as they are.

    Raises CheckpointError where the file is unfit, with the keys that do not fit; UsageError where what is given contradicts it.
    """
    fetched = zoo.fetch(path, image[0])
    match = read_as(fetched, given, image)
    a = match.architecture
    if a.num_classes != len(classes):
        what = f"the network tells {a.num_classes} classes apart, and the data set has {len(classes)}"
        raise CheckpointError(what, where=str(path), next="name the data set that it is for with --data and --data-root")
    return _loaded(path, fetched, match, classes, data, threat)


def as_evaluated(path: Path, architecture: Architecture, classes: Sequence[str], data: dict[str, Any]) -> Loaded:
    """The same again, for a receipt that tells the architecture."""
    plain = dataclasses.replace(architecture, gates=())
    given = Given(plain.arch, plain.num_classes, plain.mean, plain.std)
    fetched = zoo.fetch(path, plain.channels)
    if plain.mean is None:  # it was judged without, whatever the source says
        fetched = dataclasses.replace(fetched, normalization=None)
    return _loaded(path, fetched, read_as(fetched, given, (plain.channels, plain.size, plain.size)), classes, data, {})


def _loaded(path: Path, fetched: Fetched, match: Match, classes: Sequence[str], data: dict[str, Any], threat: dict[str, Any]) -> Loaded:
    network = build(match.architecture)
    network.load_state_dict(match.state)
    network.eval()
    origin = {
        "source": str(path),
        "source_sha256": fetched.sha256,
        "read_as": describe(match.architecture),
        "normalized_by": match.normalized_by,
    }
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem if fetched.home is None else str(path)).strip("-.") or "foreign"
    header = {
        "name": name[:100],
        "classes": list(classes),
        "data": data,
        "threat": threat,
        "foreign": origin,
        "notes": [f"the weights are another's, read as {origin['read_as']}; normalisation: {match.normalized_by}", *fetched.notes],
        "tensors_sha256": container.tensors_digest(save_tensors({k: t.contiguous() for k, t in network.state_dict().items()})),
    }
    return Loaded(network, match.architecture, header, path, fetched.home)


def describe(a: Architecture) -> str:
    """resnet18, or resnet18 at width 0.5."""
    return a.arch + (f" at width {a.width:g}" if a.width != 1 else "")


def read_as(fetched: Fetched, given: Given, image: tuple[int, ...]) -> Match:
    """The one architecture whose names and shapes the state dict has; CheckpointError that lists what fits the nearest one least."""
    arch = given.arch or fetched.arch
    state, inside = unwrap(fetched.state)
    if not state:
        raise CheckpointError("there is no weight in this state dict", where=fetched.where)
    tried = [_tried(found, image) for found in _candidates(state, arch, image)]
    architecture, wanted, renamed = min(tried, key=lambda row: _misfits(row[1], row[2]))
    try:
        check_fit(wanted, _shapes(renamed), fetched.where)
    except CheckpointError as error:
        what = f"read as {describe(architecture)}{'' if arch else ', the nearest of those that are known'}: {error.what}"
        raise CheckpointError(what, where=fetched.where, next=_hint(state, arch)) from None
    _check_given(given, architecture, image, fetched.where)
    mean, std, normalized_by = normalization(given, inside, fetched, image[0])
    return Match(dataclasses.replace(architecture, mean=mean, std=std), _floats(renamed, wanted, fetched.where), normalized_by)


def _candidates(state: State, arch: str | None, image: tuple[int, ...]) -> Iterator[Candidate]:
    if arch is None or not is_wrapped(arch):
        found = list(candidates(state, arch))
        if not found:
            build(Architecture(str(arch), 1.0, 2, image[0], image[1]))  # says which networks there are
        yield from found
        return
    with torch.device("meta"):
        network = build(Architecture(arch, 1.0, 2, image[0], image[1]))
    assert isinstance(network, Wrapped)
    head = f"{network.head_name}.weight"
    classes = len(state[head]) if head in state and state[head].dim() else 2
    renamed = network.rename(state)
    if "linear.weight" in renamed and "linear.bias" not in renamed:
        renamed["linear.bias"] = torch.zeros(classes)
    yield Candidate(arch, 1.0, max(1, classes), image[0], 1, renamed)


def _tried(found: Candidate, image: tuple[int, ...]) -> tuple[Architecture, Shapes, State]:
    """A candidate with the shapes that its architecture wants; no memory is taken for them."""
    sizes = (found.width, found.num_classes, found.channels, image[1])
    try:
        architecture = Architecture.from_json(Architecture(found.arch, *sizes, cells=found.cells).to_json())
    except ValueError:  # sizes that no network has: those of the plain one then do not fit
        architecture = Architecture(found.arch, 1.0, 10, image[0], image[1])
    # Which weights fit does not depend on the size of images, but for networks of other libraries.
    roomy = architecture if is_wrapped(found.arch) else dataclasses.replace(architecture, size=_ROOMY)
    with torch.device("meta"):
        return architecture, _shapes(build(roomy).state_dict()), found.state


def _shapes(state: State) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _misfits(wanted: Shapes, state: State) -> int:
    found = _shapes(state)
    return len(wanted.keys() ^ found.keys()) + sum(wanted[name] != found[name] for name in wanted.keys() & found.keys())


def _hint(state: State, arch: str | None) -> str:
    stem = state.get("conv1.weight")
    if arch is None and stem is not None and stem.dim() == 4 and stem.shape[-1] == 7:
        return "a 7 x 7 stem is torchvision's: --arch torchvision:resnet18, or another of its networks"
    return "--arch names the network, among them torchvision:NAME and timm:NAME"


def _check_given(given: Given, a: Architecture, image: tuple[int, ...], where: str) -> None:
    if given.num_classes is not None and given.num_classes != a.num_classes:
        raise UsageError(f"the weights tell {a.num_classes} classes apart, not {given.num_classes}", where="--num-classes")
    if a.channels != image[0]:
        what = f"the network takes images of {a.channels} channels, and these have {image[0]}"
        raise CheckpointError(what, where=where, next="name the data set that it is for with --data and --data-root")


def _floats(state: State, wanted: Shapes, where: str) -> State:
    """The tensors as float32, counters as they are; shapes have been checked."""
    result: dict[str, Tensor] = {}
    for name in wanted:
        tensor = state[name]
        counter = name.endswith("num_batches_tracked")
        if not counter and not tensor.is_floating_point():
            raise CheckpointError(f"{name} holds {tensor.dtype}, and weights are floating point", where=where)
        result[name] = tensor if counter else tensor.to(torch.float32)
    return result
