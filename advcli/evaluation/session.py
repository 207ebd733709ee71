"""An attack command from a checkpoint and options to a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advcli.attacks import Threat
from advcli.data import Split, load_test
from advcli.errors import CheckFailedError, DataError, UsageError
from advcli.evaluation.engine import Job, Watcher, evaluate, pick
from advcli.evaluation.suites import suite
from advcli.recipe.number import parse_number
from advcli.recipe.schema import Data
from advcli.recipe.schema import Threat as ThreatPart
from advcli.runs.checkpoint import Loaded, load_network
from advcli.runs.folder import newest_checkpoint
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
    batch_size: int = 128
    out: Path | None = None
    resume: bool = False
    device: str = "auto"


def find_checkpoint(given: Path | None) -> Path:
    """The file that was named (or model.safetensors of the folder that was), else the newest under runs/."""
    if given is None:
        return newest_checkpoint()
    return given / "model.safetensors" if given.is_dir() else given


def run(options: Options, watcher: Watcher) -> tuple[Path, dict[str, Any]]:
    """(evaluation folder, report)."""
    suite(options.suite)  # an unknown name is refused before anything is loaded
    loaded = load_network(find_checkpoint(options.checkpoint))
    threat, eps_text = _threat(loaded, options)
    images = pick(_images(loaded, options), options.n, options.seed)
    job = Job(loaded, images, threat, eps_text, options.suite, options.seed, options.batch_size)
    return evaluate(job, options.out, watcher, device=pick_device(options.device), resume=options.resume)


def check_trustworthy(report: dict[str, Any]) -> None:
    """What --strict asks: CheckFailedError, exit 4, unless the verdict is trustworthy."""
    if report["verdict"] != "trustworthy":
        reasons = "; ".join(flag["message"] for flag in report["flags"]) or f"suite {report['suite']} gives an upper bound only"
        raise CheckFailedError(f"the evaluation is not trustworthy: {report['verdict']}", where=reasons, next="--suite aa attacks harder")


def _threat(loaded: Loaded, options: Options) -> tuple[Threat, str]:
    stored = loaded.header.get("threat", {})
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


def _images(loaded: Loaded, options: Options) -> Split:
    """The split that the checkpoint, or an option, names; DataError where it does not fit the network."""
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
            next="name one of digits, cifar10, cifar100, svhn, tiny-imagenet, folder",
        ) from None
    if data.name == "folder" and data.root is None:
        raise UsageError("a folder of images needs its place", where="--data-root")
    split, classes = load_test(data, options.split)
    expected = tuple(loaded.header.get("classes", ()))
    if classes != expected:
        raise DataError(
            f"the data set has other classes than the checkpoint: {_few(classes)} instead of {_few(expected)}",
            where=data.name,
            next="name the right one with --data and --data-root",
        )
    a = loaded.architecture
    shape, takes = tuple(split.images.shape[1:]), (a.channels, a.size, a.size)
    if shape != takes:
        raise DataError(f"images are {shape} (channels, height, width), and the network takes {takes}", where=data.name)
    return split


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
