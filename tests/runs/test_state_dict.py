"""Files of others: nothing in them is executed, and whatever is wrong with them is said as what it is."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advcli.errors import CheckpointError
from advcli.runs import state_dict


class Bomb:
    """Makes a folder in the working directory when unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def zipped(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": Bomb()}, path)


def legacy(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": Bomb()}, path, _use_new_zipfile_serialization=False)


def bare(protocol: int) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(pickle.dumps(Bomb(), protocol))


def hidden(path: Path) -> None:
    """The call stands before a frame that torch's restricted unpickler does not know."""
    path.write_bytes(b"cposix\nsystem\n(S'mkdir executed'\ntR.")


BOMBS = {"zip": zipped, "legacy": legacy, "protocol 0": bare(0), "protocol 2": bare(2), "protocol 5": bare(5), "by hand": hidden}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_a_file_that_would_run_code_is_refused_by_the_name_of_what_it_tried(
    name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bomb.{ending}"
    BOMBS[name](path)
    with pytest.raises(CheckpointError, match=rf"would run code of its own.*{'system' if name == 'by hand' else 'posix.mkdir'}") as refused:
        state_dict.read(path)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "executed").exists()


def test_the_bombs_are_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "executed").is_dir()


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))


def scripted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", b"\x80\x02).")
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/version", b"3\n")


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "there is no such file"),
    "empty": (lambda p: p.write_bytes(b""), "damaged"),
    "text": (lambda p: p.write_text("weights"), "damaged"),
    "tar": (tarred, "damaged|tar"),
    "an empty zip": (lambda p: zipfile.ZipFile(p, "w").close(), "damaged"),
    "TorchScript": (scripted, "damaged"),
    "a number": (lambda p: torch.save(3, p), "no state dict in this file: it holds a int"),
    "a list": (lambda p: torch.save([torch.zeros(1)], p), "holds a list"),
    "no tensors": (lambda p: torch.save({"epoch": 1, "lr": 0.1}, p), "holds a dict of epoch, lr"),
    "nested without end": (lambda p: torch.save({"model": {"model": {"model": {"model": {"model": {}}}}}}, p), "no state dict"),
    "sparse": (lambda p: torch.save({"weight": torch.eye(2).to_sparse()}, p), "sparse, quantized or complex.*weight"),
    "complex": (lambda p: torch.save({"weight": torch.zeros(2, dtype=torch.complex64)}, p), "complex"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unfit_file_is_refused(name: str, tmp_path: Path) -> None:
    make, says = DAMAGED[name]
    make(tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=says):
        state_dict.read(tmp_path / "theirs.pt")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_cut_and_flipped_bytes_end_in_a_refusal_or_in_tensors(tmp_path: Path, data: st.DataObject) -> None:
    """Also in the old format, which has no sums: whatever the unpickler raises comes out as one error."""
    whole = io.BytesIO()
    torch.save({"weight": torch.arange(4.0)}, whole, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(whole.getvalue()[: data.draw(st.integers(0, len(whole.getvalue())))])
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "theirs.pt"
    path.write_bytes(bytes(content))
    try:
        found, _ = state_dict.read(path)
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@pytest.mark.parametrize("size", [0, 7, 40])
def test_damaged_safetensors_are_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b"{" * size)
    with pytest.raises(CheckpointError, match="damaged"):
        state_dict.read(path)
