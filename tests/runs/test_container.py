"""The file format: equal content is equal bytes, no damage goes unseen, and nothing in a file is ever executed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advcli.errors import CheckpointError
from advcli.models import Architecture, build
from advcli.runs import checkpoint, container

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2], dtype=torch.int64), "c.x": torch.tensor([True, False])}
HEADER = {"name": "näme", "nested": {"list": [1, 2.5, None]}}


def small_checkpoint(path: Path) -> bytes:
    architecture = Architecture("small-cnn", 0.05, 3, 1, 8, (0.5,), (0.25,))
    checkpoint.write_network(path, build(architecture, seed=3), architecture, {"classes": ["a", "b", "c"], "threat": {}, "data": {}})
    return path.read_bytes()


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "f", TENSORS, HEADER, "state")
    tensors, header = checkpoint.read(tmp_path / "f", "state")
    assert {k: (v.dtype, v.tolist()) for k, v in tensors.items()} == {k: (v.dtype, v.tolist()) for k, v in TENSORS.items()}
    assert {key: header[key] for key in HEADER} == HEADER
    assert (header["kind"], header["format"]) == ("state", container.FORMAT)
    assert container.read_header(tmp_path / "f", "state") == header


def test_views_and_shared_memory_are_stored_as_plain_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    checkpoint.write(tmp_path / "f", {"t": base.T, "row": base[1], "same": base[1]}, {}, "state")
    tensors, _ = checkpoint.read(tmp_path / "f", "state")
    assert torch.equal(tensors["t"], base.T)
    assert torch.equal(tensors["row"], tensors["same"])


def test_equal_content_is_equal_bytes_in_any_order(tmp_path: Path) -> None:
    for name, order in (("a", 1), ("b", -1)):
        checkpoint.write(tmp_path / name, dict(list(TENSORS.items())[::order]), dict(list(HEADER.items())[::order]), "state")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_equal_content_is_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from advcli.runs.ledger import Ledger\n"
        "columns = {name: np.arange(5) for name in {'index', 'label', 'found_by', 'steps.a', 'steps.b'}}\n"
        "Ledger(Path(sys.argv[1])).write_shard(0, columns, {name: 1 for name in {'suite', 'bound', 'cost', 'classes'}})"
    )
    for seed in ("1", "2", "3"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert len({(tmp_path / seed / "shard-00000.safetensors").read_bytes() for seed in "123"}) == 1


@pytest.mark.parametrize(
    "change",
    [{"a": TENSORS["a"] + 1}, {"a": TENSORS["a"].view(torch.float64)}, {"b": TENSORS["b"].view(3, 2)}, {"d": torch.ones(1)}],
    ids=["value", "type", "shape", "name"],
)
def test_the_digest_sees_values_types_shapes_and_names(change: dict[str, torch.Tensor]) -> None:
    digests = {container.tensors_digest(checkpoint.save_tensors(tensors)) for tensors in (TENSORS, {**TENSORS, **change})}
    assert len(digests) == 2


DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("delete"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("truncate"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("swap"), st.floats(0, 1), st.integers(2, 64)),
)


def damaged(whole: bytes, kind: str, where: float, how: int, *, span: int) -> bytes:
    """whole with one wound in its first span bytes."""
    at = min(int(where * span), span - 1)
    before, after = whole[:at], whole[at:]
    return {
        "flip": before + bytes([after[0] ^ how]) + after[1:] if how else whole,
        "insert": before + bytes([how % 256]) + after,
        "delete": before + after[how:],
        "truncate": before,
        "swap": before + after[:how][::-1] + after[how:],
    }[kind]


@pytest.mark.parametrize("in_header", [True, False], ids=["anywhere in the header", "anywhere"])
def test_damage_is_found_whatever_and_wherever(tmp_path_factory: pytest.TempPathFactory, in_header: bool) -> None:
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    whole = small_checkpoint(path)
    loaded = checkpoint.load_network(path)
    start = 8 + int.from_bytes(whole[:8], "little")

    @settings(max_examples=300, deadline=None)
    @given(DAMAGE)
    def check(wound: tuple[str, float, int]) -> None:
        data = damaged(whole, *wound, span=start if in_header else len(whole))
        if data == whole:
            return
        path.write_bytes(data)
        try:
            again = checkpoint.load_network(path)
        except CheckpointError:
            return
        # A space of the JSON exchanged for a tab says the same thing, and 1.0 may be spelt 1e0: then nothing at all may differ.
        assert data[start:] == whole[start:]
        assert again.header == loaded.header
        assert again.architecture == loaded.architecture
        pairs = zip(again.network.state_dict().items(), loaded.network.state_dict().items(), strict=True)
        assert all(name == key and torch.equal(a, b) for (name, a), (key, b) in pairs)

    check()


def test_every_part_of_the_weights_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = small_checkpoint(path)
    for at in range(8 + int.from_bytes(whole[:8], "little"), len(whole), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="SHA-256"):
            container.read(path, "model")


def torch_file(path: Path) -> None:
    torch.save({"linear.weight": torch.ones(2)}, path)


def other_format(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "FORMAT", container.FORMAT + 1)
        small_checkpoint(path)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda p: None, "there is no such model"),
    "directory": (lambda p: p.mkdir(), "cannot read this model: Is a directory"),
    "empty": (lambda p: p.touch(), "damaged or truncated"),
    "text": (lambda p: p.write_text("epoch 1\n" * 50), "no safetensors file"),
    "torch.save": (torch_file, "a zip archive, as torch.save writes; it was not opened"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"weights": [1.0] * 99}, protocol=4)), "a Python pickle; it was not opened"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000)), "an HDF5 file; it was not opened"),
    "numpy": (lambda p: np.save(p.open("wb"), np.ones(99)), "no safetensors file"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x" * 999)), "no safetensors file"),
    "seven bytes": (lambda p: p.write_bytes(b"\x02" + bytes(6)), "damaged or truncated"),
    "endless table": (lambda p: p.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), "damaged or truncated"),
    "deep table": (lambda p: p.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000), "damaged or truncated"),
    "table of another kind": (lambda p: p.write_bytes((2).to_bytes(8, "little") + b"[]"), "damaged or truncated"),
    "foreign safetensors": (lambda p: safetensors.numpy.save_file({"w": np.ones(3)}, p), "no advcli header"),
    "foreign metadata": (lambda p: safetensors.numpy.save_file({"w": np.ones(3)}, p, metadata={"format": "pt"}), "no advcli header"),
    "wrong kind": (lambda p: checkpoint.write(p, TENSORS, {}, "state"), "a 'state' file, not a 'model'"),
    "other format": (other_format, f"written in format {container.FORMAT + 1}, and this version reads format {container.FORMAT}"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    make, reason = FOREIGN[name]
    path = tmp_path / "model.safetensors"
    make(path)
    for load in (checkpoint.load_network, lambda p: container.read_header(p, "model")):
        with pytest.raises(CheckpointError) as raised:
            load(path)
        assert raised.value.exit_code == 3
        assert raised.value.where == str(path)
    with pytest.raises(CheckpointError) as raised:
        checkpoint.load_network(path)
    assert reason in raised.value.what


class Bomb:
    """Whoever unpickles it makes the directory target."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("by_torch", [False, True], ids=["pickle", "torch.save"])
