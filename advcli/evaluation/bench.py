"""How fast attacks are beside the packages that others use: the same network and images, taking turns, in one process.

`shipped`: both as a user gets them, ours with its probed search and leaving early, theirs with the network as it was loaded.
`folded`: the same with ours searching in float32, batch norm folded. `fp32`: both in eager float32 on the network as it is, whose
weights need no gradient, and PGD with all its steps on all images; only that isolates what the code saves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advcli.attacks import Judge, Pgd, Surrogate
from advcli.attacks.losses import attack_loss
from advcli.data import to_float
from advcli.draws import Draws
from advcli.errors import UsageError
from advcli.evaluation.engine import evaluate
from advcli.evaluation.job import Job
from advcli.measures import quartiles
from advcli.models import frozen
from advcli.runs.checkpoint import versions
from advcli.training.machine import hardware
from advcli.training.turns import Seconds, by_turns

Numerics = Literal["shipped", "folded", "fp32"]
BOTH: tuple[Numerics, ...] = ("shipped", "fp32")
ATTACKS = ("aa", "fast", "pgd-20")
PEERS = ("pyautoattack", "torchattacks", "foolbox")
_STEPS = 20
_THEIR_BATCH = 250  # pyautoattack's default


@dataclass(frozen=True)
class Match:
    """One row: an attack of ours beside a peer's. ours, theirs: which runs are compared, by name."""

    attack: str
    peer: str
    numerics: Numerics
    ours: str
    theirs: str


Runs = dict[str, Callable[[], float]]
"""By name, what attacks and returns the share of images that are still classified right."""


def run(job: Job, attacks: Sequence[str], rounds: int, device: torch.device, watch: Callable[[str], None]) -> dict[str, Any]:
    """job: of suite aa, with the search that `auto` comes to. watch is told what runs next."""
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown:
        raise UsageError(f"there is no benchmark {unknown[0]!r}", where="--only", next=f"there are {', '.join(ATTACKS)}")
    job.loaded.network.to(device).eval()
    installed = [peer for peer in PEERS if util.find_spec(peer) is not None]
    matches = [match for match in _matches() if match.attack in attacks and match.peer in installed]
    runs = _runs(job, device)
    seconds, robust = by_turns({name: runs[name] for match in matches for name in (match.ours, match.theirs)}, rounds, watch)
    return {
        "checkpoint": str(job.loaded.path),
        "threat": {"norm": job.threat.norm, "eps": job.eps_text},
        "n": len(job.images),
        "batch_size": job.chunk,
        "search": job.search,
        "rounds": rounds,
        "rows": [_row(match, seconds, robust) for match in matches],
        "missing": [peer for peer in PEERS if peer not in installed],
        "versions": {**versions(), **{peer: metadata.version(peer) for peer in installed}},
        "hardware": hardware(device),
    }


def _row(match: Match, seconds: Seconds, robust: dict[str, list[float]]) -> dict[str, Any]:
    """ratio: theirs over ours, round by round."""
    ours, theirs = (np.array(seconds[name]) for name in (match.ours, match.theirs))
    times = {"ours": quartiles(ours), "theirs": quartiles(theirs), "ratio": quartiles(theirs / ours)}
    rates = {"ours": float(np.median(robust[match.ours])), "theirs": float(np.median(robust[match.theirs]))}
    return {"attack": match.attack, "peer": match.peer, "numerics": match.numerics, **times, "robust": rates}


def _matches() -> list[Match]:
    theirs = "pyautoattack, shipped"
    rows = [
        Match("aa", "pyautoattack", "shipped", "aa, shipped", theirs),
        Match("aa", "pyautoattack", "folded", "aa, folded", theirs),
        Match("aa", "pyautoattack", "fp32", "aa, fp32", "pyautoattack, fp32"),
        Match("fast", "pyautoattack", "shipped", "fast, shipped", theirs),
    ]
    pgd = ("torchattacks", "foolbox")
    return rows + [Match("pgd-20", peer, numerics, f"pgd-20, {numerics}", f"{peer}, {numerics}") for peer in pgd for numerics in BOTH]


