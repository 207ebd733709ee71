"""An attack command from a checkpoint and options to a report."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from advcli.attacks import Threat
from advcli.data import Split, load_test
from advcli.errors import CheckFailedError, CheckpointError, DataError, UsageError
from advcli.evaluation.engine import Job, Watcher, evaluate, pick
from advcli.evaluation.search import FLOOR, SHORT
from advcli.evaluation.suites import TRANSFER, suite
from advcli.models import head_of, with_gate
from advcli.recipe.number import parse_number
from advcli.recipe.schema import DATA_SETS, Data, Gate
from advcli.recipe.schema import Threat as ThreatPart
from advcli.runs.checkpoint import Loaded, few, load_network
from advcli.runs.folder import model_file, newest_checkpoint
from advcli.training.cost import forward_flops
from advcli.training.device import pick_device


@dataclass(frozen=True)
class Options:
    """None: what the checkpoint's header says. n None: the whole split."""

    checkpoint: Path | None
    suite: str
    n: int | None = None
    seed: int = 0
    split: Literal["test", "train"] = "test"
    data: str | None = None
    data_root: str | None = None
    norm: str | None = None
    eps: str | None = None
    batch_size: int | None = None
    engine: str = "native"
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    head: str = "final"
    gate: str | None = None
    source: tuple[Path, ...] = ()
    search: str = "auto"


def find_checkpoint(given: Path | None) -> Path:
    """The file that was named (or model.safetensors of the folder that was), else the newest under runs/."""
    return newest_checkpoint() if given is None else model_file(given)


def run(options: Options, watcher: Watcher) -> tuple[Path, dict[str, Any]]:
    """(evaluation folder, report)."""
    return evaluate(job(options), options.out, watcher, device=pick_device(options.device), resume=options.resume)


def job(options: Options) -> Job:
    """What the options ask for, everything read and checked."""
    suite(options.suite, options.engine)  # an unknown name is refused before anything is loaded
    _check_sources(options)
    loaded = load_network(find_checkpoint(options.checkpoint))
    if options.gate is not None:
        loaded = _with_gate(loaded, options.gate)
    sources = tuple(_source(loaded, path) for path in options.source)
    if len({(source.header["tensors_sha256"], source.architecture) for source in sources}) < len(sources):
        raise UsageError("a source is named twice: two are the same network", where="--source", next="name each once")
    head_of(loaded.network, options.head)
    radius, eps_text = threat(loaded, options)
    split, data = _images(loaded, options)
    images = pick(split, options.n, options.seed)
    device = pick_device(options.device)
    chunk = options.batch_size or default_chunk(loaded, len(images), device)
    kind = (options.suite, options.engine, options.seed, chunk)
    search = _search(loaded, radius, options)
    return Job(loaded, images, radius, eps_text, *kind, data, options.split, options.head, sources, search)


def _check_sources(options: Options) -> None:
    if bool(options.source) != (options.suite == TRANSFER):
        what = "a transfer attack needs other networks to be crafted on" if not options.source else f"suite {options.suite} has no sources"
        raise UsageError(what, where="--source", next="advcli attack CKPT --suite transfer --source OTHER")


def _search(loaded: Loaded, radius: Threat, options: Options) -> str:
    """How attacks are asked to search: `auto` means float32 where there is nothing to gain, or another network is searched on."""
    a = loaded.architecture
    fixed = options.engine == "reference" or bool(options.source)
    if fixed and options.search not in ("auto", "fp32"):
        what = "the authors' package" if options.engine == "reference" else "an attack crafted on other networks"
        raise UsageError(f"{what} searches in float32", where="--search-precision", next="leave it out")
    if options.search != "auto" or fixed:
        return "fp32" if fixed else options.search
    passes = sum(entry.attack.passes for entry in suite(options.suite).entries(radius, a.num_classes))
    return "fp32" if passes < SHORT or _forward_flops(loaded) < FLOOR else "auto"


def _forward_flops(loaded: Loaded) -> int:
    a = loaded.architecture
    return forward_flops(loaded.network, torch.zeros(1, a.channels, a.size, a.size))


def _source(loaded: Loaded, path: Path) -> Loaded:
    """Another network for the same images and classes."""
    source = load_network(find_checkpoint(path))
    a, b = loaded.architecture, source.architecture
    if source.header["classes"] != loaded.header["classes"] or (a.channels, a.size) != (b.channels, b.size):
        what = "the source is for other classes or images than the checkpoint"
        raise CheckpointError(what, where=str(source.path), next="name one that was trained on the same data set")
    if (source.header["tensors_sha256"], b) == (loaded.header["tensors_sha256"], a):
        raise UsageError("the source is the checkpoint itself", where=str(source.path), next="--suite quick attacks it directly")
    return source


