"""SSF: Lian et al., Scaling & Shifting Your Features, arXiv 2210.08823."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_petl.adapter import Adapter, Method, Separate, Target, Wraps
from lightning_petl.affine import Affine

OPERATIONS = (
    r"(?!(?:.*\.)?(?:attn_pool|head\.fc)\.)(?:.*\.)?(?:"
    r"stem\.\d+|downsample\.\d+|downsample\.reduction|conv_dw"  # convolutions, and Swin's merging of patches
    r"|norm[12]?|norm_pre|fc_norm|[qk]_norm"
    r"|qkv|[qkv]|kv|[qkv]_proj|proj|fc[12])"
)
"""The operations of timm's ViT, Swin and ConvNeXt, all but the classifier."""


class SSFLayer(Adapter):
    """What follows one operation: ``y · scale + shift``, each ``(o,)`` for ``o`` outputs."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        empty = torch.empty(target.out_features, device=target.device, dtype=target.dtype)
        self.scale = nn.Parameter(nn.init.normal_(empty.clone(), mean=1.0, std=0.02))
        self.shift = nn.Parameter(nn.init.normal_(empty, std=0.02))

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """One pass over the operation's output."""
        out = base(x)
        return torch.addcmul(self.shift.to(out.dtype), out, self.scale.to(out.dtype))

    def merged(self, base: Affine) -> Affine:
        """``diag(scale) W`` and ``scale · b + shift``."""
        scaled = base.scaled(self.scale)
        shift = self.shift.to(scaled.weight.dtype)
        return Affine(scaled.weight, shift if scaled.bias is None else scaled.bias + shift)


class SSF(Method):
    """SSF (arXiv 2210.08823): a scale and a shift for each channel after every operation, folded into the operation.

    Not the identity at the start: as in the official code, scales are normal around 1 and shifts around 0, both with a
    standard deviation of 0.02.

    Every operation but the classifier is followed: the convolutions that embed patches and sample down, depthwise
    convolutions, every LayerNorm and every linear layer of the blocks. The official code leaves out the linear layer of
    Swin's patch merging, and on a ConvNeXt it follows the last feature map, where nothing folds, and not the LayerNorm
    after pooling; here both follow the rule.

    Args:
        targets: Regular expressions on module paths. The default names all of the above on timm's ViT, Swin and
            ConvNeXt; other backbones need patterns of their own. That of transformers' ViT must leave the patch
            embedding out: the model reads its weight past its call.
    """

    wraps: ClassVar[Wraps] = "outputs"
    separate: ClassVar[Separate] = "each"

    def __init__(self, targets: Sequence[str] = (OPERATIONS,)) -> None:
        super().__init__(targets=targets)

    def build(self, target: Target, shared: nn.Module | None = None) -> SSFLayer:
        """Creates the scale and the shift of one operation."""
        return SSFLayer(target)
