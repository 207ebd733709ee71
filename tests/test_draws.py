"""Keyed random numbers: the published Philox vectors, an independent reference, independence of batch and order, distributions."""

from __future__ import annotations

import ast
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from advcli import draws
from advcli.draws import Draws

WORD = 2**32
ALL = torch.arange(2000)
KINDS: dict[str, Callable[[Draws], Tensor]] = {
    "uniform": lambda d: d.uniform((3, 2)),
    "integers": lambda d: d.integers(1000, (5,)),
    "normal": lambda d: d.normal((7,)),
}
P_FLOOR = 1e-3  # chosen beforehand; every seed is fixed


def reference(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 on Python's unbounded integers, written from figure 2 and section 3.2 of the paper."""
    c, k = list(counter), list(key)
    for round_ in range(10):
        if round_:
            k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
        high0, low0 = divmod(0xD2511F53 * c[0], WORD)
        high1, low1 = divmod(0xCD9E8D57 * c[2], WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def reference_words(seed: int, purpose: str, example: int, counter: int, size: int) -> list[int]:
    """The words that one example draws: blocks counted in the first word, then example, counter, purpose; the seed is the key."""
    name = zlib.crc32(purpose.encode())
    blocks = [reference((b, example, counter, name), (seed % WORD, seed // WORD)) for b in range(math.ceil(size / 4))]
    return [word for block in blocks for word in block][:size]


def tensors(words: Sequence[int]) -> list[Tensor]:
    return [torch.tensor(word) for word in words]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_known_answers(counter: str, key: str, expected: str) -> None:
    """The philox4x32-10 lines of Random123's kat_vectors, for the tensors and for this file's own reference."""
    c, k, want = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert [int(word) for word in draws.philox(tensors(c), (k[0], k[1]))] == want
    assert reference(c, k) == want


words32 = st.integers(0, WORD - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words32, min_size=4, max_size=4), min_size=1, max_size=5), st.tuples(words32, words32))
def test_tensor_philox_is_the_integer_philox(counters: list[list[int]], key: tuple[int, int]) -> None:
    words = draws.philox(list(torch.tensor(counters).T), key)
    assert torch.stack(words, 1).tolist() == [reference(c, key) for c in counters]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.text(max_size=12), st.lists(words32, min_size=1, max_size=3), words32)
def test_layout_of_the_streams(seed: int, purpose: str, examples: list[int], counter: int) -> None:
    """What is drawn is the documented function of the key, so recorded seeds keep their meaning."""
    index, key = torch.tensor(examples), (seed, purpose)
    words = [reference_words(seed, purpose, example, counter, 6) for example in examples]
    uniform, integers = draws.uniform(key, index, counter, (2, 3)), draws.integers(key, index, counter, 10, (6,))
    assert uniform.flatten(1).double().tolist() == [[(w >> 8) / 2**24 for w in row] for row in words]
    assert integers.tolist() == [[w * 10 // WORD for w in row] for row in words]


def test_normal_is_box_muller_of_the_words() -> None:
    """Against the float64 formula on the same words, to float32 rounding of an angle up to 2 pi and a radius up to 6."""
    index = torch.arange(50)
    expected = []
    for example in index.tolist():
        row = []
        words = [w >> 8 for w in reference_words(3, "noise", example, 1, 8)]
        for r, a in zip(words[::2], words[1::2], strict=True):
            radius, angle = math.sqrt(-2 * math.log((r + 1) / 2**24)), 2 * math.pi * a / 2**24
            row += [radius * math.cos(angle), radius * math.sin(angle)]
        expected.append(row)
    torch.testing.assert_close(draws.normal((3, "noise"), index, 1, (8,)).double(), torch.tensor(expected).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_draws_the_same_in_any_order_batch_and_subset(kind: str) -> None:
    draw, index = KINDS[kind], torch.tensor([7, 0, 31, 2**32 - 1, 5, 12])
    whole = Draws(11, index, "p", 4)
    values, order = draw(whole), torch.tensor([3, 1, 5, 0, 4, 2])
    mask = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(draw(Draws(11, index[order], "p", 4)), values[order])
    assert torch.equal(torch.cat([draw(Draws(11, part, "p", 4)) for part in index.split([1, 4, 1])]), values)
    assert torch.equal(draw(whole.select(mask)), values[mask])
    assert torch.equal(draw(whole.select(order[:2])), values[order[:2]])
    assert torch.equal(draw(Draws(11, index[[0, 0]], "p", 4)), values[[0, 0]]), "an example that comes twice draws the same twice"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "other",
    [
        Draws(1, ALL, "p", 0),
        Draws(2**32, ALL, "p", 0),
        Draws(2**63, ALL, "p", 0),
        Draws(0, ALL, "q", 0),
        Draws(0, ALL, "p", 1),
        Draws(0, ALL + len(ALL), "p", 0),
        Draws(0, ALL, "p").sub("p"),
        Draws(0, ALL, "p").at(7),
    ],
    ids=["seed", "seed high word", "seed top bit", "purpose", "counter", "examples", "sub", "at"],
)
def test_other_keys_give_unrelated_streams(kind: str, other: Draws) -> None:
    """Under independence a correlation of n values has a standard error of 1 / sqrt(n); five of them are allowed."""
    a, b = KINDS[kind](Draws(0, ALL, "p", 0)).double().flatten(), KINDS[kind](other).double().flatten()
    assert not torch.equal(a, b)
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(len(a))


def test_draws_are_the_functions_of_their_fields() -> None:
    d = Draws(9, ALL[:4], "attack", 2)
    assert torch.equal(d.at(5).sub("x").uniform((2,)), draws.uniform((9, "attack/x"), ALL[:4], 5, (2,)))
    assert torch.equal(d.integers(6), draws.integers((9, "attack"), ALL[:4], 2, 6))
    assert torch.equal(d.normal(()), draws.normal((9, "attack"), ALL[:4], 2, ()))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5,), (3, 4, 2), (0,), (2, 0)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_shapes_and_types(n: int, shape: tuple[int, ...]) -> None:
    index = torch.arange(n)
    results = {
        torch.float32: [draws.uniform((0, "p"), index, 0, shape), draws.normal((0, "p"), index, 0, shape)],
        torch.int64: [draws.integers((0, "p"), index, 0, 3, shape)],
    }
    assert all(t.shape == (n, *shape) and t.dtype == dtype for dtype, ts in results.items() for t in ts)


def test_growing_a_shape_keeps_the_first_draws() -> None:
    assert torch.equal(draws.uniform((0, "p"), ALL, 0, (9,))[:, :6], draws.uniform((0, "p"), ALL, 0, (6,)))


def test_uniform_range_grid_moments_and_distribution() -> None:
    u = draws.uniform((2024, "test"), ALL, 0, (50,)).double().flatten()
    n = len(u)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert abs(float(u.mean()) - 1 / 2) < 5 / math.sqrt(12 * n)
    assert abs(float(u.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    assert stats.kstest(u.numpy(), "uniform").pvalue > P_FLOOR
    rows = u.view(len(ALL), 50)
    assert abs(float(torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1])) < 5 / math.sqrt(n)
    assert abs(float(torch.corrcoef(torch.stack([rows[:-1].flatten(), rows[1:].flatten()]))[0, 1])) < 5 / math.sqrt(n)


@pytest.mark.parametrize("high", [1, 2, 3, 7, 9, 10, 16, 1000])
def test_integers_are_uniform_over_their_range(high: int) -> None:
    values = draws.integers((5, "test"), ALL, 3, high, (20,)).flatten()
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    assert int(values.min()) >= 0
    if high > 1:
        assert stats.chisquare(counts.numpy()).pvalue > P_FLOOR


def test_integers_reach_both_ends_of_the_largest_range() -> None:
    values = draws.integers((5, "test"), ALL, 0, 2**31, (20,)).flatten()
    assert 0 <= int(values.min()) < 2**31 / 1000
    assert 2**31 - 2**31 / 1000 < int(values.max()) < 2**31


def test_normal_moments_and_distribution() -> None:
    z = draws.normal((7, "test"), ALL, 0, (50,)).double().flatten()
    n = len(z)
    assert torch.isfinite(z).all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # of z**power under N(0, 1)
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(variance / n)
    assert stats.kstest(z.numpy(), "norm").pvalue > P_FLOOR
    pairs = z.view(-1, 2)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 5 / math.sqrt(len(pairs)), "sine and cosine of one angle are uncorrelated"


def test_normal_is_finite_at_the_extreme_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """All words 0 is the largest radius, all words 2**32 - 1 the smallest."""
    for word, radius in ((0, math.sqrt(2 * math.log(2**24))), (WORD - 1, 0.0)):
        monkeypatch.setattr(draws, "_words", lambda *_, word=word: [torch.full((1, 1), word)] * 4)
        z = draws.normal((0, "p"), ALL[:1], 0, (4,)).double()
        assert torch.hypot(z[0, 0], z[0, 1]).item() == pytest.approx(radius, abs=1e-3)


@pytest.mark.parametrize(
    ("seed", "counter"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**32)], ids=["seed < 0", "seed 2**64", "counter < 0", "counter 2**32"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_counters_out_of_range_are_refused(kind: str, seed: int, counter: int) -> None:
    with pytest.raises(ValueError, match="seed" if counter == 0 else "counter"):
        KINDS[kind](Draws(seed, ALL[:2], "p", counter))


@pytest.mark.parametrize(("seed", "counter"), [(2**64 - 1, 0), (0, 2**32 - 1)])
def test_the_last_seed_and_counter_work(seed: int, counter: int) -> None:
    assert draws.uniform((seed, "p"), ALL[:2], counter, (1,)).shape == (2, 1)


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_bad_ranges_are_refused(high: int) -> None:
    with pytest.raises(ValueError, match="high"):
        draws.integers((0, "p"), ALL[:2], 0, high)


def test_purposes_in_use_have_different_words() -> None:
    """The purpose enters as a CRC-32: no two words that the package writes down, its purposes among them, may share one."""
    package = Path(draws.__file__).parent
    nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    constants = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    texts = {text for text in constants if not re.search(r"\s", text)}
    assert len({draws.purpose_word(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_of_ones_own_is_that_counter(kind: str) -> None:
    """Row by row what the number gives; and it stays with its example under select."""
    draw, counters = KINDS[kind], torch.tensor([3, 0, 3, 2**32 - 1, 1])
    stream = Draws(5, ALL[:5], "p", counters)
    rows = torch.cat([draw(Draws(5, ALL[i : i + 1], "p", int(counters[i]))) for i in range(5)])
    assert torch.equal(draw(stream), rows)
    keep = torch.tensor([4, 1, 2])
    assert torch.equal(draw(stream.select(keep)), rows[keep])
