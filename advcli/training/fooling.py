"""Whether both sides of a benchmark attack equally well: a loop that attacks less would be quicker for nothing.

After the clock each side crafts once more, of one batch and from the weights of one network that was taught a little; that network, in
float32 and eval mode, tells which of the crafted images fool it. A loop that attacks in train mode attacks another function than
that, and may fool it less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advcli.data import Batch
from advcli.measures import mcnemar
from advcli.models import Network, frozen
from advcli.recipe import Recipe
from advcli.training.device import computing
from advcli.training.setup import Assembly, assemble
from advcli.training.throughput import Trainer

_TAUGHT = 32  # steps, after which batch norm's statistics have all but forgotten their beginning

Wrong = dict[str, NDArray[np.bool_]]
"""(N,) of each side by its name: which images of a batch a network gets wrong once they are crafted; `clean`: as they are."""


def taught(recipe: Recipe, parts: Assembly, shown: Sequence[Batch]) -> Network:
    """After some steps of the recipe with attacks of a single step: past chance, and not past being fooled, so that strength shows."""
    assert recipe.craft is not None
    short = recipe.craft.model_copy(update={"steps": 1, "step_size": recipe.threat.eps})
    fresh = assemble(recipe.model_copy(update={"craft": short}), parts.device, parts.data)
    Trainer(fresh, stream=itertools.cycle(shown)).run(_TAUGHT)
    return fresh.model


def fooled(weights: Network, batch: Batch, sides: Mapping[str, Callable[[Network, Batch], Tensor]], watch: Callable[[str], None]) -> Wrong:
    """sides: by name, what crafts of a batch from the weights of a network."""

    def wrong(images: Tensor) -> NDArray[np.bool_]:
        with frozen(weights), torch.no_grad(), computing("fp32", batch.images.device):
            found: NDArray[np.bool_] = (weights(images.float()).argmax(1) != batch.labels).cpu().numpy()
        return found

    found = {"clean": wrong(batch.images)}
    for name, craft in sides.items():
        watch(f"what crafting fools: {name}")
        found[name] = wrong(craft(weights, batch))
    return found


def shares(wrong: Wrong, ours: str, theirs: str) -> dict[str, float]:
    """Of the images: `clean`, `ours`, `theirs`; p: McNemar's, exact, that both sides fool equally many."""
    found = {name: float(wrong[key].mean()) for name, key in (("clean", "clean"), ("ours", ours), ("theirs", theirs))}
    return {**found, "p": mcnemar(int((wrong[ours] & ~wrong[theirs]).sum()), int((wrong[theirs] & ~wrong[ours]).sum()))}
