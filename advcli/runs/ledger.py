"""Ledgers: verdicts and adversarial examples, one row an example. Immutable shards while an evaluation runs, one file at its end.

Columns of the final file (first axis: examples, in ascending order of `index`): index, label int64; clean_margin float32;
found_by int64, the position of the attack whose example is kept, -1 none; and for each attack `broken.NAME` bool, `steps.NAME`
int64 (-1: not found), `run.NAME` int64 (restart or target number, -1: not attacked), `margin.NAME` float32 (NaN: not attacked),
`forwards.NAME` and `backwards.NAME` int64; where searches were fast also `judged.NAME` int64, the judge's part of the forwards;
of attacks that leave out what is foreseen to come to nothing also int64 `spared.NAME` (passes), `sampled.NAME` (runs walked on all the
same), `mistaken.NAME` (those that broke their image), `queries_sampled.NAME` and `queries_mistaken.NAME` (the same of single queries);
the margin of a run that was given up is that of the point at which it was, of FAB mostly the image itself.
adversarial float32 (M, C, H, W) holds the kept examples, in the order of adversarial_index (M,), and clean uint8 (M, C, H, W) the
images they were made from, so that a report needs no data set. `probe.NAME` int8: a pair of outcomes weak + 2 * strong of a probe
for masked gradients, -1 for images not probed. A shard has the columns of one attack, without the name, and no clean images.
Reading needs numpy alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from advcli.errors import CheckpointError
from advcli.runs import atomic, container

Arrays = dict[str, NDArray[Any]]
_SHARD = re.compile(r"shard-(\d{5,})\.safetensors")
_FINAL = "ledger.safetensors"
_PROBES = "probes.safetensors"


class Ledger:
    """The ledger in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def complete(self) -> bool:
        return (self.directory / _FINAL).is_file()

    def shards(self) -> dict[int, Path]:
        """Number to file of the shards written so far."""
        found = {int(match[1]): path for path in self.directory.glob("shard-*.safetensors") if (match := _SHARD.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def write_shard(self, number: int, arrays: Arrays, header: dict[str, Any]) -> None:
        atomic.make_folder(self.directory)
        _write(self.directory / f"shard-{number:05d}.safetensors", arrays, header)

    def read_shard(self, number: int) -> tuple[Arrays, dict[str, Any]]:
        return _read(self.directory / f"shard-{number:05d}.safetensors")

    def write_probes(self, columns: Arrays) -> None:
        """What was measured before any attack, a column (n,) each; kept until the whole is written."""
        atomic.make_folder(self.directory)
        _write(self.directory / _PROBES, columns, {})

    def probes(self) -> Arrays | None:
        path = self.directory / _PROBES
        return _read(path)[0] if path.is_file() else None

    def finish(self, arrays: Arrays, header: dict[str, Any]) -> None:
        """Write the whole; only then are the shards removed."""
        atomic.make_folder(self.directory)
        _write(self.directory / _FINAL, arrays, header)
        for path in (*self.shards().values(), self.directory / _PROBES):
            path.unlink(missing_ok=True)

    def read(self) -> tuple[Arrays, dict[str, Any]]:
        return _read(self.directory / _FINAL)


def _write(path: Path, arrays: Arrays, header: dict[str, Any]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    digest = container.tensors_digest(save_arrays(whole))
    atomic.write_bytes(path, save_arrays(whole, metadata=container.seal(json.loads(json.dumps(header)), "ledger", digest)))


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    header, data = container.read(path, "ledger")
    try:
        return load_arrays(data), header
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the file is damaged: {error}", where=str(path)) from None
