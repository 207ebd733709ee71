"""State dicts in files of others: safetensors, or what torch.save wrote, of which only tensors and plain containers are loaded."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from advcli.errors import CheckpointError, first_line

State = dict[str, Tensor]

_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "ema_state_dict", "model_ema", "params", "weights", "module")
_DATA_ONLY = ("torch.", "collections OrderedDict", "torch ")
_DEPTH = 4  # nests within nests


def read(path: Path) -> tuple[State, list[str]]:
    """(tensors by name, on the CPU; notes on what was chosen). CheckpointError with the reason; nothing in the file is executed.

    Of several state dicts in one file the first of `state_dict`, `model`, `net`, `ema`, ... is taken, and that is noted.
    """
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path))
    return find(_safetensors(path) if path.suffix == ".safetensors" else _pickled(path), str(path))


def _safetensors(path: Path) -> Any:
    try:
        return load_tensors(path.read_bytes())
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the file is damaged: {error}", where=str(path)) from None


def _pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken pickle makes the restricted unpickler raise nearly anything
        called = _calls(path, str(error))
        if called:
            what = f"loading this file would run code of its own; it was not loaded. It asks for {', '.join(called)}"
            hint = "where you trust it, load it yourself and save the tensors alone: torch.save(model.state_dict(), 'weights.pt')"
            raise CheckpointError(what, where=str(path), next=hint) from None
        reason = first_line(error)
        reason = reason if " " in reason else f"{type(error).__name__} {reason}"
        raise CheckpointError(f"the file is damaged, or nothing that torch.save wrote: {reason[:300]}", where=str(path)) from None


def _calls(path: Path, message: str) -> list[str]:
    """Names that the pickle imports beyond tensors and containers, read from its instructions without following any."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    found = [named[1]] if named else []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        else:
            data = path.read_bytes()
        found += _imports(data)
    except Exception:  # only to name more of what was refused anyway
        pass
    return list(dict.fromkeys(found))[:8]


def _imports(data: bytes) -> list[str]:
    texts: list[str] = []
    found: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name == "STACK_GLOBAL":
                found.append(" ".join(texts[-2:]))
            elif code.name in ("GLOBAL", "INST"):
                found.append(str(argument))
            elif isinstance(argument, str):
                texts.append(argument)
    except ValueError:
        pass  # the instructions up to the damage have been seen
    return [name.replace(" ", ".") for name in found if not name.startswith(_DATA_ONLY)]


def find(content: Any, where: str) -> tuple[State, list[str]]:
    """(the state dict in what a file held, notes); CheckpointError where there is none."""
    notes: list[str] = []
    for _ in range(_DEPTH):
        if not isinstance(content, dict):
            break
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            _check_plain(tensors, where)
            return {key: tensor.detach() for key, tensor in tensors.items()}, notes
        nests = [key for key in _NESTS if isinstance(content.get(key), dict)]
        if not nests:
            break
        if len(nests) > 1:
            notes.append(f"the file holds several state dicts ({', '.join(nests)}); {nests[0]} was taken")
        content = content[nests[0]]
    held = f"a dict of {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise CheckpointError(f"there is no state dict in this file: it holds {held}", where=where, next=f"known places: {', '.join(_NESTS)}")


def _check_plain(tensors: State, where: str) -> None:
    odd = [key for key, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()]
    if odd:
        what = f"sparse, quantized or complex tensors are no weights of a network here: {', '.join(odd[:8])}"
        raise CheckpointError(what, where=where, next="save the dense float weights")
