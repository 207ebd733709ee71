"""Several processes, started by torchrun, that work as one: a process group, who leads, and what all must agree on.

Each process holds a part of every batch (see gates.whole) and the same weights. With one process all of this does nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from advcli import torchrun
from advcli.errors import AdvcliError, CheckFailedError, InterruptedRunError, LostProcessError, first_line
from advcli.gates.whole import processes
from advcli.training.device import pick_device
from advcli.training.heartbeat import EVERY, SILENCE, Heartbeat, Show

_MEETING = timedelta(minutes=1)  # until the machine is there that all others turn to
_STEP = timedelta(minutes=5)  # for a process that lives and yet hangs; of one that is gone the heartbeat tells
_WAIT = timedelta(days=30)  # for what one process does alone, such as a download, and for the slowest part of an evaluation
_control: Any = None  # of messages about the work, on the CPU; batches and gradients go by the default group

T = TypeVar("T")


@contextmanager
def opened(device: str, show: Show, *, every: float = EVERY, silence: float = SILENCE) -> Iterator[None]:
    """Inside, the processes that torchrun started are one group: gloo on the CPU, nccl on GPUs.

    An error ends all processes: SystemExit with its exit code, after the first process of each machine that leaves has shown it
    by `show`. Where another one has gone, or has been silent for so many seconds, that is a LostProcessError. every: see Heartbeat.
    """
    global _control
    heartbeat = None
    try:
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        heartbeat = Heartbeat(store.clone(), show, every=every, silence=silence)
        where = pick_device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_STEP)
        _control = dist.new_group(backend="gloo", timeout=_WAIT)
        yield
    except BaseException as error:
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun's, once another process has left, would cut the message short
            signal.signal(number, signal.SIG_IGN)
        first = heartbeat is None or heartbeat.stop("" if _is_loss(error) or heartbeat.lost else first_line(_told(error, None) or error))
        told = _told(error, heartbeat.lost if heartbeat is not None else None)
        if told is None:
            raise
        if first:
            show(told)
        raise SystemExit(told.exit_code) from None
    heartbeat.stop()
    _control = None
    dist.destroy_process_group()


def _told(error: BaseException, lost: LostProcessError | None) -> AdvcliError | None:
    """An error in words for the user: of an interruption and of a failed collective what is behind it; None for a bug."""
    if _is_loss(error):
        return lost or LostProcessError(_sentence(error))
    if isinstance(error, KeyboardInterrupt | InterruptedRunError) and lost is not None:
        return lost
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError("interrupted")
    return error if isinstance(error, AdvcliError) else None


def _is_loss(error: BaseException) -> bool:
    """Whether a collective failed; gloo has no class of its own for that, and names its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _sentence(error: BaseException) -> str:
    """The first sentence of a failed collective's message, without the place in gloo's source before it."""
    return str(error).partition("] ")[2].partition(". ")[0] or first_line(error)


def rank() -> int:
    return dist.get_rank() if processes() > 1 else 0


def leads() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def lead(act: Callable[[], T]) -> T:
    """What act, run by the leading process alone, returns; the others wait for it."""
    if processes() == 1:
        return act()
    box: list[Any] = [act() if leads() else None]
    dist.broadcast_object_list(box, src=0, group=_control)
    result: T = box[0]
    return result


def in_turn(act: Callable[[], T]) -> T:
    """act on the first process of each machine, then on the others, who find in place what it fetched."""
    first = torchrun.number("LOCAL_RANK") == 0
    if processes() == 1 or first:
        result = act()
    wait()
    return result if first else act()


def wait() -> None:
    """Until all processes are here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of their ranks."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value, group=_control)
    return values


def check_equal(modules: Sequence[nn.Module]) -> None:
    """CheckFailedError unless all processes hold the same bits in these modules' weights and buffers."""
    if processes() == 1:
        return
    named = [pair for module in modules for pair in module.state_dict().items()]
    sums = gathered(torch.stack([value.reshape(-1).view(torch.uint8).sum(dtype=torch.int64) for _, value in named]).tolist())
    different = [number for number, other in enumerate(sums) if other != sums[0]]
    if different:
        first = next(name for (name, _), *values in zip(named, *sums, strict=True) if len(set(values)) > 1)
        raise CheckFailedError(
            f"processes hold other weights than process 0: {', '.join(map(str, different))} (first: {first})",
            next="every machine needs the same versions, the same data and the same file to start from",
        )


def check_agree(value: object, what: str, next: str) -> None:
    """CheckFailedError unless all processes have the same value."""
    different = [number for number, other in enumerate(gathered(value)) if other != value]
    if different:
        raise CheckFailedError(f"{what}: processes {rank()} and {', '.join(map(str, different))} differ", next=next)


class StopVote:
    """Whether any process was asked to stop. The votes go with a message that is sent anyway.

    On a GPU the count is read one step late, so that no step waits for it; on all processes alike.
    """

    def __init__(self, wanted: Callable[[], bool], device: torch.device) -> None:
        self.wanted = wanted
        self.ballot = torch.zeros(1, device=device)
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def cast(self) -> list[Tensor]:
        """This process's vote (1,), to be averaged in place over all; one process alone has nobody to tell."""
        return [self.ballot.fill_(float(self.wanted()))] if processes() > 1 else []

    def passed(self) -> bool:
        """To be asked once after each averaging."""
        if processes() == 1:
            return self.wanted()
        if self.ballot.device.type == "cpu":
            return bool(self.ballot > 0)
        before, self._before = self._before, (torch.empty(1, pin_memory=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
        self._before[0].copy_(self.ballot, non_blocking=True)
        self._before[1].record()
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0] > 0)
