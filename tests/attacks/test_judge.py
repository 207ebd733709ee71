"""Who counts as broken, at what price, and that companions have no say."""

import copy

import pytest
import torch
from torch import Tensor, nn

from advcli.attacks import Cost, Judge, measure_bound
from advcli.models import Architecture, build


class Table(nn.Module):
    """Logits looked up by an image's first pixel; remembers the batch sizes it was shown."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows, self.seen = torch.tensor(rows), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.rows[x[:, 0, 0, 0].long()]


def pictures(n: int) -> Tensor:
    return torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)


NAN, INF = float("nan"), float("inf")
ROWS = [
    # logits, label 0; margin; broken and borderline at bound 0; the same at bound 0.5
    ([3.0, 1.0, 0.0], -2.0, False, False, False, False),
    ([3.0, 2.75, 0.0], -0.25, False, False, True, True),
    ([3.0, 2.5, 0.0], -0.5, False, False, True, True),
    ([3.0, 3.0, 0.0], 0.0, True, True, True, True),
    ([3.0, 3.25, 0.0], 0.25, True, False, True, True),
    ([3.0, 5.0, 0.0], 2.0, True, False, True, False),
    ([NAN, 1.0, 0.0], INF, True, False, True, False),
    ([3.0, NAN, 0.0], INF, True, False, True, False),
    ([NAN, NAN, NAN], INF, True, False, True, False),
    ([-INF, 1.0, 0.0], INF, True, False, True, False),
    ([INF, INF, 0.0], INF, True, False, True, False),
]


@pytest.mark.parametrize(("bound", "column"), [(0.0, 2), (0.5, 4)])
def test_verdicts(bound: float, column: int) -> None:
    judge = Judge(Table([row[0] for row in ROWS]), chunk=4, bound=bound)
    x, y = pictures(len(ROWS)), torch.zeros(len(ROWS), dtype=torch.int64)
    margins = judge.margins(x, y)
    assert margins.tolist() == [row[1] for row in ROWS]
    assert judge.decide(x, y).tolist() == judge.broken(margins).tolist() == [row[column] for row in ROWS]
    assert judge.borderline(margins).tolist() == [row[column + 1] for row in ROWS]


@pytest.mark.parametrize(("n", "chunk", "passes"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (9, 4, 3), (3, 1, 3)])
def test_every_forward_sees_a_whole_chunk_and_only_images_are_counted(n: int, chunk: int, passes: int) -> None:
    model, cost = Table([[1.0, 0.0]] * n), Cost()
    assert len(Judge(model, chunk=chunk, cost=cost).decide(pictures(n), torch.zeros(n, dtype=torch.int64))) == n
    assert model.seen == [chunk] * passes
    assert (cost.forwards, cost.backwards) == (n, 0)


def test_no_images_no_forward() -> None:
    model = Table([[1.0, 0.0]])
    assert Judge(model, chunk=4).decide(pictures(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert model.seen == []


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build(Architecture("small-cnn", 0.25, 10, 1, 8), seed=1)


def noise(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def test_verdicts_do_not_depend_on_companions(network: nn.Module) -> None:
    """To the bit: the chunk is always as large, and rows of a batch do not meet in eval mode."""
    judge, (x, y) = Judge(network, chunk=16), noise(40, 0)
    whole = judge.margins(x, y)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge.margins(x[order], y[order]), whole[order])
    assert torch.equal(torch.cat([judge.margins(x[i : i + 1], y[i : i + 1]) for i in range(40)]), whole)


def test_judges_in_eval_mode_without_a_graph(network: nn.Module) -> None:
    model = copy.deepcopy(network).train()
    before = copy.deepcopy(model.state_dict())
    x, y = noise(8, 0)
    margins = Judge(model, chunk=8).margins(x, y)
    assert not margins.requires_grad
    assert torch.equal(margins, Judge(network, chunk=8).margins(x, y))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_measured_bound_covers_other_images(network: nn.Module, scale: float) -> None:
    """Positive, a few ulps of the logits, and above the error that float32 makes in the margins of images it never saw."""
    model = copy.deepcopy(network).eval()
    model.linear.weight.data *= scale
    bound = measure_bound(model, noise(64, 0)[0])
    x, y = noise(256, 1)
    exact = Judge(copy.deepcopy(model).double(), chunk=256)
    z = exact.model(x.double())
    true = z.masked_fill(nn.functional.one_hot(y, 10).bool(), -torch.inf).amax(1) - z.gather(1, y[:, None])[:, 0]
    error = (Judge(model, chunk=256).margins(x, y).double() - true).abs().max()
    assert 0 < error < bound < 1e-4 * z.abs().max()