def _runs(job: Job, device: torch.device) -> Runs:
    runs: Runs = {
        "aa, shipped": partial(_suite, job, device),
        "aa, folded": partial(_suite, replace(job, search="folded"), device),
        "aa, fp32": partial(_suite, replace(job, search="fp32"), device),
        "fast, shipped": partial(_suite, replace(job, suite="fast"), device),
    }
    for numerics in BOTH:
        same = numerics == "fp32"
        runs |= {f"pyautoattack, {numerics}": partial(_autoattack, job, same), f"pgd-20, {numerics}": partial(_pgd, job, same)}
        runs |= {f"torchattacks, {numerics}": partial(_peer, job, _torchattacks, same)}
        runs |= {f"foolbox, {numerics}": partial(_peer, job, _foolbox, same)}
    return runs


class _Silent:
    def planned(self, attacks: int, passes: int, seconds: float) -> None: ...
    def started(self, done: int, total: int) -> None: ...
    def attacking(self, name: str, survivors: int, of: int) -> None: ...
    def advanced(self, done: int, spent: float, left: float) -> None: ...
    def noted(self, text: str) -> None: ...


def _suite(job: Job, device: torch.device) -> float:
    """A whole evaluation, its checks, probe, ledger and report included."""
    with tempfile.TemporaryDirectory() as folder:
        return float(evaluate(job, Path(folder) / "run", _Silent(), device=device, resume=False)[1]["robust"])


def _autoattack(job: Job, same: bool) -> float:
    from pyautoattack import AutoAttack

    network, images = job.loaded.network, job.images
    x, y = to_float(images.images[:]).to(network.mean), images.labels.to(network.mean.device)
    with _prepared(job, same):
        norm = {"linf": "Linf", "l2": "L2"}[job.threat.norm]
        attack = AutoAttack(network, norm=norm, eps=job.threat.eps, version="standard", seed=job.seed, device=x.device)
        attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = min(9, network.num_classes - 1)
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=_THEIR_BATCH)
        return _accuracy(job, x_adv, y)


@contextmanager
def _prepared(job: Job, same: bool) -> Iterator[None]:
    """The network as it was loaded, or with weights that need no gradient."""
    with frozen(job.loaded.network) if same else nullcontext():
        yield


def _accuracy(job: Job, x_adv: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right = [
            (job.loaded.network(a).argmax(1) == b) for a, b in zip(torch.split(x_adv, job.chunk), torch.split(y, job.chunk), strict=True)
        ]
    return float(torch.cat(right).double().mean())


def _pgd(job: Job, same: bool) -> float:
    """Ours: what is wrong already is not attacked and what breaks leaves, but for `same`."""
    network, threat = job.loaded.network, job.threat
    x, y = to_float(job.images.images[:]).to(network.mean), job.images.labels.to(network.mean.device)
    attack = Pgd(threat, attack_loss("ce"), steps=_STEPS, step_size=threat.eps / 4, early=not same)
    with frozen(network):
        judge = Judge(network, chunk=job.chunk)
        todo = torch.arange(len(y), device=y.device) if same else torch.nonzero(~judge.decide(x, y))[:, 0]
        draws = Draws(job.seed, job.images.index.to(y.device)[todo], "bench/pgd")
        found = attack(Surrogate(network.trace), judge, x[todo], y[todo], draws, {})
        return float((~found.broken).sum()) / len(y)


def _peer(job: Job, attack: Callable[[Job, Tensor, Tensor], Tensor], same: bool) -> float:
    network = job.loaded.network
    x, y = to_float(job.images.images[:]).to(network.mean), job.images.labels.to(network.mean.device)
    with _prepared(job, same):
        rows = zip(torch.split(x, job.chunk), torch.split(y, job.chunk), strict=True)
        return _accuracy(job, torch.cat([attack(job, a, b) for a, b in rows]), y)


def _torchattacks(job: Job, x: Tensor, y: Tensor) -> Tensor:
    import torchattacks

    network, eps = job.loaded.network, job.threat.eps
    if job.threat.norm == "linf":
        attack = torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=_STEPS, random_start=True)
    else:
        attack = torchattacks.PGDL2(network, eps=eps, alpha=eps / 4, steps=_STEPS, random_start=True)
    result: Tensor = attack(x, y)
    return result


def _foolbox(job: Job, x: Tensor, y: Tensor) -> Tensor:
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[job.threat.norm]
    attack = kind(abs_stepsize=job.threat.eps / 4, steps=_STEPS, random_start=True)
    model = foolbox.PyTorchModel(job.loaded.network, bounds=job.threat.bounds, device=x.device)
    result: Tensor = attack(model, x, y, epsilons=job.threat.eps)[1]
    return result
