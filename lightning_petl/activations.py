"""What autograd keeps of a layer's input anyway, so that an adapter's backward need not keep that input as well.

A frozen block keeps the inputs of its LayerNorms and of its GELU. Their outputs are the inputs of qkv, fc1 and fc2;
kept as well, for the gradient of an adapter's weights, they would take half as much memory again as the block does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def origin(x: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor | None, ...]]:
    """How to make a tensor again from what autograd keeps of it: a function, and the tensors to give it.

    Behind anything but a LayerNorm or a GELU, it is the tensor itself that has to be kept. Call it in the forward of an
    autograd Function and save the tensors there.

    Args:
        x: Any tensor; it is not changed.
    """
    # Compilers decide themselves what to keep; a tensor that was written to is not what its origin gives.
    unknown = torch.compiler.is_compiling() or x.is_inference() or x._version
    node: Any = None if unknown else x.grad_fn
    hooks = None if node is None else torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is not None and getattr(hooks[0], "__module__", "").startswith("torch."):
        node = None  # under torch's own checkpointing and offloading, what is kept is not at hand
    if type(node).__name__ == "GeluBackward0":
        return partial(F.gelu, approximate=node._saved_approximate), (node._saved_self.detach(),)
    if type(node).__name__ == "NativeLayerNormBackward0":
        kept = [getattr(node, f"_saved_{name}") for name in ("input", "result1", "result2", "weight", "bias")]
        return _normalised, tuple(None if tensor is None else tensor.detach() for tensor in kept)
    return Tensor.detach, (x.detach(),)


def _normalised(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """LayerNorm's output from its input and the statistics that it kept."""
    out = (x.to(torch.promote_types(x.dtype, torch.float32)) - mean).mul_(rstd)
    out = out if weight is None else out.mul_(weight)
    return out if bias is None else out.add_(bias)


def product_dtype(x: Tensor) -> torch.dtype:
    """What F.linear of a tensor computes in: autocast's dtype where that is on, the tensor's own elsewhere."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
