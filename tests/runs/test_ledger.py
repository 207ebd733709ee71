"""Ledgers: shards until the end, one sorted file after it, and no damage unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcli.errors import CheckpointError
from advcli.runs.ledger import Arrays, Ledger


def table(index: list[int]) -> Arrays:
    """A ledger whose every value follows from the example's name; every third example is broken."""
    rows = np.array(index, dtype=np.int64)
    kept = rows[rows % 3 == 0]
    return {
        "index": rows,
        "label": rows % 10,
        "clean_margin": (-rows / 7).astype(np.float32),
        "broken.a": rows % 3 == 0,
        "steps.a": np.where(rows % 3 == 0, 4, -1),
        "margin.a": np.where(rows % 3 == 0, 1.5, np.nan).astype(np.float32),
        "found_by": np.where(rows % 3 == 0, 0, -1),
        "adversarial": (kept[:, None, None, None] + np.zeros((1, 1, 2, 2))).astype(np.float32),
        "adversarial_index": kept,
    }


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def test_a_shard_comes_back_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.write_shard(3, table([5, 2, 9]), {"digest": "d", "seconds": 1.25})
    arrays, header = ledger.read_shard(3)
    assert same(arrays, table([5, 2, 9]))
    assert (header["digest"], header["seconds"]) == ("d", 1.25)


def test_shards_are_listed_by_number_and_strangers_are_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in (12, 0, 3):
        ledger.write_shard(number, table([number]), {})
    for stranger in (".shard-00001.safetensors.9.partial", "shard-1.safetensors", "shard-00005.safetensors.bak", "shard-0011.safetensors"):
        (tmp_path / stranger).write_bytes(b"half")
    assert list(ledger.shards()) == [0, 3, 12]
    assert not ledger.complete


def test_finish_writes_the_whole_and_then_removes_the_shards(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_shard(0, table([1]), {})
    ledger.finish(table([1, 2]), {"suite": "s"})
    assert ledger.complete
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.safetensors"]
    assert same(ledger.read()[0], table([1, 2]))


def test_a_stop_in_the_middle_of_finish_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    for number in (0, 1):
        ledger.write_shard(number, table([number]), {})

    def stop(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        ledger.finish(table([0, 1]), {})
    assert same(ledger.read()[0], table([0, 1]))


def test_equal_content_is_equal_bytes_in_any_order_of_columns(tmp_path: Path) -> None:
    arrays = table([1, 2, 3])
    header = {"n": 3, "suite": "s"}
    for number, order in enumerate((1, -1)):
        Ledger(tmp_path).write_shard(number, dict(list(arrays.items())[::order]), dict(list(header.items())[::order]))
    a, b = (path.read_bytes() for path in Ledger(tmp_path).shards().values())
    assert a == b


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_byte_of_a_verdict_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    ledger.finish(table(list(range(12))), {})
    (path,) = ledger.directory.iterdir()
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    position = data.draw(st.integers(start, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="SHA-256"):
        ledger.read()


def test_an_absent_shard_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such ledger"):
        Ledger(tmp_path).read_shard(0)
