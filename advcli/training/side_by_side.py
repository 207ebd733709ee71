"""Our optimiser step beside others': the same first weights and batches, taking turns, in one process.

Each peer gets up to three rows. `shipped`: ours with whatever `auto` settles on, theirs eager, as they run it; never without the
next. `fp32`: both eager in float32. `bf16`: both eager with bfloat16, theirs by autocast and channels last.

The same precision is not the same layout: in every row ours attacks a copy in eval mode, batch norm folded into its convolutions, and
lies channels last. So fp32 and bf16 tell what algorithm and layout save together, without what precision adds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advcli.data import Batch, batches
from advcli.errors import UsageError
from advcli.measures import quartiles
from advcli.models import Network
from advcli.objectives import Crafted
from advcli.recipe import Recipe
from advcli.runs.checkpoint import versions
from advcli.training import throughput
from advcli.training.cost import FlopMeter, forward_flops
from advcli.training.device import computing
from advcli.training.fooling import Wrong, fooled, shares, taught
from advcli.training.machine import hardware
from advcli.training.matching import PEERS, RECIPES, Peer, plan, same_method
from advcli.training.peers import Plan, Taken
from advcli.training.phases import after_craft
from advcli.training.probe import settle
from advcli.training.setup import Assembly, assemble
from advcli.training.throughput import Floor, How, Trainer
from advcli.training.turns import Seconds, by_turns

NUMERICS = {"shipped": "tf32", "fp32": "fp32", "bf16": "bf16"}
"""The kinds of rows, as everybody calls them, and what theirs computes in; tf32 is torch's own default for convolutions."""
_BATCHES = 4  # that all walk through


def check(recipe: Recipe, only: Sequence[str]) -> list[Peer]:
    """The peers of this recipe; UsageError where nobody does the same, or where no such rows exist."""
    unknown = [name for name in only if name not in NUMERICS]
    if unknown:
        raise UsageError(f"there are no rows {unknown[0]!r}", where="--only", next=f"with --peers there are {', '.join(NUMERICS)}")
    method = same_method(recipe)
    if method is None:
        raise UsageError(
            f"no peer's loop trains as {recipe.name} does",
            where="--peers",
            next=f"advcli bench --peers takes {', '.join(RECIPES)}, which have peers as shipped, on any data set and network",
        )
    return [peer for peer in PEERS if peer.recipe == method]


@dataclass(frozen=True)
class Contest:
    """What all sides share. network: the first weights, which stay as they are."""

    parts: Assembly
    network: Network
    shown: list[Batch]
    plan: Plan


def rows_of(only: Sequence[str]) -> list[str]:
    """The numerics asked for; empty: all. float32 comes with `shipped`, whose two sides differ in precision."""
    wanted = {*only, "fp32"} if "shipped" in only else {*(only or NUMERICS)}
    return [name for name in NUMERICS if name in wanted]


def run(recipe: Recipe, device: torch.device, only: Sequence[str], how: How) -> dict[str, Any]:
    """A row for each installed peer that does the same as the recipe, and for each numerics of `only` (see `rows_of`)."""
    peers = check(recipe, only)
    installed = [peer for peer in peers if peer.package is None or importable(peer.package)]
    asked = rows_of(only)
    parts = throughput.gathered(recipe, device, made_up=how.made_up)
    with closing(batches(parts.data.train, batch_size=recipe.train.batch_size, seed=recipe.seed, epoch=0)) as stream:
        shown = list(itertools.islice(stream, _BATCHES))
    contest = Contest(parts, copy.deepcopy(parts.model), shown, plan(recipe))
    floor = throughput.count(parts)
    costs = {peer.name: cost(peer, contest) for peer in installed}
    ours = {name: Ours(contest, name) for name in asked}
    sides: dict[str, Ours | Theirs] = {f"ours, {name}": side for name, side in ours.items()}
    sides |= {f"{peer.name}, {name}": Theirs(peer, contest, name) for peer in installed for name in asked}
    warm, losses = by_turns({name: partial(side.run, 1) for name, side in sides.items()}, 2, lambda text: how.watch(f"warm-up, {text}"))
    steps = how.steps(min(min(values) for values in warm.values()))
    spent, _ = by_turns({name: partial(side.run, steps) for name, side in sides.items()}, how.rounds, how.watch)
    how.watch("teaching the network that crafted images are to fool")
    weights = taught(eager(recipe, "fp32"), parts, shown)
    wrong = fooled(weights, shown[0], {name: side.crafted for name, side in sides.items()}, how.watch)
    seen = Seen(spent, steps, losses, wrong)
    return {
        "recipe": recipe.name,
        "arch": recipe.model.arch,
        "data": {"name": recipe.data.name, "synthetic": how.made_up},
        "batch_size": recipe.train.batch_size,
        "rounds": how.rounds,
        "steps": steps,
        "precision": {name: throughput.precision_of(side.trainer.parts.recipe) for name, side in ours.items()},
        "rows": [row(peer.name, name, seen, floor, costs[peer.name]) for peer in installed for name in asked],
        "first_step_seconds": {name: values[0] for name, values in warm.items()},
        "missing": [peer.package for peer in peers if peer not in installed],
        "versions": {**versions(), **{peer.package: metadata.version(peer.package) for peer in installed if peer.package}},
        "hardware": hardware(device),
    }