def test_a_pickle_is_never_executed(tmp_path: Path, protocol: int, by_torch: bool) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "executed"
    if by_torch:
        torch.save({"state_dict": Bomb(marker)}, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker), protocol=protocol))
    for load in (checkpoint.load_network, lambda p: checkpoint.read(p, "state"), lambda p: container.read_header(p, "ledger")):
        with pytest.raises(CheckpointError):
            load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if by_torch else pickle.loads(path.read_bytes())
    assert marker.exists()  # the file would have done it


def forge(path: Path, table: dict[str, Any], body: bytes, digest: str | None = None) -> None:
    """A file with that table and a seal that fits as far as a seal can."""

    def layout(seal: dict[str, str]) -> bytes:
        text = json.dumps({"__metadata__": seal, **table}).encode()
        return len(text).to_bytes(8, "little") + text + body

    if digest is None:
        digest = container.tensors_digest(layout({}))
    path.write_bytes(layout(container.seal({}, "state", digest)))


def entry(offsets: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE: dict[str, dict[str, Any]] = {
    "past the end": {"w": entry([0, 400])},
    "before the start": {"w": entry([-4, 4])},
    "backwards": {"w": entry([4, 0])},
    "overlap": {"w": entry([0, 4]), "v": entry([0, 4])},
    "hole": {"w": entry([1, 4])},
    "short": {"w": entry([0, 3])},
    "fractions": {"w": entry([0.0, 4.0])},
    "text": {"w": entry(["0", "4"])},
    "truth values": {"w": entry([False, 4])},
    "infinity": {"w": entry([0, float("inf")])},
    "not a number": {"w": entry([0, float("nan")])},
    "one offset": {"w": entry([4])},
    "no offsets": {"w": {"dtype": "F32", "shape": [1]}},
    "no entry": {"w": 7},
    "shape of text": {"w": entry([0, 4], "1")},
    "type of number": {"w": entry([0, 4], dtype=32)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_are_refused(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "f", HOSTILE[name], bytes(4), digest="0" * 64)
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "f", "state")


SEALED = {
    "shape of more bytes": entry([0, 4], [2]),
    "negative shape": entry([0, 4], [-1]),
    "huge shape": entry([0, 4], [2**62, 8]),
    "fractional shape": entry([0, 4], [1.0]),
    "nested shape": entry([0, 4], [[1]]),
    "unknown type": entry([0, 4], dtype="F99"),
}


@pytest.mark.parametrize("name", SEALED)
def test_nonsense_with_a_valid_seal_is_refused_all_the_same(tmp_path: Path, name: str) -> None:
    forge(tmp_path / "f", {"w": SEALED[name]}, bytes(4))
    with pytest.raises(CheckpointError):
        checkpoint.read(tmp_path / "f", "state")


def test_a_forged_file_that_is_whole_is_read(tmp_path: Path) -> None:
    forge(tmp_path / "f", {"w": entry([0, 4], [1])}, np.float32(7).tobytes())
    assert checkpoint.read(tmp_path / "f", "state")[0]["w"].tolist() == [7.0]


def test_an_exchanged_header_is_found_by_both_readers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_checkpoint(path)
    header = container.read_header(path, "model")
    whole = path.read_bytes()
    assert header["versions"]["python"].encode() in whole
    path.write_bytes(whole.replace(b'\\"num_classes\\": 3', b'\\"num_classes\\": 4'))
    for load in (checkpoint.load_network, lambda p: container.read_header(p, "model")):
        with pytest.raises(CheckpointError, match="header does not match its SHA-256"):
            load(path)


def test_the_header_alone_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = small_checkpoint(path)
    header = container.read_header(path, "model")
    path.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])
    assert container.read_header(path, "model") == header
    with pytest.raises(CheckpointError, match="truncated"):
        container.read(path, "model")


def test_the_tensors_digest_is_the_documented_one() -> None:
    expected = hashlib.sha256()
    for name, dtype, shape in (("a", "I64", [2]), ("b", "F32", [2, 3]), ("c.x", "BOOL", [2])):
        expected.update(json.dumps([name, dtype, shape]).encode())
        expected.update(TENSORS[name].numpy().tobytes())
    assert container.tensors_digest(checkpoint.save_tensors(TENSORS)) == expected.hexdigest()
