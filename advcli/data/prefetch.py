"""The next batch is made in a thread, on a CUDA device also in a stream of its own, while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K")
T = TypeVar("T", bound=tuple[Tensor, ...])


def ahead(make: Callable[[K], T], keys: Iterable[K], device: torch.device) -> Iterator[T]:
    """make(key) of every key, in order, tensors on the device; one is in the making while another is used.

    What make raises comes up where its item would have. Closed, or left for good, the iterator waits for the item in the
    making, and its thread is gone.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    if side is not None:
        side.wait_stream(torch.cuda.current_stream(device))  # what make reads may still be on its way there

    def made(key: K) -> tuple[T, torch.cuda.Event | None]:
        with torch.cuda.stream(side):
            return make(key), side.record_event() if side is not None else None

    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as thread:
        pending: Future[tuple[T, torch.cuda.Event | None]] | None = None
        for key in keys:
            pending, ready = thread.submit(made, key), pending
            if ready is not None:
                yield _received(*ready.result(), device)
        if pending is not None:
            yield _received(*pending.result(), device)


def _received(tensors: T, event: torch.cuda.Event | None, device: torch.device) -> T:
    """The tensors for the current stream: it waits for them, and their memory is not given away before it is done with them."""
    if event is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)
    return tensors
