"""The clean accuracy of a checkpoint of others, said before anything is attacked, and what is likely wrong where it is low."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advcli.data import Split
from advcli.data.batches import chunks
from advcli.evaluation.job import pick
from advcli.measures import wilson
from advcli.models.modes import frozen
from advcli.runs.checkpoint import Loaded
from advcli.runs.foreign import describe

IMAGES = 256  # at most
_CHUNK = 64
_NEAR_CHANCE = 0.1  # of the way from chance to 1
_EFFECT = 0.02  # by which another normalisation must be better to be worth a word
_KNOWN: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "images in [-1, 1]": ((0.5,), (0.5,)),
    "images in [0, 255]": ((0.0,), (1 / 255,)),
}


def look(loaded: Loaded, split: Split, device: torch.device) -> list[str]:
    """Lines to show: the accuracy on a fixed part of the images, and, where it is near chance, the likely causes."""
    images = pick(split, IMAGES, 0).to(device)
    n, labels = len(images), images.labels
    with torch.no_grad(), frozen(loaded.network.to(device)):
        answers = _answers(loaded, images, None)
        right = int((answers == labels).sum())
        low, high = wilson(right, n)
        by = loaded.header["foreign"]["normalized_by"]
        lines = [
            f"read as {describe(loaded.architecture)}, normalisation: {by}",
            f"clean accuracy {100 * right / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}] on {n} images",
        ]
        chance = float(labels.bincount().max()) / n
        poor = low <= chance + _NEAR_CHANCE * (1 - chance)
        if by in ("none", "the options") or poor:
            lines += _other_normalizations(loaded, images, right / n)
    if poor:
        lines += [f"warning: that is near chance ({100 * chance:.1f} %): something between these weights and these images does not fit"]
        lines += _likely_causes(loaded, answers, labels)
    return lines


def _answers(loaded: Loaded, images: Split, norm: tuple[Tensor, Tensor] | None) -> Tensor:
    """(n,) decisions; norm: (mean, std), each (C, 1, 1), in the place of the network's own."""
    network = loaded.network
    own_mean, own_std = network.mean[:, None, None], network.std[:, None, None]
    found = []
    for x, _, _ in chunks(images, _CHUNK):
        found.append(network(x if norm is None else (x - norm[0]) / norm[1] * own_std + own_mean).argmax(1))
    return torch.cat(found)


def _other_normalizations(loaded: Loaded, images: Split, accuracy: float) -> list[str]:
    """A line that names the best of the usual normalisations, where one is clearly better than what was used."""
    channels, best = loaded.architecture.channels, ("", accuracy + _EFFECT)
    for name, (mean, std) in _KNOWN.items():
        if len(mean) in (1, channels):
            norm = (loaded.network.mean.new_tensor(part).expand(channels)[:, None, None] for part in (mean, std))
            right = float((_answers(loaded, images, (next(norm), next(norm))) == images.labels).float().mean())
            if right > best[1]:
                text = f"--mean {_typed(mean, channels)} --std {_typed(std, channels)}"
                best = (f"with another normalisation ({name}: {text}) it would be {100 * right:.1f} %", right)
    return [f"warning: {best[0]}"] if best[0] else []


def _typed(values: Sequence[float], channels: int) -> str:
    whole = tuple(values) * (channels if len(values) == 1 else 1)
    return ",".join("1/255" if value == 1 / 255 else f"{value:g}" for value in whole)


def _likely_causes(loaded: Loaded, answers: Tensor, labels: Tensor) -> list[str]:
    """What an answer that is steady and wrong, or always the same, points to."""
    k = loaded.architecture.num_classes
    counts = torch.zeros(k, k, dtype=torch.int64, device=labels.device).index_put_(
        (labels, answers), torch.ones_like(labels), accumulate=True
    )
    seen = counts.sum(1) > 0
    usual, agreement = counts.argmax(1)[seen], float(counts.max(1).values.sum()) / len(labels)
    if agreement > 0.5 and len(set(usual.tolist())) == int(seen.sum()) > 1:
        what = f"{100 * agreement:.1f} % of the images of a class get one answer, and each class another"
        return [f"likely cause: the order of the classes; {what}"]
    causes = [
        "the normalisation (--mean, --std)",
        "the range of the inputs, which are in [0, 1] here",
        "the order of the classes",
        "the data set",
    ]
    if loaded.architecture.arch.startswith("preact-resnet18") and "-raw" not in loaded.architecture.arch:
        twin = loaded.architecture.arch.replace("resnet18", "resnet18-raw")
        causes.insert(0, f"shortcuts that read the raw input, which names do not tell (--arch {twin})")
    return [f"likely causes: {'; '.join(causes)}"]
