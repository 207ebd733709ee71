"""Our optimiser step beside others': the same first weights and batches, taking turns, in one process.

Each peer gets up to three rows. `as shipped`: ours with whatever `auto` settles on, theirs eager, as they run it; never without the
next. `same numerics`: both eager in float32. `same numerics, bf16`: both eager with bfloat16, theirs by autocast and channels last.

Same numerics means the same precision, not the same layout: in every row ours attacks a copy in eval mode, batch norm folded into its
convolutions, and lies channels last. So those rows tell what algorithm and layout save together, without what precision adds.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, metadata
from typing import Any

import numpy as np
import torch

from advcli.data import Batch, batches
from advcli.errors import UsageError
from advcli.measures import quartiles
from advcli.models import Network
from advcli.recipe import Recipe
from advcli.runs.checkpoint import versions
from advcli.training import throughput
from advcli.training.cost import FlopMeter, forward_flops
from advcli.training.device import computing
from advcli.training.machine import hardware
from advcli.training.matching import PEERS, RECIPES, Peer, plan, same_method
from advcli.training.peers import Plan
from advcli.training.probe import settle
from advcli.training.setup import Assembly, assemble
from advcli.training.throughput import Floor, How, Trainer
from advcli.training.turns import Seconds, by_turns

NUMERICS = {"shipped": "as shipped", "fp32": "same numerics", "bf16": "same numerics, bf16"}
_THEIRS = {"shipped": "tf32", "fp32": "fp32", "bf16": "bf16"}  # tf32: torch's own default for convolutions, where there is any
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
    """What all runners share. network: the first weights, which stay as they are."""

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
    ours = {name: our_trainer(contest, name) for name in asked}
    runs: dict[str, Callable[[int], float]] = {f"ours, {NUMERICS[name]}": trainer.run for name, trainer in ours.items()}
    runs |= {f"{peer.name}, {NUMERICS[name]}": Theirs(peer, contest, name).run for peer in installed for name in asked}
    warm, losses = by_turns({name: partial(go, 1) for name, go in runs.items()}, 2, lambda text: how.watch(f"warm-up, {text}"))
    steps = how.steps(min(min(values) for values in warm.values()))
    spent, _ = by_turns({name: partial(go, steps) for name, go in runs.items()}, how.rounds, how.watch)
    return {
        "recipe": recipe.name,
        "arch": recipe.model.arch,
        "data": {"name": recipe.data.name, "synthetic": how.made_up},
        "batch_size": recipe.train.batch_size,
        "rounds": how.rounds,
        "steps": steps,
        "precision": {NUMERICS[name]: throughput.precision_of(trainer.parts.recipe) for name, trainer in ours.items()},
        "rows": [row(peer.name, name, spent, losses, steps, floor, costs[peer.name]) for peer in installed for name in asked],
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


def our_trainer(contest: Contest, name: str) -> Trainer:
    """Ours from the same first weights, which are those of the recipe's seed."""
    recipe = contest.parts.recipe if name == "shipped" else eager(contest.parts.recipe, name)
    parts = assemble(recipe, contest.parts.device, contest.parts.data)
    return Trainer(replace(parts, recipe=settle(parts).recipe), stream=itertools.cycle(contest.shown))


def eager(recipe: Recipe, precision: str) -> Recipe:
    """The recipe with everything in one precision, and nothing compiled."""
    assert recipe.craft is not None
    train = recipe.train.model_copy(update={"precision": precision, "compile": False})
    return recipe.model_copy(update={"train": train, "craft": recipe.craft.model_copy(update={"precision": precision})})


class Theirs:
    """A peer's loop with a network and an optimiser of its own."""

    def __init__(self, peer: Peer, contest: Contest, name: str) -> None:
        self.loop, self.plan, self.precision, self.device = peer.loop, contest.plan, _THEIRS[name], contest.parts.device
        layout = torch.channels_last if name == "bf16" else torch.contiguous_format
        self.network = copy.deepcopy(contest.network).to(memory_format=layout)
        self.optimizer = same_optimizer(contest.parts.optimizer, self.network)
        self.batches = itertools.cycle([b._replace(images=b.images.contiguous(memory_format=layout)) for b in contest.shown])

    def run(self, steps: int) -> float:
        with computing(self.precision, self.device):
            torch.backends.cudnn.deterministic = False  # theirs do not ask for it, and need not pay for it
            for _ in range(steps):
                loss = self.loop(self.network, self.optimizer, next(self.batches), self.plan)
        return loss


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


def row(peer: str, name: str, spent: Seconds, losses: Seconds, steps: int, floor: Floor, cost: float) -> dict[str, Any]:
    """Seconds a step; ratio: theirs over ours, round by round; loss: of the first step, from the same weights and batch."""
    mine, other = f"ours, {NUMERICS[name]}", f"{peer}, {NUMERICS[name]}"
    ours, theirs = (np.array(spent[key]) / steps for key in (mine, other))
    return {
        "peer": peer,
        "numerics": NUMERICS[name],
        "ours": quartiles(ours),
        "theirs": quartiles(theirs),
        "ratio": quartiles(theirs / ours),
        "F": {"ours": floor.total / floor.forward, "theirs": cost},
        "loss": {"ours": losses[mine][0], "theirs": losses[other][0]},
    }
