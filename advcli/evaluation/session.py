"""An attack command from a checkpoint and options to a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from advcli.attacks import Threat
from advcli.data import Split, load_test
from advcli.errors import CheckFailedError, CheckpointError, DataError, UsageError
from advcli.evaluation import first_look
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job, Watcher, pick
from advcli.evaluation.search import SHORT
from advcli.evaluation.suites import TRANSFER, suite
from advcli.gates.whole import processes
from advcli.models import head_of, with_gate
from advcli.recipe.number import parse_number
from advcli.recipe.schema import DATA_SETS, Data, Gate
from advcli.recipe.schema import Threat as ThreatPart
from advcli.runs import foreign
from advcli.runs.checkpoint import Loaded, few, load_network
from advcli.runs.folder import model_file, newest_checkpoint
from advcli.runs.given import NOTHING_GIVEN, Given
from advcli.training import distributed
from advcli.training.cost import FLOOR, forward_flops
from advcli.training.device import pick_device

_HARD = ("aa", "aa-plus", "aa-rand")  # as hard as it gets for a network that hides nothing


@dataclass(frozen=True)
class Options:
    """None: what the checkpoint's header says. n None: the whole split. given: about a checkpoint of others. size: of a folder's images."""

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
    given: Given = NOTHING_GIVEN
    size: int | None = None
    search: str = "auto"


def find_checkpoint(given: Path | None) -> Path:
    """The file that was named (or model.safetensors of the folder that was), else the newest under runs/."""
    return newest_checkpoint() if given is None else model_file(given)


def run(options: Options, watcher: Watcher) -> tuple[Path, dict[str, Any]]:
    """(evaluation folder, report)."""
    return _evaluate(distributed.in_turn(lambda: job(options, watcher)), options, watcher)


def job(options: Options, watcher: Watcher) -> Job:
    """What the options ask for, everything read and checked."""
    suite(options.suite, options.engine)  # an unknown name is refused before anything is loaded
    _check_sources(options)
    if options.engine == "reference" and processes() > 1:
        what = "the authors' package draws by batch, so its verdicts would depend on the number of processes"
        raise UsageError(what, where="--engine", next="start it without torchrun, or leave --engine out")
    return _job(open_checkpoint(options, watcher), options, watcher)


def attack(loaded: Loaded, options: Options, watcher: Watcher) -> tuple[Path, dict[str, Any]]:
    """The same as `run` for a checkpoint that is open."""
    return _evaluate(_job(loaded, options, watcher), options, watcher)


def _evaluate(job: Job, options: Options, watcher: Watcher) -> tuple[Path, dict[str, Any]]:
    return evaluate(job, options.out, watcher, device=pick_device(options.device), resume=options.resume)


def _job(loaded: Loaded, options: Options, watcher: Watcher) -> Job:
    if options.gate is not None:
        loaded = with_named_gate(loaded, options.gate)
    stored = loaded.header["data"]
    alike = replace(
        options, given=NOTHING_GIVEN, data=options.data or stored.get("name"), data_root=options.data_root or stored.get("root")
    )
    sources = tuple(_source(loaded, replace(alike, checkpoint=path), watcher) for path in options.source)
    if len({(source.header["tensors_sha256"], source.architecture) for source in sources}) < len(sources):
        raise UsageError("a source is named twice: two are the same network", where="--source", next="name each once")
    head_of(loaded.network, options.head)
    radius, eps_text = threat(loaded, options)
    split, data = open_split(loaded, options)
    images = pick(split, options.n, options.seed)
    chunk = options.batch_size or default_chunk(loaded, len(images), pick_device(options.device))
    kind = (options.suite, options.engine, options.seed, chunk)
    search = _search(loaded, radius, options)
    return Job(loaded, images, radius, eps_text, *kind, data, options.split, options.head, sources, search)


_ASSUMED = {"norm": "linf", "eps": "8/255"}  # of checkpoints of others, which do not say what they were trained for


def open_checkpoint(options: Options, watcher: Watcher) -> Loaded:
    """The checkpoint that options name, ours or another's; of the latter the clean accuracy is noted at once."""
    path = find_checkpoint(options.checkpoint)
    if not foreign.is_foreign(path):
        if options.given:
            what = "the checkpoint is advcli's and says itself what it is"
            raise UsageError(what, where="--arch, --num-classes, --mean, --std", next="leave them out")
        return load_network(path)
    foreign.check_readable(path)  # a hostile or missing file is refused before anything is asked about it
    if options.data is None:
        what = "a checkpoint of others does not say which data it is for"
        raise UsageError(what, where="--data", next=f"--data cifar10, or another of {', '.join(DATA_SETS)}")
    data = _data({}, options)
    split, classes = load_test(data, options.split)
    shape = tuple(split.images.shape[1:])
    if shape[1] != shape[2]:
        raise DataError(f"images are {shape[2]} x {shape[1]} pixels, and networks here take square ones", where=data.name, next="--size 32")
    several = options.eps is not None and "," in options.eps
    ball, eps = _threat(_ASSUMED, replace(options, eps=None) if several else options)
    loaded = foreign.load(path, options.given, classes, shape, data.model_dump(mode="json"), {"norm": ball.norm, "eps": eps})
    if options.eps is None:
        watcher.noted(f"{path}: no --eps, so {ball.norm} eps {eps} is assumed")
    for line in first_look.look(loaded, split, pick_device(options.device)):
        watcher.noted(f"{path}: {line}")
    return loaded


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


