"""One batch ahead: in order, truly beside the work, with its errors in their place, and no thread afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from advcli.data.prefetch import ahead

CPU = torch.device("cpu")


def item(key: int) -> tuple[Tensor]:
    return (torch.tensor(key),)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("next-batch")]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert threads() == []
    yield
    assert threads() == []


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_items_come_in_order(n: int) -> None:
    assert [int(value) for (value,) in ahead(item, range(n), CPU)] == list(range(n))


def test_the_next_item_is_made_while_one_is_used_and_no_other() -> None:
    """The user of item k waits for the making of item k + 1, which would not end if it were not beside him."""
    begun = [threading.Event() for _ in range(6)]

    def make(key: int) -> tuple[Tensor]:
        begun[key].set()
        return item(key)

    for (value,) in ahead(make, range(5), CPU):
        key = int(value)
        assert key == 4 or begun[key + 1].wait(60)
        assert key >= 3 or not begun[key + 2].is_set()


def test_an_error_comes_up_where_its_item_would_have() -> None:
    def make(key: int) -> tuple[Tensor]:
        if key == 3:
            raise OSError("the disk is gone")
        return item(key)

    stream = ahead(make, range(5), CPU)
    assert [int(next(stream)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_closed_early_it_leaves_no_thread(after: int) -> None:
    stream = ahead(item, range(10**9), CPU)
    for _ in range(after):
        next(stream)
    assert len(threads()) == min(after, 1)
    stream.close()
    assert threads() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_of_the_user_leaves_no_thread(error: type[BaseException]) -> None:
    def use() -> None:
        for _ in ahead(item, range(10), CPU):
            raise error

    with pytest.raises(error):
        use()


def test_the_global_generator_and_the_mode_of_gradients_are_not_touched() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        list(ahead(item, range(3), CPU))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_stream_of_its_own_hands_over_whole_tensors() -> None:
    """Copies of 64 MB, used at once in the current stream and let go: nothing is read before it is there or after it was given away."""
    cuda = torch.device("cuda:0")

    def make(key: int) -> tuple[Tensor]:
        assert torch.cuda.current_stream(cuda) != torch.cuda.default_stream(cuda)
        return (torch.full((2**24,), float(key)).pin_memory().to(cuda, non_blocking=True),)

    spread = [(value - key).abs().max() for key, (value,) in enumerate(ahead(make, range(20), cuda))]
    assert float(torch.stack(spread).max()) == 0
