"""Test images, an adversarial image of each, and a network to look at them with: what figures of features are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advcli.attacks import Surrogate, Threat, ascend
from advcli.attacks.losses import attack_loss
from advcli.data import Split, to_float
from advcli.draws import Draws, uniform
from advcli.errors import CheckpointError, DataError, UsageError
from advcli.evaluation.job import Job, images_digest, pick
from advcli.evaluation.session import Options, default_chunk, open_checkpoint, open_split, threat
from advcli.gates.gate import pool
from advcli.models import Network, frozen
from advcli.runs import container
from advcli.runs.checkpoint import Loaded
from advcli.runs.folder import model_file
from advcli.runs.foreign import is_foreign
from advcli.runs.given import NOTHING_GIVEN, Given
from advcli.runs.ledger import Ledger
from advcli.training.device import pick_device, set_precision

Floats = NDArray[np.float32]
STORED, CRAFTED = "stored", "pgd-20"
_STEPS = 20


@dataclass(frozen=True)
class Request:
    """Which images, and which adversarial ones.

    n: a seeded, stratified part of the test split, the one that `attack` takes with that n and seed. attack: `stored`, what the
    newest finished evaluation found and PGD-20 elsewhere; a suite, the same of its newest evaluation; or `pgd-20` for all.
    only: the images of this class alone. given, size, and eps where a header tells none: of checkpoints of others, as for `attack`.
    noted: hears what is said of such a one, its clean accuracy first of all.
    """

    n: int
    seed: int = 0
    attack: str = STORED
    data: str | None = None
    data_root: str | None = None
    device: str = "auto"
    only: str | None = None
    given: Given = NOTHING_GIVEN
    size: int | None = None
    eps: str | None = None
    noted: Callable[[str], None] = lambda text: None


class Seen(NamedTuple):
    """logits (N, K); features (N, C, H, W), the map that is pooled; pooled (N, C * cells**2), what the classifier reads."""

    logits: Floats
    features: Floats
    pooled: Floats


@dataclass(frozen=True)
class Specimens:
    """images, adversarial (N, C, H, W) float32 in [0, 1]; labels, index (N,) int64; attacks: what made each adversarial image."""

    loaded: Loaded
    images: Floats
    adversarial: Floats
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    attacks: tuple[str, ...]
    threat: Threat
    eps: str
    chunk: int
    device: torch.device

    @property
    def classes(self) -> list[str]:
        return list(self.loaded.header["classes"])

    @property
    def network(self) -> Network:
        return self.loaded.network

    @property
    def class_weights(self) -> Floats:
        """(N, C * cells**2): what the classifier weighs features by for the true class of each image."""
        weights: Floats = self.network.linear.weight.detach().cpu().numpy()[self.labels]
        return weights

    @property
    def about(self) -> str:
        """Where the adversarial images come from, such as `linf eps 8/255, adversarial images: 88 of quick-1f3c9a2b, 12 pgd-20`."""
        places = [name.rpartition(" of ") for name in self.attacks]
        words = [f"of {place}" if of else place for _, of, place in places]
        counted = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
        return f"{self.threat.norm} eps {self.eps}, adversarial images: {counted}"

    def noisy(self, seed: int) -> Floats:
        """The images with uniform noise of the threat's size (ARREST, eq. 5)."""
        draws = Draws(seed, torch.from_numpy(self.index), "figures/noise")
        return self.threat.random_start(torch.from_numpy(self.images), draws).numpy()

    def others(self, seed: int) -> NDArray[np.int64]:
        """For each image (N,) the position of a uniformly drawn one with another label; -1 where all have the same."""
        drawn = uniform((seed, "figures/other"), torch.from_numpy(self.index), 0, ()).tolist()
        different = {label: np.flatnonzero(self.labels != label) for label in set(self.labels.tolist())}
        rows = [different[label] for label in self.labels.tolist()]
        return np.array([row[int(u * len(row))] if len(row) else -1 for u, row in zip(drawn, rows, strict=True)])

    def see(self, images: Floats) -> Seen:
        """What the deployed network makes of images (N, C, H, W); CheckpointError where that is no number."""
        parts = []
        with frozen(self.network), torch.no_grad():
            for part in torch.split(torch.from_numpy(images), self.chunk):
                output = self.network.trace(part.to(self.device))
                parts.append((output.logits, output.features, pool(output.features, self.network.cells)))
        seen = Seen(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
        if not all(np.isfinite(array).all() for array in seen):
            what = "the network's features or outputs are not finite numbers"
            raise CheckpointError(what, where=str(self.loaded.path), next="its weights are broken: train it again")
        return seen


def collect(runs: Sequence[Path], request: Request) -> list[Specimens]:
    """The same images for every run; UsageError where one is named twice, DataError where they are not for one data set.

    run: a run folder, a model file or a checkpoint of others.
    """
    files = [model_file(run) for run in runs]
    for number, path in enumerate(files):
        if path.resolve() in [other.resolve() for other in files[:number]]:
            raise UsageError("a run is named twice", where=str(runs[number]), next="name each once")
    if request.given and not any(map(is_foreign, files)):
        what = "the checkpoints are advcli's and say themselves what they are"
        raise UsageError(what, where="--arch, --num-classes, --mean, --std", next="leave them out")
    device = pick_device(request.device)
    set_precision("fp32", device)
    opened: dict[str, Split] = {}
    found = [_specimens(_open(path, request), request, opened, device) for path in files]
    for other in found[1:]:
        if other.images.shape != found[0].images.shape or not np.array_equal(other.images, found[0].images):
            where = f"{found[0].loaded.path} and {other.loaded.path}"
            raise DataError("the runs are for other images than one another", where=where, next="draw runs on one data set together")
    return found


class _Listener:
    """A watcher that passes on what is noted; nothing is attacked while it listens."""

    def __init__(self, noted: Callable[[str], None]) -> None:
        self.noted = noted

    def planned(self, attacks: int, passes: int, seconds: float) -> None: ...
    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...
    def advanced(self, done: int, spent: float, left: float) -> None: ...


def _open(path: Path, request: Request) -> Loaded:
    """What is given is about the checkpoints of others among the runs."""
    given = request.given if is_foreign(path) else NOTHING_GIVEN
    return open_checkpoint(_options(path, request, given), _Listener(request.noted))


def _options(path: Path, request: Request, given: Given = NOTHING_GIVEN) -> Options:
    data, root, size = request.data, request.data_root, request.size
    return Options(path, "quick", data=data, data_root=root, size=size, eps=request.eps, device=request.device, given=given)


def _specimens(loaded: Loaded, request: Request, opened: dict[str, Split], device: torch.device) -> Specimens:
    options = _options(loaded.path, request)
    a, stored = loaded.architecture, loaded.header["data"]
    key = json.dumps([stored.get("name"), stored.get("root"), stored.get("size"), loaded.header["classes"], a.channels, a.size])
    if key not in opened:
        opened[key], _ = open_split(loaded, options)
    radius, eps = threat(loaded, options)
    part = pick(_of_class(opened[key], loaded.header["classes"], request.only), request.n, request.seed)
    chunk = default_chunk(loaded, len(part), device)
    loaded.network.to(device)
    adversarial, names = to_float(part.images[:]), [""] * len(part)
    if request.attack != CRAFTED:
        names = _from_ledger(loaded, opened[key], part, radius, request.attack, adversarial)
    rest = torch.tensor([row for row, name in enumerate(names) if not name], dtype=torch.int64)
    weight = Job(loaded, part, radius, eps, "quick", "native", request.seed, chunk).aux_weight if loaded.network.gate_sites else 0.0
    if len(rest):
        adversarial[rest] = _craft(loaded.network, part.take(rest), radius, request.seed, chunk, weight, device)
    attacks = tuple(name or (f"{CRAFTED}-joint" if weight else CRAFTED) for name in names)
    arrays = (to_float(part.images[:]).numpy(), adversarial.numpy(), part.labels.numpy(), part.index.numpy())
    return Specimens(loaded, *arrays, attacks, radius, eps, chunk, device)


def _of_class(split: Split, classes: list[str], only: str | None) -> Split:
    if only is None:
        return split
    if only not in classes:
        raise UsageError(f"there is no class {only!r}", where="--class", next=f"this network has {', '.join(classes)}")
    return split.take(torch.nonzero(split.labels == classes.index(only))[:, 0])


def _from_ledger(loaded: Loaded, split: Split, part: Split, radius: Threat, suite: str, adversarial: Tensor) -> list[str]:
    """Copy what the evaluation stored into adversarial (N, C, H, W); returns who found each, empty where nothing is stored."""
    folder = _newest(loaded, radius, suite)
    if folder is None:
        if suite == STORED:
            return [""] * len(part)
        what = f"there is no finished {suite} evaluation of this network at its own threat on the test split"
        raise CheckpointError(what, where=str(loaded.path), next=f"advcli attack {loaded.path} --suite {suite}")
    arrays, header = Ledger(folder / "ledger").read()
    index = torch.from_numpy(arrays["index"])
    if int(index.max()) >= len(split) or images_digest(split.take(index)) != header["identity"]["images_sha256"]:
        what = "the images are not those that the evaluation was made with"
        raise DataError(what, where=str(folder), next=f"--data-root names the right ones; --attack {CRAFTED} does without the evaluation")
    row_of = {name: row for row, name in enumerate(arrays["adversarial_index"].tolist())}
    found_by = dict(zip(arrays["index"].tolist(), arrays["found_by"].tolist(), strict=True))
    names = [""] * len(part)
    for row, name in enumerate(part.index.tolist()):
        if name in row_of:
            adversarial[row] = torch.from_numpy(arrays["adversarial"][row_of[name]])
            names[row] = f"{header['entries'][found_by[name]]['name']} of {folder.name}"
    return names


def _newest(loaded: Loaded, radius: Threat, suite: str) -> Path | None:
    """The evaluation of these weights as deployed, at this threat, on test images, that was finished last."""
    files = sorted(loaded.evals.glob("*/ledger/ledger.safetensors"), key=lambda path: (path.stat().st_mtime, path))
    for path in reversed(files):
        header = container.read_header(path, "ledger")
        if _fits(header, loaded, radius) and suite in (STORED, header["suite"]):
            return path.parent.parent
    return None


def _fits(header: dict[str, Any], loaded: Loaded, radius: Threat) -> bool:
    identity = header["identity"]
    same = identity["tensors_sha256"] == loaded.header["tensors_sha256"]
    same &= identity["architecture"] == json.loads(json.dumps(loaded.architecture.to_json()))
    same &= (identity["threat"]["norm"], identity["threat"]["eps"]) == (radius.norm, radius.eps)
    return bool(same and header["split"] == "test" and header["head"] == "final")


def _craft(network: Network, part: Split, radius: Threat, seed: int, chunk: int, weight: float, device: torch.device) -> Tensor:
    """PGD-20 on the cross-entropy, of gated networks on the joint loss of their heads: steps of eps / 4, uniform start, the last point."""
    made = []
    with frozen(network):
        for rows in torch.split(torch.arange(len(part)), chunk):
            some = part.take(rows).to(device)
            draws = Draws(seed, some.index, "figures/pgd-20")
            x_adv = ascend(
                Surrogate(network.trace),
                attack_loss("ce", weight),
                radius,
                to_float(some.images[:]),
                some.labels,
                draws,
                {},
                steps=_STEPS,
                step_size=radius.eps / 4,
                start="uniform",
            )
            made.append(x_adv.cpu())
    return torch.cat(made)
