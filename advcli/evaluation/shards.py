"""From judged attempts to shards of a ledger, and from shards to the whole table."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from advcli.attacks.pool import Attempt
from advcli.attacks.state import SPARING
from advcli.gates.whole import processes
from advcli.runs.ledger import Arrays, Ledger
from advcli.training import distributed


class ShardWriter:
    """Finished examples of one attack, written whenever `size` of them have come together.

    index (n,): the examples' names by position. alive (n,) bool: those that no earlier attack broke, whose adversarial
    image is kept.
    """

    def __init__(self, ledger: Ledger, index: Tensor, alive: Tensor, *, attack: str, digest: str, size: int) -> None:
        self.ledger, self.index, self.alive = ledger, index, alive
        self.header = {"digest": digest, "entry": attack}
        self.size = size
        self.parts: list[Arrays] = []
        self.clock = time.monotonic()

    def add(self, rows: Tensor, attempt: Attempt) -> None:
        """rows (M,): positions of the examples that the attempt closes, in its order."""
        final, found = attempt.final, attempt.found
        index, broken = self.index[rows], found.broken[final]
        kept = broken & self.alive[rows]
        values = {"index": index, "broken": broken, "margin": found.margins[final], "steps": found.steps[final], "run": attempt.runs[final]}
        values |= {name: count[final] for name, count in attempt.sparing.items()}
        values |= {"forwards": attempt.forwards[final], "backwards": attempt.backwards[final], "judged": attempt.judged[final]}
        values |= {"adversarial": found.x_adv[final][kept], "adversarial_index": index[kept]}
        self.parts.append({key: value.cpu().numpy() for key, value in values.items()})
        if sum(len(part["index"]) for part in self.parts) >= self.size:
            self.write()

    def write(self) -> None:
        """Write what has come together; nothing where nothing has."""
        parts, self.parts = [part for part in self.parts if len(part["index"])], []
        if parts:
            now = time.monotonic()
            arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            number = max(self.ledger.shards(), default=-1) + 1
            number += (distributed.rank() - number) % processes()  # no other process has this remainder
            self.ledger.write_shard(number, arrays, {**self.header, **self._clock(now)})
            self.clock = now

    def _clock(self, now: float) -> dict[str, float]:
        return {"seconds": now - self.clock, "rank": distributed.rank(), "processes": processes()}


def stored(ledger: Ledger, attacks: Sequence[str], mine: Container[int]) -> dict[str, dict[int, bool]]:
    """For each attack, the names of examples among mine that shards already hold, and whether it broke them."""
    known: dict[str, dict[int, bool]] = {name: {} for name in attacks}
    for number in ledger.shards():
        arrays, header = ledger.read_shard(number)
        pairs = zip(arrays["index"].tolist(), arrays["broken"].tolist(), strict=True)
        known[header["entry"]] |= {name: broken for name, broken in pairs if name in mine}
    return known


def join(ledger: Ledger, table: Arrays, attacks: Mapping[str, bool], shape: Sequence[int], *, judged: bool) -> tuple[Arrays, float]:
    """(the whole table, seconds spent) from all shards.

    table: index, label and clean_margin of every example, in ascending order of index; attacks: their names, and whether they spare;
    shape (C, H, W) of an image. judged: with the numbers of times that the judge was asked.
    """
    shards = [ledger.read_shard(number) for number in ledger.shards()]
    n, place = len(table["index"]), {name: row for row, name in enumerate(table["index"].tolist())}
    whole = {**table, "found_by": np.full(n, -1)}
    adversarial: dict[int, Any] = {}
    for position, (attack, spares) in enumerate(attacks.items()):
        columns = _untouched(n, judged=judged, spares=spares)
        for arrays, header in shards:
            if header["entry"] == attack:
                rows = np.array([place[name] for name in arrays["index"].tolist()], np.int64)
                for key, column in columns.items():
                    column[rows] = arrays[key]
                adversarial |= dict(zip(arrays["adversarial_index"].tolist(), arrays["adversarial"], strict=True))
        whole |= {f"{key}.{attack}": column for key, column in columns.items()}
        whole["found_by"] = np.where((whole["found_by"] < 0) & columns["broken"], position, whole["found_by"])
    names = sorted(adversarial)
    whole["adversarial_index"] = np.array(names, np.int64)
    whole["adversarial"] = np.stack([adversarial[name] for name in names]) if names else np.zeros((0, *shape), np.float32)
    return whole, _passed([header for _, header in shards])


def _passed(headers: Sequence[dict[str, Any]]) -> float:
    """Seconds of the slowest process; of each number of processes, where an evaluation went on with another one."""
    spent: dict[int, dict[int, float]] = {}
    for header in headers:
        of, rank = spent.setdefault(header.get("processes", 1), {}), header.get("rank", 0)
        of[rank] = of.get(rank, 0.0) + header["seconds"]
    return sum(max(of.values()) for of in spent.values())


def _untouched(n: int, *, judged: bool, spares: bool) -> Arrays:
    """An attack's columns for examples that it was not run on."""
    counts = ("forwards", "backwards", *(("judged",) if judged else ()), *(SPARING if spares else ()))
    numbers = {"steps": np.full(n, -1), "run": np.full(n, -1), **{name: np.zeros(n, np.int64) for name in counts}}
    return {"broken": np.zeros(n, bool), "margin": np.full(n, np.nan, np.float32), **numbers}