def _source(loaded: Loaded, options: Options, watcher: Watcher) -> Loaded:
    """Another network for the same images and classes."""
    source = open_checkpoint(options, watcher)
    a, b = loaded.architecture, source.architecture
    if source.header["classes"] != loaded.header["classes"] or (a.channels, a.size) != (b.channels, b.size):
        what = "the source is for other classes or images than the checkpoint"
        raise CheckpointError(what, where=str(source.path), next="name one that was trained on the same data set")
    if (source.header["tensors_sha256"], b) == (loaded.header["tensors_sha256"], a):
        raise UsageError("the source is the checkpoint itself", where=str(source.path), next="--suite quick attacks it directly")
    return source


def with_named_gate(loaded: Loaded, name: str) -> Loaded:
    """The checkpoint with a gate put on afterwards, before pooling: what a gate does to the numbers of a network not trained for it."""
    try:
        part: Gate = TypeAdapter(Gate).validate_python({"name": name})
    except ValidationError:
        raise UsageError(f"there is no gate {name!r}", where="--gate", next="--gate reverse-attention") from None
    network, architecture = with_gate(loaded.network, loaded.architecture, part)
    return replace(loaded, network=network, architecture=architecture)


def default_chunk(loaded: Loaded, n: int, device: torch.device) -> int:
    """Images at once: 512 on an accelerator; on a CPU, which fills up sooner, about 4 GFLOP a forward, between 32 and 128.

    A quarter of the images at most, for the pool is never smaller than this, however few still stand.
    """
    full = 512 if device.type != "cpu" else min(128, max(32, 2 ** round(math.log2(4e9 / max(1, _forward_flops(loaded))))))
    return int(min(full, max(8, 2 ** math.ceil(math.log2(max(1, n / 4))))))


def check_trustworthy(report: dict[str, Any]) -> None:
    """What --strict asks: CheckFailedError, exit 4, unless the verdict is trustworthy."""
    if report["verdict"] != "trustworthy":
        reasons = "; ".join(report["reasons"])
        raise CheckFailedError(f"the evaluation is not trustworthy: {report['verdict']}", where=reasons, next=_harder(report))


def _harder(report: dict[str, Any]) -> str:
    """The next harder suite; past the hardest, no command makes the network trustworthy."""
    suite, knows = report["suite"], ("adaptive", "full")
    if suite in knows:
        return "no suite attacks harder: judge the network by what the flags say of it"
    odd = report["gated"] or any(flag["raised"] for flag in report["flags"])
    return "--suite adaptive knows how the network hides its gradient" if odd or suite in _HARD else "--suite aa attacks harder"


def threat(loaded: Loaded, options: Options) -> tuple[Threat, str]:
    """What the options, else the checkpoint, say; and eps as typed. UsageError where that is no ball."""
    return _threat(loaded.header["threat"], options)


def _threat(stored: dict[str, Any], options: Options) -> tuple[Threat, str]:
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


def _data(stored: dict[str, Any], options: Options) -> Data:
    """The data set that options name, else the stored one; UsageError where it is none."""
    fields = dict(stored) if options.data in (None, stored.get("name")) else {"name": options.data}
    fields |= {key: value for key, value in (("root", options.data_root), ("size", options.size)) if value is not None}
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
    return data


def open_split(loaded: Loaded, options: Options) -> tuple[Split, dict[str, Any]]:
    """The split that the checkpoint, or an option, names, and where it is from; DataError where it does not fit the network."""
    stored = loaded.header.get("data")
    data = _data(stored if isinstance(stored, dict) else {}, options)
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
