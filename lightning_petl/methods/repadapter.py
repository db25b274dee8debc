"""RepAdapter: Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, arXiv 2302.08106."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_petl.adapter import JSON, Adapter, LowRank, Method, Separate, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError, NotMergeable
from lightning_petl.products import dropped, narrowed, widened


class GroupedLinear(nn.Module):
    """A linear layer whose weight is block diagonal, stored by its blocks.

    Rows ``[j d/k, (j+1) d/k)`` of the output read inputs ``[j h/k, (j+1) h/k)`` only.

    Attributes:
        weight: ``(out, in / groups)``.
        bias: ``(out,)``.
    """

    def __init__(
        self, in_features: int, out_features: int, groups: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(out_features, in_features // groups, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))

    def dense(self) -> Affine:
        """The same map with its weight written out, ``(out, in)``."""
        if self.groups == 1:
            return Affine(self.weight, self.bias)
        dense: Tensor = torch.block_diag(*self.weight.chunk(self.groups))  # type: ignore[no-untyped-call]
        return Affine(dense, self.bias)


class RepAdapterLayer(Adapter):
    """The adapter of one layer: ``f(x) = x + s · up(dropout(down(x)))`` in front of it (2302.08106, equations 4 to 6).

    Shapes, for ``d`` input features, ``h`` hidden units and ``k`` groups: ``down.weight (h, d)``, ``down.bias (h)``,
    ``up.weight (d, h/k)``, ``up.bias (d)``.
    """

    def __init__(self, target: Target, hidden_dim: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        width, place = target.in_features, {"device": target.device, "dtype": target.dtype}
        self.scale, self.dropout = scale, dropout
        self.down = nn.Linear(width, hidden_dim, **place)  # type: ignore[arg-type]
        # Down is Xavier-uniform and up is zero, as in the reference: the identity at the first step.
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.up = GroupedLinear(hidden_dim, width, groups, target.device, target.dtype)

    def _up(self) -> Affine:
        # The scale multiplies the up bias too. It is folded into d·h numbers here rather than into every activation.
        return self.up.dense().scaled(self.scale)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Two thin products in front of the layer's own; the reference's conv1d needs two transposes besides."""
        hidden = narrowed(x, Affine(self.down.weight, self.down.bias))
        hidden = dropped(hidden, self.dropout if self.training else 0.0)
        return base(x + widened(hidden, self._up()))

    def merged(self, base: Affine) -> Affine:
        """``W + s (W B) A`` and ``b + s W (B a + b_up)``: factored, so nothing of size d x d is multiplied."""
        down = Affine(self.down.weight, self.down.bias)
        return base + base.linear.after(self._up()).after(down)

    def low_rank(self, base: Affine) -> LowRank:
        """``s (W B) A`` of rank ``h``, and the bias ``s W (B a + b_up)``."""
        moved = base.linear.after(self._up())
        return LowRank(self.down.weight, moved.weight, moved(self.down.bias.to(moved.weight.dtype)))


class RepAdapter(Method):
    """RepAdapter (arXiv 2302.08106): a linear bottleneck before attention and MLP that folds into qkv and fc1.

    The reference also puts an adapter before ConvNeXt's depthwise convolution. That one does not fold; here only the
    MLP site of a ConvNeXt is adapted, and a depthwise convolution named in ``targets`` is refused.

    Args:
        hidden_dim: Width ``h`` of the bottleneck; the paper uses 8 (2 for video).
        groups: Number of groups ``k`` of the sparse up-projection; the paper uses 2.
        scale: Factor ``s`` of the adapter's branch; the paper searches {0.1, 0.5, 1, 5, 10} per data set.
        dropout: Probability of dropping a hidden unit in training.
        sites: ``("attn", "mlp")``, or ``("attn",)`` for the paper's attention-only variant.
        targets: Regular expressions on module paths that override ``sites``.
    """

    separate: ClassVar[Separate] = "share"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "RepAdapter attn": {"sites": ["attn"]},
        "RepAdapter groups=1": {"groups": 1},
    }

    def __init__(
        self,
        hidden_dim: int = 8,
        groups: int = 2,
        scale: float = 1.0,
        dropout: float = 0.1,
        sites: Sequence[str] = ("attn", "mlp"),
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets=targets, sites=sites)
        if hidden_dim < 1 or groups < 1 or hidden_dim % groups:
            raise ConfigError(
                f"RepAdapter has hidden_dim={hidden_dim} and groups={groups}",
                where="groups",
                fix="both are positive, and groups divides hidden_dim",
            )
        if not math.isfinite(scale):
            raise ConfigError(f"RepAdapter has scale={scale}", where="scale", fix="give a finite number")
        if not 0 <= dropout < 1:
            raise ConfigError(f"RepAdapter has dropout={dropout}", where="dropout", fix="give a number in [0, 1)")
        self.hidden_dim, self.groups, self.scale, self.dropout = hidden_dim, groups, scale, dropout

    def build(self, target: Target, shared: nn.Module | None = None) -> RepAdapterLayer:
        """Creates the adapter in front of one layer.

        Raises:
            NotMergeable: ``groups`` does not divide the layer's input width.
        """
        if target.in_features % self.groups:
            raise NotMergeable(
                f"{self.groups} groups do not divide the {target.in_features} input features",
                where=target.path,
                fix="choose groups that divide every adapted width",
            )
        return RepAdapterLayer(target, self.hidden_dim, self.groups, self.scale, self.dropout)
