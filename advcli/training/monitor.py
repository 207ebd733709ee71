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
from advcli.models import Network, frozen
from advcli.training.device import exact_float32

_CHUNK = 250


class StoppedError(Exception):
    """A stop was asked for in mid-measurement."""


def measure(
    model: Network,
    split: Split,
    threat: Threat,
    *,
    steps: int,
    seed: int,
    stop: Callable[[], bool],
    observe: Callable[[Network, Batch], dict[str, Tensor]] = lambda model, batch: {},
) -> dict[str, float]:
    """{n, clean, robust}: fractions of the split under PGD of step eps / 4 from one uniform start, the same in every epoch.

    A random start and one restart: good for comparing epochs, an upper bound as a robust accuracy. observe: an objective's
    own values on clean images, whose means are added by name.
    """
    attack = Pgd(threat, attack_loss("ce"), steps=steps, step_size=threat.eps / 4)
    size = math.ceil(len(split) / math.ceil(len(split) / _CHUNK))
    clean = robust = 0
    watched: dict[str, float] = {}
    with frozen(model), exact_float32(split.labels.device):
        judge = Judge(model, chunk=size)
        for batch in chunks(split, size):
            if stop():
                raise StoppedError
            correct = torch.nonzero(~judge.decide(batch.images, batch.labels))[:, 0]
            clean += len(correct)
            with torch.no_grad():
                for name, values in observe(model, batch).items():
                    watched[name] = watched.get(name, 0.0) + float(values.double().sum())
            if len(correct):
                images, labels, index = (t[correct] for t in batch)
                found = attack(Surrogate(model.trace), judge, images, labels, Draws(seed, index, "monitor"), {})
                robust += int((~found.broken).sum())
    means = {name: total / len(split) for name, total in watched.items()}
    return {"n": len(split), "clean": clean / len(split), "robust": robust / len(split), **means}
