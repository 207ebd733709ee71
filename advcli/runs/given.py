"""What the command line says about a checkpoint of others, and which normalisation holds where several speak of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advcli.errors import CheckpointError, UsageError
from advcli.models.layouts import Normalization
from advcli.recipe.number import parse_number
from advcli.runs.zoo import Fetched


@dataclass(frozen=True)
class Given:
    """What the command line says about a checkpoint of others; None: what its tensors, or its source, say."""

    arch: str | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __bool__(self) -> bool:
        return self != NOTHING_GIVEN

    @classmethod
    def typed(cls, arch: str | None, num_classes: int | None, mean: str | None, std: str | None) -> Given:
        """From options: mean and std are numbers with commas between them. UsageError where they are none."""
        return cls(arch, num_classes, _numbers(mean, "--mean"), _numbers(std, "--std"))


NOTHING_GIVEN = Given()


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(parse_number(part)) for part in text.strip("[]").split(","))
    except ValueError as error:
        raise UsageError(str(error), where=option, next=f"{option} 0.5,0.5,0.5, a value a channel or one for all") from None


def normalization(
    given: Given, inside: Normalization | None, fetched: Fetched, channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str]:
    """(mean, std, who says so). The file's own comes first, and what is typed may not contradict it."""
    if (given.mean is None) != (given.std is None):
        raise UsageError("mean and std go together", where="--mean, --std", next="such as --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5")
    typed = Normalization(given.mean, given.std) if given.mean is not None and given.std is not None else None
    by, chosen = next(
        ((by, one) for by, one in (("the file", inside), ("the options", typed), (fetched.where, fetched.normalization)) if one),
        ("none", None),
    )
    if chosen is None:
        return None, None, by
    mean, std = (tuple(part) * (channels if len(part) == 1 else 1) for part in (chosen.mean, chosen.std))
    if len(mean) != channels or len(std) != channels or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise CheckpointError(f"a normalisation by mean {mean} and std {std} is none for {channels} channels", where=fetched.where)
    if inside and typed and not _alike(inside, typed):
        raise UsageError(f"the file brings a normalisation of its own: {inside}", where="--mean, --std", next="leave them out")
    return mean, std, by


def _alike(a: Normalization, b: Normalization) -> bool:
    """Equal up to float32, one value standing for all channels."""
    pairs = [(x, y) for one, two in ((a.mean, b.mean), (a.std, b.std)) for x, y in zip(_spread(one, two), _spread(two, one), strict=False)]
    return all(abs(x - y) <= 1e-6 * max(1, abs(x)) for x, y in pairs)


def _spread(values: tuple[float, ...], like: tuple[float, ...]) -> tuple[float, ...]:
    return values * len(like) if len(values) == 1 else values
