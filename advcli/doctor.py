"""What this machine can do for advcli, what stands in its way, and how long a recipe would take.

Nothing here may fail on an odd machine: what cannot be found out is a problem with its way out, or is left out. Only a device that was
asked for and is not there is refused, before anything is looked at. torch is imported inside, since it may be what is broken.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import advcli
from advcli.errors import AdvcliError, DataError, UsageError, first_line
from advcli.recipe import Recipe

_EXTRAS = (  # module, package, what it is for
    ("timm", "timm", "convert timm:NAME"),
    ("huggingface_hub", "huggingface-hub", "convert hf:REPO/FILE"),
    ("umap", "umap-learn", "visualize embedding by UMAP"),
    ("pyautoattack", "pyautoattack", "attack --engine reference, rows of bench --attacks"),
    ("torchattacks", "torchattacks", "rows of bench --attacks and --peers"),
    ("foolbox", "foolbox", "rows of bench --attacks and --peers"),
)
_DATA = (  # name, a file that is there where the data set is
    ("cifar10", ("cifar-10-batches-py/data_batch_1",)),
    ("cifar100", ("cifar-100-python/train",)),
    ("svhn", ("train_32x32.mat",)),
    ("tiny-imagenet", ("tiny-imagenet-200/wnids.txt", "wnids.txt")),
)
_OLDEST, _BROKEN = (2, 11), (2, 13)
_ROOM = 2e9  # bytes that a run and its evaluations should find
_AGREES = 0.99  # cosine between bfloat16's and float32's gradients
_TORCH = "pip install 'torch>=2.11,!=2.13.*' torchvision, both from one place"


class Examination:
    """problems: {what, next} each, in the order in which they were met."""

    def __init__(self) -> None:
        self.problems: list[dict[str, str]] = []

    def problem(self, what: str, next: str) -> None:
        self.problems.append({"what": what, "next": next})

    def module(self, name: str, next: str) -> Any:
        """The module, or None and a problem: an import may fail in any way where compiled parts do not fit each other."""
        try:
            return import_module(name)
        except Exception as error:
            self.problem(f"{name} cannot be imported: {first_line(error)}", next)
            return None

    def attempt(self, what: str, go: Callable[[], Any], next: str) -> Any:
        """What go gives, or None and a problem: drivers and kernels have errors of their own kinds, a refusal has its own words."""
        try:
            return go()
        except AdvcliError as error:
            self.problem(f"{error.where}: {error.what}" if error.where else error.what, error.next or next)
        except Exception as error:
            self.problem(f"{what}: {first_line(error)}", next)
        return None


def examine(recipe: Recipe | None, device: str, data_root: str | None, watch: Callable[[str], None]) -> dict[str, Any]:
    """Everything found out, as one object for --json. recipe: whose time is estimated, on six real steps.

    Raises UsageError for a device that is not there, and for nothing else.
    """
    seen = Examination()
    torch = seen.module("torch", _TORCH)
    where = _chosen(device, seen) if torch else None
    result: dict[str, Any] = {
        "versions": _versions(torch, seen),
        "system": platform.platform(),
        "devices": _devices(torch, seen) if torch else [],
        "bf16": _bf16(where, seen) if torch else None,
        "compile": _compile(torch),
        "backends": seen.attempt("torch.distributed cannot be asked", lambda: _backends(torch), "train in one process") if torch else [],
        "extras": [_extra(*row) for row in _EXTRAS],
        "data": seen.attempt(
            "data sets cannot be looked for", lambda: _data(data_root), "name a readable folder with --data-root or in ADVCLI_DATA"
        ),
        "disk": seen.attempt("the disk cannot be asked", lambda: _disk(seen), "see that this folder is there and readable"),
    }
    if recipe is not None and torch:
        tried, next = (
            partial(_recipe, recipe, where, data_root, seen, watch),
            "mend what is named above, or take a smaller train.batch_size",
        )
        result["recipe"] = seen.attempt("the recipe's steps fail", tried, next)
    return {**result, "problems": seen.problems}


def _chosen(name: str, seen: Examination) -> Any:
    """The torch.device; where `auto` finds a GPU that fails, it is a problem, and the rest is asked of the CPU."""
    from advcli.training.device import pick_device

    try:
        return pick_device(name)
    except UsageError as error:
        if name != "auto":
            raise
        seen.problem(error.what, "see the driver's version with nvidia-smi, or compute with --device cpu")
        return pick_device("cpu")


def _versions(torch: Any, seen: Examination) -> dict[str, str | None]:
    vision = seen.module("torchvision", _TORCH) if torch else None
    if torch:
        _check_torch(str(torch.__version__), seen)
    return {
        "advcli": advcli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__) if torch else None,
        "torchvision": str(getattr(vision, "__version__", "?")) if vision else None,
    }


def _check_torch(version: str, seen: Examination) -> None:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers == _BROKEN:
        seen.problem(f"torch {version}: its bfloat16 convolutions are many times slower on CPUs than those of other versions", _TORCH)
    elif numbers < _OLDEST:
        seen.problem(f"torch {version} is older than what advcli is tested with", _TORCH)


def _devices(torch: Any, seen: Examination) -> list[dict[str, Any]]:
    from advcli.training.machine import processor

    cores, threads = os.cpu_count(), torch.get_num_threads()
    found: list[dict[str, Any]] = [{"device": "cpu", "name": processor(), "cores": cores, "threads": threads, "memory_bytes": _memory()}]
    next = "see the driver's version with nvidia-smi, or compute with --device cpu"
    count = seen.attempt("CUDA devices cannot be counted", torch.cuda.device_count, next) or 0
    found += [row for row in (seen.attempt(f"cuda:{n} cannot be asked", partial(_card, torch, n), next) for n in range(count)) if row]
    if not count and shutil.which("nvidia-smi"):
        cuda = torch.version.cuda
        seen.problem(f"there is a driver for GPUs, but none that torch can use; it is built for CUDA {cuda}", next if cuda else _TORCH)
    return found


def _card(torch: Any, number: int) -> dict[str, Any]:
    facts = torch.cuda.get_device_properties(number)
    return {
        "device": f"cuda:{number}",
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "memory_bytes": facts.total_memory,
    }


def _memory() -> int | None:
    """Bytes of main memory, where the system says."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _bf16(where: Any, seen: Examination) -> dict[str, Any] | None:
    """Whether bfloat16 convolutions are quicker than float32's here, and whether they compute the same."""
    from advcli.training.machine import low_convolutions

    next = "train.precision=fp32 craft.precision=fp32 does without them"
    measured = seen.attempt("bfloat16 convolutions fail", lambda: low_convolutions(where), next)
    if measured is None:
        return None
    gain, cosine = measured
    if cosine < _AGREES:
        seen.problem(f"bfloat16 convolutions compute something else here (cosine {cosine:.3f} to float32's gradient)", next)
    return {"device": str(where), "gain": gain, "cosine": cosine}


