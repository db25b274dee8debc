"""What autograd keeps of a layer's input anyway, so that an adapter's backward need not keep that input as well.

A frozen block keeps the inputs of its LayerNorms and of its GELU. Their outputs are the inputs of qkv, fc1 and fc2;
kept as well, for the gradient of an adapter's weights, they would take half as much memory again as the block does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import forward_ad

Saved = tuple[Tensor | None, ...]

_CACHED = 512  # tokens that a CPU centres at once, so that they stay in its cache; measured at widths 384 and 768


def origin(x: Tensor) -> tuple[Callable[..., Tensor], Saved]:
    """How to make a tensor again from what autograd keeps of it: a function, and the tensors to give it.

    Behind anything but a LayerNorm or a GELU, it is the tensor itself that has to be kept. Call it in the forward of an
    autograd Function and save the tensors there.

    Args:
        x: Any tensor; it is not changed.
    """
    try:
        node = _node(x)
        if type(node).__name__ == "GeluBackward0":
            return partial(F.gelu, approximate=node._saved_approximate), (node._saved_self.detach(),)
        if type(node).__name__ == "NativeLayerNormBackward0":
            names = ("input", "result1", "result2", "weight", "bias")
            kept = [getattr(node, f"_saved_{name}") for name in names]
            return normalised, tuple(None if tensor is None else tensor.detach() for tensor in kept)
    except RuntimeError:  # it was written to since, or given free by a backward pass
        pass
    return itself, (x,)


def _node(x: Tensor) -> Any:
    """What made a tensor, where that may be looked into; None elsewhere."""
    # Compilers and tracers decide themselves what to keep, and see through no subclass what autograd has of it. A
    # tensor that was written to is not what its origin gives.
    if type(x) is not Tensor or torch.compiler.is_compiling() or x.is_inference() or x._version:
        return None
    # Under torch's own checkpointing and offloading, what is kept is not at hand.
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is not None and getattr(hooks[0], "__module__", "").startswith("torch.") else x.grad_fn


def itself(x: Tensor) -> Tensor:
    """How to make a tensor of which autograd keeps nothing: it is kept, with its history."""
    return x


def normalised(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """LayerNorm's output from its input and the statistics that it kept."""
    out = (x.to(torch.promote_types(x.dtype, torch.float32)) - mean).mul_(rstd)
    if weight is not None and bias is not None:
        return torch.addcmul(bias, out, weight)
    out = out if weight is None else out.mul_(weight)
    return out if bias is None else out.add_(bias)


class _Link(torch.autograd.Function):
    """A tensor's shape and its place in the graph, without its memory; its numbers are nobody's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _Linked(torch.autograd.Function):
    """Numbers in the place that a link holds."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, numbers: Tensor) -> Tensor:
        return numbers.to(link.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@dataclass(frozen=True)
class Remade:
    """A Function's input, made again in its backward from what `remade` says to save; it holds no tensor itself.

    Where backward itself is recorded, for a gradient of a gradient, what is made has the input's place in the graph.

    Attributes:
        remake: Of `origin`; `itself` where the input has to be kept.
    """

    remake: Callable[..., Tensor]

    def again(self, *saved: Tensor) -> Tensor:
        """The input, from what was saved."""
        if self.remake is itself:
            return saved[0]
        link, *kept = saved
        with torch.no_grad():
            numbers = self.remake(*kept)
        return cast(Tensor, _Linked.apply(link, numbers)) if torch.is_grad_enabled() else numbers

    def product(self, rows: Tensor, *saved: Tensor) -> Tensor:
        """``rowsᵀ x``, ``(few, in)``, of ``rows (tokens, few)`` and the input, its tokens flattened."""
        if self.remake is normalised and not torch.is_grad_enabled() and _over_features(saved[1], saved[2], rows):
            return _product_with_normalised(rows, *saved[1:])
        x = self.again(*saved).to(rows.dtype)
        return rows.mT @ x.reshape(-1, x.shape[-1])


def remade(x: Tensor) -> tuple[Remade, Saved]:
    """How a Function makes its input again, and the tensors that it saves for that; call it in or before forward."""
    remake, kept = origin(x)
    if remake is itself:
        return Remade(itself), (x,)
    with torch.enable_grad():
        return Remade(remake), (cast(Tensor, _Link.apply(x)), *kept)


def _over_features(x: Tensor, mean: Tensor, rows: Tensor) -> bool:
    """Whether a LayerNorm over the last axis alone computed in its input's precision, and the product does too."""
    return mean.shape == (*x.shape[:-1], 1) and x.dtype == mean.dtype == rows.dtype == product_dtype(rows)


def _product_with_normalised(
    rows: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``rowsᵀ (((x - mean) · rstd) · weight + bias)``, with one operation on what is of the size of ``x``."""
    scaled, x, mean = rows * rstd.reshape(-1, 1), x.reshape(-1, x.shape[-1]), mean.reshape(-1, 1)
    out = rows.new_zeros(rows.shape[-1], x.shape[-1])
    tokens = _CACHED if rows.device.type == "cpu" else max(1, len(rows))
    for start in range(0, len(rows), tokens):
        some = slice(start, start + tokens)
        out.addmm_(scaled[some].mT, x[some] - mean[some])
    out = out if weight is None else out.mul_(weight)
    return out if bias is None else out.addr_(rows.sum(0), bias)


def functions_work(*tensors: Tensor | None) -> bool:
    """Whether an autograd Function may stand for operations on these tensors.

    The transforms of torch.func, forward-mode derivatives and tracers have to see the operations themselves.
    """
    if not all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return False
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not transformed and torch._C._get_tracing_state() is None


def product_dtype(x: Tensor) -> torch.dtype:
    """What F.linear of a tensor computes in: autocast's dtype where that is on, the tensor's own elsewhere."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
