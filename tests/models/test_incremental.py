"""Incremental forwards: what the network says, at every place, of whatever network; only of what they can; and only what is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advcli.models import Architecture, FastCopy, HeadView, IncrementalForward, ModelOutput, Network, build, frozen, head_of, incremental
from advcli.models.wrapped import Wrapped
from advcli.recipe import schema

pytestmark = pytest.mark.usefixtures("one_thread")

K, SIZE, ROWS = 5, 18, 6
EVERYBODY = torch.ones(ROWS, dtype=torch.bool)
BACKBONES = {"small-cnn": 0.1, "resnet18": 0.06, "preact-resnet18": 0.06, "wrn-28-10": 0.02, "vgg16-bn": 0.06}
INNER = schema.ChannelSuppression(name="channel-suppression", at=("layer1.1", "features"))
LAST = schema.ReverseAttention(name="reverse-attention", at=("layer4.0", "layer4.1"))


def network(arch: str, gates: tuple[Any, ...] = (), size: int = 32) -> Network:
    """In float64, normalising, every norm's weights and statistics at random."""
    made = build(Architecture(arch, BACKBONES[arch], K, 3, size, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), gates=gates), seed=0)
    generator = torch.Generator().manual_seed(0)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return made.double().eval().requires_grad_(False)


def images(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looks(base: Tensor, owner: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """The owners' images with a window of noise each."""
    changed, noise = base[owner].clone(), images(len(owner), side, side, seed=1)
    for i, (row, column) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        changed[i, :, row : row + side, column : column + side] = noise[i]
    return changed


class Small(Network):
    """A stem, the block in question, and a convolution that shrinks."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__(3, K, 4)
        self.stem, self.block, self.last = nn.Conv2d(3, 4, 3, padding=1), block(), nn.Conv2d(4, 4, 3, 2)
        self.block_names = ("stem", "block", "last")


def small(block: Callable[[], nn.Module]) -> Network:
    torch.manual_seed(0)
    return Small(block).double().eval().requires_grad_(False)


def outcome(output: ModelOutput) -> tuple[Tensor, ...]:
    return output.logits, *output.aux_logits, output.features, output.ungated


def everywhere(made: Network | HeadView, height: int, width: int, side: int, step: int = 1) -> IncrementalForward:
    """Asserts that windows at all places, of any owner, get the network's own answer; a place in step squared of them, and all corners."""
    known = IncrementalForward(made, (3, height, width), side, ROWS)
    base = images(ROWS, height, width)
    known.remember(base, EVERYBODY)
    lasts = (height - side, width - side)
    places = [(y, x) for y in range(lasts[0] + 1) for x in range(lasts[1] + 1) if (y * 7 + x) % step == 0]
    places += [(y, x) for y in (0, lasts[0]) for x in (0, lasts[1])]
    places += places[: -len(places) % ROWS]
    for number in range(0, len(places), ROWS):
        top, left = torch.tensor(places[number : number + ROWS]).unbind(1)
        owner = (torch.arange(ROWS) * 5 + number // ROWS) % ROWS // (1 + number // ROWS % 2)  # each its own, or two of one
        changed = looks(base, owner, top, left, side)
        answer, exact = known.trace(changed, owner, top, left), made.trace(changed)
        for mine, whole in zip(outcome(answer), outcome(exact), strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-10, atol=1e-10)
    return known


CASES = [(arch, *shape) for arch in BACKBONES for shape in ((32, 32, 5), (32, 32, 1), (20, 27, 3))]
CASES = [case for case in CASES if case[:2] != ("vgg16-bn", 20)]  # of so small an image five poolings leave nothing


@pytest.mark.parametrize(("arch", "height", "width", "side"), CASES)
def test_windows_anywhere_get_the_networks_answer(arch: str, height: int, width: int, side: int) -> None:
    known = everywhere(network(arch), height, width, side, step=11)
    assert known.blocks > 1


@pytest.mark.parametrize("arch", ["resnet18", "vgg16-bn"])
def test_folded_copies_too(arch: str) -> None:
    everywhere(FastCopy(network(arch).float(), "folded").network.double(), 32, 32, 4, step=29)


@pytest.mark.parametrize("head", ["final", "open", "aux:0", "aux:1"])
def test_every_head_is_answered_for(head: str) -> None:
    everywhere(head_of(network("resnet18", (LAST,)), head), 32, 32, 5, step=61)


def test_a_gate_ends_the_part_before_its_block() -> None:
    gated, plain = (IncrementalForward(network("resnet18", gates), (3, 32, 32), 5, ROWS) for gates in ((INNER,), ()))
    assert gated.blocks == network("resnet18").block_names.index("layer1.1") < plain.blocks
    everywhere(network("resnet18", (INNER,)), 32, 32, 5, step=61)


class Doing(nn.Module):
    def __init__(self, what: Callable[[Any], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Any) -> Any:
        return self.what(x)


class Around(nn.Module):
    """A sum of two ways, which reach differently far; the first may be the shorter."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.far, self.near, self.turned = nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 1), turned

    def forward(self, x: Any) -> Any:
        far, near = self.far(x), self.near(x)
        return torch.relu(near + far if self.turned else torch.add(far, near))


class Cross(nn.Module):
    """A sum of two ways of which each reaches what the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))

    def forward(self, x: Any) -> Any:
        return self.one(x) + self.two(x)


def failing(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x
    raise RuntimeError("only tensors here")


@pytest.mark.parametrize(
    "block",
    [
        lambda: Around(False),
        lambda: Around(True),
        lambda: nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        lambda: nn.Conv2d(4, 4, 3, stride=(1, 2), padding=(0, 1)),
        lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        lambda: nn.Conv2d(4, 4, 3, stride=3, padding=1, groups=4),
        lambda: nn.Conv2d(4, 4, 2, bias=False),
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        lambda: nn.MaxPool2d(3, 2),
        lambda: Doing(lambda x: x + F.relu(x)),
    ],
)
def test_blocks_of_convolutions_poolings_and_sums(block: Callable[[], nn.Module]) -> None:
    assert everywhere(small(block), SIZE, SIZE + 3, 2).blocks >= 2


@pytest.mark.parametrize(
    "block",
    [
        lambda: nn.Conv2d(4, 4, 3, padding="same"),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        lambda: nn.MaxPool2d(3, 1, 1),
        lambda: nn.MaxPool2d(2, ceil_mode=True),
        lambda: nn.AvgPool2d(2),
        lambda: nn.InstanceNorm2d(4),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: Doing(lambda x: x * x.mean((2, 3), keepdim=True)),
        lambda: Doing(lambda x: x + 1.0),
        lambda: Doing(lambda x: x.flip(3)),
        lambda: Doing(lambda x: x.reshape(x.shape)),
        lambda: Doing(failing),
        lambda: Cross(),
    ],
)
def test_whatever_else_a_block_does_ends_the_part(block: Callable[[], nn.Module]) -> None:
    made = small(block)
    assert everywhere(made, SIZE, SIZE, 2).blocks == 1


def test_what_saves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="windows of 28 pixels save 0 % of the work"):
        IncrementalForward(network("resnet18"), (3, 32, 32), 28, ROWS)
    with pytest.raises(ValueError, match="save 0 %"):
        IncrementalForward(Wrapped("torchvision:resnet18", 32, 3, K).eval(), (3, 32, 32), 5, ROWS)


def test_what_takes_too_much_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network("resnet18")
    known = IncrementalForward(made, (3, 32, 32), 5, ROWS)
    taken = sum(pixels.numel() * pixels.element_size() for pixels in known._memory.pixels)
    monkeypatch.setattr(incremental, "_ROOM", taken)
    IncrementalForward(made, (3, 32, 32), 5, ROWS)
    monkeypatch.setattr(incremental, "_ROOM", taken - 1)
    monkeypatch.setattr(incremental, "_Memory", None)
    with pytest.raises(ValueError, match="maps of 6 images take"):
        IncrementalForward(made, (3, 32, 32), 5, ROWS)


def test_the_saving_is_that_of_the_pixels_that_are_reached() -> None:
    """Against the pixels of each convolution's output that a window in the middle moves."""
    made, side, moved, whole = small(lambda: nn.Conv2d(4, 4, 3, padding=1)), 2, 0, 0
    known = IncrementalForward(made, (3, SIZE, SIZE), side, ROWS)
    assert known.blocks == 3
    base, place = images(1, SIZE, SIZE), torch.tensor([6])
    x, y = base, looks(base, torch.zeros(1, dtype=torch.int64), place, place, side)
    for layer in (made.stem, made.block, made.last):
        x, y = layer(x), layer(y)  # type: ignore[operator]
        rows, columns = ((x != y).any(1)[0].any(axis) for axis in (1, 0))
        weight = layer.weight.numel()  # type: ignore[union-attr, operator]
        moved, whole = moved + weight * int(rows.sum()) * int(columns.sum()), whole + weight * x[0, 0].numel()
    assert known.spared == whole - moved
    assert known.saved == pytest.approx((whole - moved) / (whole + made.linear.weight.numel()), abs=1e-12)


def test_only_what_has_changed_is_remembered_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made, base = network("resnet18"), images(ROWS, 32, 32)
    known, passed = IncrementalForward(made, (3, 32, 32), 5, ROWS), list[Tensor]()
    through = IncrementalForward._over
    monkeypatch.setattr(IncrementalForward, "_over", lambda self, x, plan: (passed.append(x), through(self, x, plan))[1])
    known.remember(base, torch.tensor([True, False, True, False, False, True]))
    assert torch.equal(torch.cat(passed), base[[0, 2, 5]])
    known.remember(base, torch.tensor([True, False, False, False, False, True]))
    assert len(passed) == 3
    changed = base.clone()
    changed[2, 1, 30, 7] += 0.01
    known.remember(changed, EVERYBODY)
    assert torch.equal(torch.cat(passed[3:]), changed[[1, 2, 3, 4]])


def test_a_rows_answer_does_not_depend_on_its_company() -> None:
    """Not by a bit: whoever is remembered with it, in whatever order, and whatever was there before."""
    made = network("resnet18").float()
    rows, place = 64, torch.arange(64) % 28
    base = images(rows, 32, 32).float()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    changed = looks(base.double(), order, place, place, 5).float()

    def answer(turned: Tensor, looked: Tensor, before: Tensor | None = None) -> Tensor:
        """Of looks in their first order, with images in the order turned and looks in the order looked."""
        known = IncrementalForward(made, (3, 32, 32), 5, rows)
        if before is not None:
            known.remember(before, place >= 0)
            known.trace(before, torch.arange(rows), place, place)
        for asked in (place % 3 == 0, place >= 0):
            known.remember(base[turned], asked)
        features = known.trace(changed[looked], turned.argsort()[order][looked], place[looked], place[looked]).features
        return features[looked.argsort()]  # a linear layer of 31 inputs and 5 outputs does not keep rows apart, whoever asks it

    first, same = answer(torch.arange(rows), torch.arange(rows)), torch.arange(rows)
    for turned, looked, before in ((same.flip(0), same, None), (same, order, None), (order, same.flip(0), 1 - base)):
        assert torch.equal(answer(turned, looked, before), first)


def test_the_network_is_left_as_it_was() -> None:
    made = network("preact-resnet18")
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with frozen(made):
        everywhere(made, 32, 32, 5, step=301)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert not any(module._forward_hooks for module in made.modules())
