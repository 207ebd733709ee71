"""Backward-pass substitutes: a network's own forward pass, with gradients where its operations give none (BPDA, Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from advcli.models import ModelOutput

_STEPS = frozenset({"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "fake_quantize_per_tensor_affine"})
_SATURATING = frozenset({"tanh", "sigmoid", "softmax", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "hardsigmoid", "softsign"})
_COMPARISONS = frozenset({"gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "greater", "greater_equal", "less", "less_equal"})
_CASTS = frozenset({"float", "double", "half", "bfloat16", "to", "type", "type_as"})
_WHOLE = _CASTS | {"int", "long", "short", "char", "byte"}
_QUOTIENTS = frozenset({"div", "divide", "true_divide", "__truediv__"})
_RANKED = frozenset({"topk", "max", "min", "sort", "kthvalue"})
_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__"})
_LOOKUPS = frozenset({"__getitem__", "index_select", "embedding"})


class _As(torch.autograd.Function):
    """hard forward, the gradient of soft backward."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def _as(hard: Tensor, soft: Tensor) -> Tensor:
    result: Tensor = _As.apply(hard.detach(), soft.to(hard.dtype).expand_as(hard))
    return result


class Substituted(TorchFunctionMode):
    """Inside, forward values stay as they are and gradients pass where they would stop or vanish.

    Rounding and signs, and activations that saturate, pass the gradient unchanged. A product with a mask, or a choice between two
    tensors by one, passes it to both sides as if nothing were masked. A class index from `argmax` or `max` that looks up a row, or
    becomes a one-hot vector, passes it as the softmax of the scores would; values that `topk` scatters pass it to all. A cast to whole
    numbers and back passes it unchanged. `detach`, `data` and `no_grad` do not stop it.

    seen: names of the operations on what depends on the input whose own gradient is zero or cut; a saturating activation, which
    has one, is not among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = _name(func)
        if name == "_set_grad_enabled":
            if args and args[0] is False:
                self.seen.add("no_grad")
                return None
            return func(*args, **kwargs)
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if name in ("detach", "data") and x is not None and x.requires_grad:
            self.seen.add("detach")
            return x
        if _in_place(func) and name in _STEPS | _SATURATING and x is not None and x.requires_grad:
            self.seen |= {name} & _STEPS
            before = x.clone()
            func(*args, **kwargs)
            return x.copy_(_as(x, before))
        hard = func(*args, **kwargs)
        if name in _WHOLE and isinstance(hard, Tensor) and not hard.is_floating_point() and x is not None and x.requires_grad:
            self.seen.add(f"cast to {str(hard.dtype).removeprefix('torch.')}")
            hard.advcli_value = x  # type: ignore[attr-defined]
            return hard
        rule = _RULES.get(name)
        if rule is None or not isinstance(hard, Tensor):
            return _carry(name, x, hard)
        soft = rule(hard, *args, **kwargs)
        if soft is None:
            return hard
        if name not in _SATURATING:
            self.seen.add(name.strip("_"))
        return _as(hard, soft)


def _name(func: Callable[..., Any]) -> str:
    """detach for Tensor.detach; data for the getter of Tensor.data; round for round_ too."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        return (resolve_name(func) or "..").split(".")[-2]
    return name if name.startswith("_") else name.rstrip("_")


def _in_place(func: Callable[..., Any]) -> bool:
    name = str(getattr(func, "__name__", ""))
    return name.endswith("_") and not name.startswith("_")


def _depends(x: object) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _carry(name: str, x: Tensor | None, hard: Any) -> Any:
    """Masks and indices cannot have a gradient: what would give them one travels beside them."""
    if name in _RANKED and x is not None and x.requires_grad and isinstance(hard, tuple):
        hard.indices.advcli_scores = x  # type: ignore[attr-defined]
    if name in ("argmax", "one_hot") and x is not None and isinstance(hard, Tensor):
        scores = x if name == "argmax" else getattr(x, "advcli_scores", None)
        if scores is not None and (name == "one_hot" or scores.requires_grad):
            hard.advcli_scores = scores  # type: ignore[attr-defined]
    return hard


