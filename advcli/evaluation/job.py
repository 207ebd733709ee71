"""What is to be evaluated, and what names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from advcli.attacks import Threat
from advcli.data import Split, stratified_order
from advcli.data.images import pieces
from advcli.evaluation.suites import PROTOCOL
from advcli.recipe.number import parse_number
from advcli.runs.checkpoint import Loaded


class Watcher(Protocol):
    """Whoever shows progress. planned: what it costs if nothing breaks.

    spent and left are work done by this process and still to come, in seconds as they passed at the start.
    """

    def planned(self, attacks: int, passes: int, seconds: float) -> None: ...
    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...
    def advanced(self, done: int, spent: float, left: float) -> None: ...
    def noted(self, text: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """What is evaluated. eps_text: eps as typed. images: the split, already cut to the n that are wanted, in ascending order."""

    loaded: Loaded
    images: Split
    threat: Threat
    eps_text: str
    suite: str
    engine: str
    seed: int
    chunk: int
    data: dict[str, Any] = field(default_factory=dict)  # the recipe's data part that the images come from, and which split
    split: str = "test"
    head: str = "final"  # which decision is judged and attacked
    sources: tuple[Loaded, ...] = ()  # other networks that attacks are crafted on
    search: str = "fp32"  # how attacks search, as asked for; judged is in float32

    @property
    def gated(self) -> bool:
        """Whether what is judged passes gates that close."""
        network = self.loaded.network
        return network.gated if self.head == "final" else self.head != "open" and network.gated_before(int(self.head.removeprefix("aux:")))

    @property
    def aux_weight(self) -> float:
        """Weight of the auxiliary heads' mean loss in training, at which joint losses attack; 1 where the checkpoint tells none."""
        objective = self.loaded.header.get("objective")
        return float(parse_number(objective.get("aux_weight", 1))) if isinstance(objective, dict) else 1.0

    def identity(self) -> dict[str, Any]:
        """Everything that decides a verdict; its digest names the evaluation."""
        parts = {
            "tensors_sha256": self.loaded.header["tensors_sha256"],
            "architecture": self.loaded.architecture.to_json(),
            "images_sha256": images_digest(self.images),
            "threat": asdict(self.threat),
            "suite": self.suite,
            "engine": self.engine,
            "head": self.head,
            "protocol": PROTOCOL,
            "seed": self.seed,
            "chunk": self.chunk,
            "precision": "fp32",
        }
        if self.loaded.network.gate_sites:
            parts["aux_weight"] = self.aux_weight
        parts |= {"search": self.search} if self.search != "fp32" else {}
        parts |= {"sources": [source.header["tensors_sha256"] for source in self.sources]} if self.sources else {}
        parts = json.loads(json.dumps(parts))
        return {**parts, "digest": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}


def images_digest(split: Split) -> str:
    """SHA-256 of images, labels and indices."""
    content = hashlib.sha256()
    for tensor in (*(split.images[piece] for piece in pieces(split.images)), split.labels, split.index):
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def pick(split: Split, n: int | None, seed: int) -> Split:
    """A seeded, stratified part of n images in ascending order; the whole split for None."""
    if n is None or n >= len(split):
        return split
    return split.take(stratified_order(split.labels, seed, "attack/order")[:n].sort().values)