def _with_gate(loaded: Loaded, name: str) -> Loaded:
    """The checkpoint with a gate put on afterwards, before pooling: what a gate does to the numbers of a network not trained for it."""
    try:
        part: Gate = TypeAdapter(Gate).validate_python({"name": name})
    except ValidationError:
        raise UsageError(f"there is no gate {name!r}", where="--gate", next="--gate reverse-attention") from None
    network, architecture = with_gate(loaded.network, loaded.architecture, part)
    return dataclasses.replace(loaded, network=network, architecture=architecture)


def default_chunk(loaded: Loaded, n: int, device: torch.device) -> int:
    """Images at once: 512 on an accelerator; on a CPU, which fills up sooner, about 4 GFLOP a forward, between 32 and 128.

    A quarter of the images at most, for the pool is never smaller than this, however few still stand.
    """
    full = 512 if device.type != "cpu" else min(128, max(32, 2 ** round(math.log2(4e9 / max(1, _forward_flops(loaded))))))
    return int(min(full, max(8, 2 ** math.ceil(math.log2(max(1, n / 4))))))


def check_trustworthy(report: dict[str, Any]) -> None:
    """What --strict asks: CheckFailedError, exit 4, unless the verdict is trustworthy."""
    if report["verdict"] != "trustworthy":
        reasons = "; ".join(flag["message"] for flag in report["flags"]) or f"suite {report['suite']} gives an upper bound only"
        raise CheckFailedError(f"the evaluation is not trustworthy: {report['verdict']}", where=reasons, next=_harder(report))


def _harder(report: dict[str, Any]) -> str:
    if report["gated"] and report["suite"] != "adaptive":
        return "--suite adaptive knows the network's gates and comes closer"
    return (
        "--suite aa attacks harder"
        if report["suite"] not in ("aa", "aa-plus", "adaptive")
        else "see the notes of the report for what the suite does not attack"
    )


def threat(loaded: Loaded, options: Options) -> tuple[Threat, str]:
    """What the options, else the checkpoint, say; and eps as typed. UsageError where that is no ball."""
    stored = loaded.header["threat"]
    if options.norm in ("linf", "l2") and options.norm != stored.get("norm") and options.eps is None:
        what = f"the checkpoint's eps is for {stored.get('norm')}; another norm needs a radius of its own"
        raise UsageError(what, where="--norm", next="add --eps, such as --norm l2 --eps 128/255")
    try:
        eps = parse_number(options.eps if options.eps is not None else stored.get("eps", "8/255"))
        part = ThreatPart.model_validate({"norm": options.norm or stored.get("norm", "linf"), "eps": eps})
    except ValueError as error:
        message = (
            str(error)
            if "validation" not in str(error)
            else f"norm is linf or l2 and eps is over 0; got {options.norm or stored.get('norm')}, {options.eps}"
        )
        raise UsageError(message, where="--norm, --eps") from None
    if part.norm == "linf" and part.eps >= 1:
        raise UsageError(
            f"images are in [0, 1], so an linf eps of {part.eps.text} allows anything",
            where="--eps",
            next=f"did you mean --eps {part.eps.text}/255?",
        )
    return Threat(part.norm, float(part.eps)), part.eps.text


def _images(loaded: Loaded, options: Options) -> tuple[Split, dict[str, Any]]:
    """The split that the checkpoint, or an option, names, and where it is from; DataError where it does not fit the network."""
    stored = loaded.header.get("data")
    fields = dict(stored) if isinstance(stored, dict) and options.data in (None, stored.get("name")) else {"name": options.data}
    if options.data_root is not None:
        fields["root"] = options.data_root
    try:
        data = Data.model_validate(fields)
    except ValueError:
        raise UsageError(
            f"the data set {fields.get('name')!r} is not known",
            where="--data",
            next=f"name one of {', '.join(DATA_SETS)}",
        ) from None
    if data.name == "folder" and data.root is None:
        raise UsageError("a folder of images needs its place", where="--data-root")
    split, classes = load_test(data, options.split)
    expected = tuple(loaded.header.get("classes", ()))
    if classes != expected:
        raise DataError(
            f"the data set has other classes than the checkpoint: {few(classes)} instead of {few(expected)}",
            where=data.name,
            next="name the right one with --data and --data-root",
        )
    a = loaded.architecture
    shape, takes = tuple(split.images.shape[1:]), (a.channels, a.size, a.size)
    if shape != takes:
        raise DataError(f"images are {shape} (channels, height, width), and the network takes {takes}", where=data.name)
    return split, data.model_dump(mode="json")