def _pass(hard: Tensor, x: object, *args: Any, **kwargs: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.requires_grad else None


def _compare(hard: Tensor, a: object, b: object, **kwargs: Any) -> None:
    """Mark a mask as one that the input decides."""
    if _depends(a) or _depends(b):
        hard.advcli_mask = True  # type: ignore[attr-defined]


def _is_mask(x: object) -> bool:
    return bool(getattr(x, "advcli_mask", False))


def _cast(hard: Tensor, x: object, *args: Any, **kwargs: Any) -> Tensor | None:
    value: Tensor | None = getattr(x, "advcli_value", None)
    scores = getattr(x, "advcli_scores", None)
    if value is not None and hard.is_floating_point():
        return value
    if scores is not None and hard.is_floating_point() and hard.shape == scores.shape:
        return _softmax(scores)
    if _is_mask(x) and hard is not x:
        hard.advcli_mask = True  # type: ignore[attr-defined]
    return None


def _quotient(hard: Tensor, a: object, b: object, *, rounding_mode: str | None = None, **kwargs: Any) -> Tensor | None:
    """Of whole numbers that were cast from the input, or rounded itself: as if nothing were rounded."""
    value = getattr(a, "advcli_value", None)
    if rounding_mode is not None and isinstance(a, Tensor) and a.requires_grad:
        value = a
    return value / b if value is not None and hard.is_floating_point() else None


def _scatter(hard: Tensor, x: object, dim: int, index: object, src: object = None, **kwargs: Any) -> Tensor | None:
    """At indices of the largest scores (N, C): their own values are the scores, masked; a number makes a mask."""
    scores = getattr(index, "advcli_scores", None)
    if scores is None or scores.shape != hard.shape:
        return None
    if isinstance(src, Tensor) and src.requires_grad:
        return scores if isinstance(scores, Tensor) else None
    hard.advcli_mask = True  # type: ignore[attr-defined]
    return None


def _product(hard: Tensor, a: object, b: object, **kwargs: Any) -> Tensor | None:
    for mask, other in ((a, b), (b, a)):
        if _is_mask(mask) and isinstance(other, Tensor) and other.requires_grad:
            return other
    return None


def _where(hard: Tensor, mask: object, a: object = None, b: object = None, **kwargs: Any) -> Tensor | None:
    sides = [side for side in (a, b) if isinstance(side, Tensor) and side.requires_grad]
    return torch.stack([side.expand_as(hard) for side in sides]).sum(0) if _is_mask(mask) and sides else None


def _masked_fill(hard: Tensor, x: object, mask: object, *args: Any, **kwargs: Any) -> Tensor | None:
    return x if _is_mask(mask) and isinstance(x, Tensor) and x.requires_grad else None


def _look_up(hard: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Rows of a table (K, D) by an index (N,) from scores (N, K)."""
    table = next((a for a in args if isinstance(a, Tensor) and a.is_floating_point()), None)
    scores = next((s for a in args if isinstance(a, Tensor) and (s := getattr(a, "advcli_scores", None)) is not None), None)
    if table is None or scores is None or table.dim() != 2 or scores.shape[1:] != table.shape[:1]:
        return None
    if hard.shape != (len(scores), table.shape[1]):
        return None
    return _softmax(scores) @ table


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


_RULES: dict[str, Callable[..., Tensor | None]] = {
    **dict.fromkeys(_STEPS | _SATURATING, _pass),
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_LOOKUPS, _look_up),
    **dict.fromkeys(_QUOTIENTS, _quotient),
    "scatter": _scatter,
    "where": _where,
    "masked_fill": _masked_fill,
}


def substituted(trace: Callable[[Tensor], ModelOutput]) -> Callable[[Tensor], ModelOutput]:
    """The same answers with substitutes' gradients."""

    def pass_(x: Tensor) -> ModelOutput:
        with Substituted():
            return trace(x)

    return pass_


def blocking_operations(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Names of the operations in a forward pass over x (N, C, H, W) whose gradient with respect to it is zero or cut, sorted."""
    with torch.enable_grad(), Substituted() as mode:
        model(x.detach().requires_grad_(True))
    return tuple(sorted(mode.seen))