def _compile(torch: Any) -> dict[str, Any]:
    """What torch.compile needs: Triton for GPUs, a C++ compiler and Python's headers for CPUs."""
    asked = os.environ.get("CXX")
    compiler = next((path for path in map(shutil.which, filter(None, (asked, "g++", "clang++", "c++"))) if path), None)
    headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()
    return {"triton": bool(torch) and util.find_spec("triton") is not None, "compiler": compiler, "headers": headers}


def _backends(torch: Any) -> list[str]:
    """What several processes can talk over."""
    distributed = torch.distributed
    return [name for name in ("gloo", "nccl") if distributed.is_available() and getattr(distributed, f"is_{name}_available")()]


def _extra(module: str, package: str, purpose: str) -> dict[str, str | None]:
    try:
        version = metadata.version(package) if util.find_spec(module) else None
    except metadata.PackageNotFoundError:
        version = "?"
    return {"package": package, "version": version, "for": purpose}


def _default_root() -> Path:
    return Path(os.environ.get("ADVCLI_DATA") or Path.home() / ".cache" / "advcli" / "data")


def _data(data_root: str | None) -> dict[str, Any]:
    root = Path(data_root).expanduser() if data_root else _default_root()
    found = {"digits": True} | {name: any((root / mark).is_file() for mark in marks) for name, marks in _DATA}
    return {"root": str(root), "found": found}


def _disk(seen: Examination) -> dict[str, Any]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if free < _ROOM:
        seen.problem(f"{free / 1e9:.1f} GB are free here, where runs are written", "make room, or write elsewhere with --out")
    return {"folder": str(here), "free_bytes": free}


def _recipe(recipe: Recipe, where: Any, data_root: str | None, seen: Examination, watch: Callable[[str], None]) -> Any:
    """The benchmark at its shortest, six steps; nothing is downloaded: where the data set is missing, random images take its place."""
    from advcli.data.synthetic import can_stand_in
    from advcli.training import throughput

    data = recipe.data.model_copy(update={"download": False} | ({"root": data_root} if data_root else {}))
    recipe = recipe.model_copy(update={"data": data})
    how = throughput.How(rounds=1, seconds=0.0, made_up=False, watch=watch)
    try:
        return throughput.run(recipe, where, how)
    except DataError as error:
        seen.problem(f"{data.name}: {error.what} ({error.where})", error.next)
    return throughput.run(recipe, where, replace(how, made_up=True)) if can_stand_in(data) else None
