"""The file format of checkpoints, states and ledgers: safetensors with one JSON header and digests; read here without torch.

The safetensors metadata has the single key `advcli`; its text is {"header": ..., "header_sha256": ...} and the header holds
`kind`, `format` and `tensors_sha256`, so that any damaged byte is found before anything is used. Nothing in such a file is
ever executed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from advcli.errors import CheckpointError

FORMAT = 1
_KEY = "advcli"
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_FOREIGN = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x80": "a Python pickle", b"\x89HDF": "an HDF5 file"}

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl")
"""Endings of files that torch.save writes; others' safetensors are told from ours by their table of contents."""

Table = dict[str, dict[str, Any]]  # name: {dtype, shape, data_offsets}


def seal(header: dict[str, Any], kind: str, tensors_sha256: str) -> dict[str, str]:
    """The safetensors metadata for a header."""
    whole = {**header, "kind": kind, "format": FORMAT, "tensors_sha256": tensors_sha256}
    return {_KEY: json.dumps({"header": whole, "header_sha256": _digest_json(whole)}, sort_keys=True)}


def tensors_digest(data: bytes) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors in a safetensors file, which is its whole content but the metadata."""
    table, start = _table(data, Path("memory"))
    digest = hashlib.sha256()
    for name in sorted(table):
        entry = table[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        first, last = entry["data_offsets"]
        digest.update(memoryview(data)[start + first : start + last])
    return digest.hexdigest()


def read(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """(header, file) of a container of that kind, its digests checked. Raises CheckpointError with the reason otherwise."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(error, path, kind) from None
    header = _header(data, path)
    _check_kind(header, path, kind)
    if tensors_digest(data) != header.get("tensors_sha256"):
        raise CheckpointError(
            "the file is damaged: its tensors do not match their SHA-256", where=str(path), next="restore it from a copy, or train again"
        )
    return header, data


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The header alone, its own digest checked but not the tensors'; cheap on large files."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            file.seek(0)
            header = _header(file.read(8 + min(length, _MAX_HEADER)), path, whole=False)
    except OSError as error:
        raise _unreadable(error, path, kind) from None
    _check_kind(header, path, kind)
    return header


def is_foreign(path: Path) -> bool:
    """Whether a file is somebody else's, by its ending or for want of our header; a damaged one of no known ending is not."""
    if path.suffix in PICKLED:
        return True
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            file.seek(0)
            top = _json(file.read(8 + min(length, _MAX_HEADER)), path)
    except (OSError, CheckpointError):
        return False
    metadata = top.get("__metadata__")
    return not (isinstance(metadata, dict) and _KEY in metadata)


def _unreadable(error: OSError, path: Path, kind: str) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"there is no such {kind} file", where=str(path), next="advcli adv-train writes checkpoints under runs/")
    return CheckpointError(f"cannot read this {kind}: {error.strerror}", where=str(path))


def _check_kind(header: dict[str, Any], path: Path, kind: str) -> None:
    if header.get("kind") != kind:
        raise CheckpointError(f"this is a {header.get('kind')!r} file, not a {kind!r}", where=str(path))


def _header(data: bytes, path: Path, *, whole: bool = True) -> dict[str, Any]:
    top = _json(data, path)
    if whole:
        _table(data, path)
    try:
        sealed = json.loads(top["__metadata__"][_KEY])
        header = sealed["header"]
        if _digest_json(header) != sealed["header_sha256"]:
            raise CheckpointError("the file is damaged: its header does not match its SHA-256", where=str(path))
    except (KeyError, TypeError):
        hint = "advcli convert FILE makes a checkpoint of it that all commands read"
        raise CheckpointError(
            "a safetensors file, but not one that advcli wrote: it has no advcli header", where=str(path), next=hint
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError("the file is damaged: its header is not valid", where=str(path)) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise CheckpointError(
            f"written in format {found}, and this version reads format {FORMAT}", where=str(path), next="pip install --upgrade advcli"
        )
    return header


def _json(data: bytes, path: Path) -> dict[str, Any]:
    """The safetensors table of contents; CheckpointError, with a name for known foreign formats, where there is none."""
    foreign = next((name for magic, name in _FOREIGN.items() if data.startswith(magic)), None)
    length = int.from_bytes(data[:8], "little")
    # A pickle's first byte can also begin a safetensors length, so the table decides and the magic only names.
    if len(data) >= 8 and 2 <= length <= min(len(data) - 8, _MAX_HEADER):
        try:
            top = json.loads(data[8 : 8 + length])
            if isinstance(top, dict):
                return top
        except (ValueError, RecursionError):
            pass
    if foreign:
        raise CheckpointError(
            f"this is {foreign}; it was not opened, since loading one can run code",
            where=str(path),
            next="give a .safetensors file that advcli wrote",
        )
    raise CheckpointError("the file is damaged or truncated, or no safetensors file", where=str(path))


def _table(data: bytes, path: Path) -> tuple[Table, int]:
    """(table of tensors, where their bytes start), every offset inside the file and the whole file accounted for."""
    top = _json(data, path)
    start = 8 + int.from_bytes(data[:8], "little")
    table = {name: entry for name, entry in top.items() if name != "__metadata__"}
    try:
        spans = sorted((first, last) for first, last in (entry["data_offsets"] for entry in table.values()))
        well_formed = all(type(end) is int for span in spans for end in span)
        well_formed &= all(isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in table.values())
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("the file is damaged: its table of tensors is not valid", where=str(path)) from None
    ends = [0, *(last for _, last in spans)]
    if not well_formed or [first for first, _ in spans] != ends[:-1] or any(a > b for a, b in spans) or ends[-1] != len(data) - start:
        raise CheckpointError("the file is damaged or truncated: its tensors do not fill it", where=str(path))
    return table, start


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