def importable(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True


class Ours:
    """Our training from the same first weights, which are those of the recipe's seed."""

    def __init__(self, contest: Contest, name: str) -> None:
        recipe = contest.parts.recipe if name == "shipped" else eager(contest.parts.recipe, name)
        parts = assemble(recipe, contest.parts.device, contest.parts.data)
        self.trainer = Trainer(replace(parts, recipe=settle(parts).recipe), stream=itertools.cycle(contest.shown))

    def run(self, steps: int) -> float:
        return self.trainer.run(steps)

    def crafted(self, weights: Network, batch: Batch) -> Tensor:
        """What a step from these weights crafts of the batch."""
        seen: list[Crafted] = []
        self.trainer.parts.model.load_state_dict(weights.state_dict())
        with after_craft(self.trainer.parts.objective, seen.append):
            self.trainer.advance(batch)
        return seen[0].x_adv


def eager(recipe: Recipe, precision: str) -> Recipe:
    """The recipe with everything in one precision, and nothing compiled."""
    assert recipe.craft is not None
    train = recipe.train.model_copy(update={"precision": precision, "compile": False})
    return recipe.model_copy(update={"train": train, "craft": recipe.craft.model_copy(update={"precision": precision})})


class Theirs:
    """A peer's loop with a network and an optimiser of its own."""

    def __init__(self, peer: Peer, contest: Contest, name: str) -> None:
        self.loop, self.plan, self.precision, self.device = peer.loop, contest.plan, NUMERICS[name], contest.parts.device
        self.layout = torch.channels_last if name == "bf16" else torch.contiguous_format
        self.network = copy.deepcopy(contest.network).to(memory_format=self.layout)
        self.optimizer = same_optimizer(contest.parts.optimizer, self.network)
        self.batches = itertools.cycle([self._laid_out(batch) for batch in contest.shown])

    def _laid_out(self, batch: Batch) -> Batch:
        return batch._replace(images=batch.images.contiguous(memory_format=self.layout))

    def run(self, steps: int) -> float:
        return [self._step(next(self.batches)).loss for _ in range(steps)][-1]

    def crafted(self, weights: Network, batch: Batch) -> Tensor:
        """What a step from these weights crafts of the batch."""
        self.network.load_state_dict(weights.state_dict())
        return self._step(self._laid_out(batch)).x_adv

    def _step(self, batch: Batch) -> Taken:
        with computing(self.precision, self.device):
            torch.backends.cudnn.deterministic = False  # theirs do not ask for it, and need not pay for it
            return self.loop(self.network, self.optimizer, batch, self.plan)


def same_optimizer(ours: torch.optim.SGD, network: Network) -> torch.optim.SGD:
    kept = ("lr", "momentum", "weight_decay", "nesterov")
    return torch.optim.SGD(network.parameters(), **{key: ours.defaults[key] for key in kept})


def cost(peer: Peer, contest: Contest) -> float:
    """F of one step of the loop, counted on a few images."""
    network = copy.deepcopy(contest.network)
    batch = Batch(*(part[: throughput.COUNTED] for part in contest.shown[0]))
    one = forward_flops(network.eval(), batch.images)
    with FlopMeter() as meter:
        peer.loop(network, same_optimizer(contest.parts.optimizer, network), batch, contest.plan)
    return float(meter.total / one)


class Seen(NamedTuple):
    """Of each side by its name: seconds of rounds of so many steps, losses of its first steps, and whom its crafting fools."""

    spent: Seconds
    steps: int
    losses: dict[str, list[float]]
    wrong: Wrong


def row(peer: str, name: str, seen: Seen, floor: Floor, cost: float) -> dict[str, Any]:
    """Seconds a step; ratio: theirs over ours, round by round; loss: of the first step, from the same weights and batch."""
    mine, other = f"ours, {name}", f"{peer}, {name}"
    spent, steps, losses, wrong = seen
    ours, theirs = (np.array(spent[key]) / steps for key in (mine, other))
    return {
        "peer": peer,
        "numerics": name,
        "ours": quartiles(ours),
        "theirs": quartiles(theirs),
        "ratio": quartiles(theirs / ours),
        "F": {"ours": floor.total / floor.forward, "theirs": cost},
        "loss": {"ours": losses[mine][0], "theirs": losses[other][0]},
        "fooled": shares(wrong, mine, other),
    }
