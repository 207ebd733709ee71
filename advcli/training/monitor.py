"""Clean and PGD accuracy of the deployed decision on a fixed set of images, for logs and model selection."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from advcli.attacks import Judge, Pgd, Surrogate, Threat
from advcli.attacks.losses import attack_loss
from advcli.data import Batch, Split
from advcli.data.batches import chunks
from advcli.draws import Draws
from advcli.gates.whole import processes
from advcli.models import Network, frozen
from advcli.training import distributed
from advcli.training.compilation import called_plainly
from advcli.training.device import computing

_CHUNKS = {"cpu": 128, "cuda": 250}  # by device: smaller ones are slower, and larger ones leave other processes idle


class StoppedError(Exception):
    """A stop was asked for in mid-measurement."""


def heads(model: Network, batch: Batch) -> dict[str, Tensor]:
    """Of each gate of the deployed network (N,): `aux0`, whether its own decision is right, and `agree0`, whether it is the network's."""
    if not model.gate_sites:
        return {}
    output = model.trace(batch.images)
    named = {f"aux{number}": aux.argmax(1) for number, aux in enumerate(output.aux_logits)}
    right = {name: decision == batch.labels for name, decision in named.items()}
    return right | {name.replace("aux", "agree"): decision == output.logits.argmax(1) for name, decision in named.items()}


def measure(
    model: Network,
    split: Split,
    threat: Threat,
    *,
    steps: int,
    seed: int,
    stop: Callable[[], bool],
    aux_weight: float = 0.0,
    observe: Callable[[Network, Batch], dict[str, Tensor]] = lambda model, batch: {},
) -> dict[str, float]:
    """{n, clean, robust}: fractions of the split under PGD of step eps / 4 from one uniform start, the same in every epoch.

    A random start and one restart: good for comparing epochs, an upper bound as a robust accuracy. aux_weight: of the mean loss
    of auxiliary heads, by which a gated network must be attacked: through the gate alone the most masked epoch would look
    best. Of gated networks also the accuracy of each auxiliary head and how often it agrees with the decision. observe: an
    objective's own values on clean images, whose means are added by name. Gates open by themselves, never by labels.

    Each process measures every so many chunks; the sums are added in the order of the chunks, so that the numbers are those of one.
    """
    attack = Pgd(threat, attack_loss("ce", aux_weight), steps=steps, step_size=threat.eps / 4)
    size = math.ceil(len(split) / math.ceil(len(split) / _CHUNKS[split.labels.device.type]))
    rows: dict[int, dict[str, float]] = {}
    with frozen(model), called_plainly(model), computing("fp32", split.labels.device):
        judge = Judge(model, chunk=size)
        for number, batch in enumerate(chunks(split, size)):
            if stop():
                break
            if number % processes() != distributed.rank():
                continue
            correct = torch.nonzero(~judge.decide(batch.images, batch.labels))[:, 0]
            rows[number] = {"clean": len(correct), "robust": 0}
            with torch.no_grad():
                for name, values in (heads(model, batch) | observe(model, batch)).items():
                    rows[number][name] = float(values.double().sum())
            if len(correct):
                images, labels, index = (t[correct] for t in batch)
                found = attack(Surrogate(model.trace), judge, images, labels, Draws(seed, index, "monitor"), {})
                rows[number]["robust"] = int((~found.broken).sum())
    done = {number: row for part in distributed.gathered(rows) for number, row in part.items()}
    if len(done) < math.ceil(len(split) / size):
        raise StoppedError
    return {"n": len(split)} | {name: sum(done[number][name] for number in sorted(done)) / len(split) for name in done[0]}
