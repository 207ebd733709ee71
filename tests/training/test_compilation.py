"""Compiled blocks compute what plain ones do."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advcli.models import Architecture, FastCopy, Network, build
from advcli.recipe.schema import AttributionSpan
from advcli.training.compilation import called_plainly, compile_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"),
]


def network() -> Network:
    gate = AttributionSpan(name="attribution-span", at=("layer3", "features"))
    return build(Architecture("resnet18", 0.0625, 5, 3, 16, gates=(gate,)), 0).double()


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=generator), torch.randint(5, (4,), generator=generator)


def gradients(made: Network) -> list[Tensor]:
    """Of the images, and of the weights where they ask for one."""
    x, y = images()
    x.requires_grad_(True)
    output = made.trace(x)
    total = F.cross_entropy(output.logits, y) + sum(F.cross_entropy(aux, y) for aux in output.aux_logits)
    weights = [weight for weight in made.parameters() if weight.requires_grad]
    return [value for value in torch.autograd.grad(total, [x, *weights], allow_unused=True) if value is not None]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11 * (1 + float(one.abs().max())))


def test_gradients_of_a_compiled_copy_are_those_of_the_network() -> None:
    """Folded, compiled and copied at once, gates included, in float64; and again after the weights have moved."""
    made = network().eval()
    copy = FastCopy(made, "folded")
    compile_blocks(copy.network)
    for _ in range(2):
        exact = gradients(made)[:1]
        close(exact, gradients(copy.network))
        with torch.no_grad():
            for weight in made.parameters():
                weight.mul_(1.1)
        copy.refresh()


def test_a_compiled_network_trains_like_the_plain_one() -> None:
    """Train mode: gradients of every weight, and the statistics that batch norm keeps."""
    plain, compiled = network().train(), network().train()
    compile_blocks(compiled)
    close(gradients(plain), gradients(compiled))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for one, other in zip(plain.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert compiled.get_submodule("layer1.0")._compiled_call_impl is not None


def test_what_is_called_plainly_does_not_pass_the_compiler() -> None:
    made = network().eval()
    compile_blocks(made)
    calls = {name: module._compiled_call_impl for name, module in made.named_modules()}
    with called_plainly(made):
        assert all(module._compiled_call_impl is None for module in made.modules())
    assert {name: module._compiled_call_impl for name, module in made.named_modules()} == calls
    assert sum(call is not None for call in calls.values()) == 8
    compile_blocks(made, undo=True)
    assert all(module._compiled_call_impl is None for module in made.modules())
