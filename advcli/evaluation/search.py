"""How searches compute: settled once by measuring speed and agreement, written down, and reused for as long as an evaluation lasts.

Verdicts are the judge's alone, in float32. What a fast search could do is miss; so it must agree with float32 on a probe, it
asks the judge wherever its margin is within its measured error of zero, and a part of its work is repeated in float32 (the audit).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from advcli.errors import CheckpointError, ResourceError, first_line
from advcli.evaluation.entries import Entry
from advcli.models import CompiledForward, FastCopy, HeadView, Network, head_of
from advcli.runs import atomic

Follower = Network | HeadView | CompiledForward
"""What a search follows."""

Asked = Literal["auto", "fp32", "folded", "compiled", "bf16"]
"""`fp32`: the network as it is. `folded`: float32 with batch norm folded, channels last. `compiled`: that, and as one compiled graph
for attacks that ask for no gradient, whose many forwards pay for the compiler. `bf16`: folded in bfloat16. `auto`: measure."""

COMPILED: Final = "compiled"

SHORT = 1000
"""Passes an image below which `auto` does not look: the probe would cost what it saves."""

_SIGNS = 0.95  # share of gradient signs that must agree
_SPREAD = 0.05  # largest bound on the margin's error, in standard deviations of the margin
_ROUNDING = 1e-4  # the same of what must be float32: its rounding gives 1e-6, TF32's 1e-3, bfloat16's 1e-2
_AUDIT = (0.04, 256)  # share of the suite's passes that the audit may take, and images at most
_FILE = "search.json"


@dataclass(frozen=True)
class Agreement:
    """bound: twice the 99.9 % quantile of the margin's error, in logits. spread: standard deviation of the margins. signs: share
    of the pixels' cross-entropy gradients that have float32's sign; None where no gradient is followed."""

    bound: float
    spread: float
    signs: float | None

    @property
    def holds(self) -> bool:
        if self.signs is None:
            return self.bound <= _ROUNDING * self.spread
        return self.signs >= _SIGNS and self.bound <= _SPREAD * self.spread


@dataclass(frozen=True)
class Search:
    """What was settled. agreements: of each fast copy that is followed, by its precision; seconds: a forward and a backward, if timed."""

    asked: str
    precision: str
    agreements: dict[str, Agreement]
    seconds: dict[str, float]

    def error(self, precision: str) -> float:
        return self.agreements[precision].bound if precision in self.agreements else 0.0

    def precision_of(self, entry: Entry) -> str:
        """What an attack's surrogate computes in: the audit's and reference attacks' in float32, and nobody's below what it needs."""
        if entry.audits is not None or self.precision == "fp32":
            return "fp32"
        if COMPILED in self.agreements and asks_forwards(entry):
            return COMPILED
        return "folded" if getattr(entry.attack, "needs_float32", False) else self.precision

    @property
    def is_fast(self) -> bool:
        return self.precision != "fp32"

    def header(self) -> dict[str, Any]:
        """For receipts: without the clock, which is different every time."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


def asks_forwards(entry: Entry) -> bool:
    """Whether an attack asks a network as it is for its answers and nothing else."""
    return not getattr(entry.attack, "follows_gradient", True) and entry.view is None and entry.surrogate == "view" and entry.source is None


def followed(network: Network, head: str, precision: str) -> Follower:
    """The network's head as searches see it in that precision."""
    if precision == COMPILED:
        return CompiledForward(head_of(FastCopy(network, "folded").network, head))
    return head_of(network if precision == "fp32" else FastCopy(network, precision).network, head)  # type: ignore[arg-type]


@contextmanager
def compiling() -> Iterator[None]:
    """A compiler has many ways to fail: whatever is raised inside becomes a ResourceError of one line."""
    try:
        yield
    except Exception as error:
        what = f"forwards are not compiled: {first_line(error)}"
        raise ResourceError(what, next="advcli doctor looks for a compiler; --search-precision folded does without") from error


def settle(asked: str, folder: Path, probe: Callable[[], Search], *, begun: bool) -> Search:
    """The stored decision, else the probe's, which is then stored. begun: attacks have run, so that there must be a stored one."""
    path = folder / _FILE
    if path.is_file() or begun:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            agreements = {key: Agreement(**value) for key, value in stored["agreements"].items()}
            return Search(asked, str(stored["precision"]), agreements, dict(stored["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            next = "name another folder with --out"
            raise CheckpointError("the record of how attacks searched here is missing or damaged", where=str(path), next=next) from None
    search = probe()
    atomic.write_json(path, asdict(search))
    return search


def audit(entries: tuple[Entry, ...], n: int) -> Entry:
    """The suite's first attack again on some of the n images, with the same draws, followed in float32."""
    first, share = entries[0], _AUDIT[0]
    total = sum(entry.attack.passes for entry in entries)
    sample = max(1, min(_AUDIT[1], n, int(n * share * total / first.attack.passes)))
    about = f"{first.about}, searched in float32: the audit of {first.name}"
    return replace(first, name="audit", about=about, on="survivors", readings=None, audits=first.name, sample=sample)
