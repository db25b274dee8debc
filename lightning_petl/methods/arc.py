"""ARC: Dong et al., Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing, arXiv 2310.06234."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_petl.adapter import JSON, Adapter, LowRank, Method, Separate, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError
from lightning_petl.products import dropped, narrowed, widened


class Projection(nn.Module):
    """The matrix ``U`` that all layers of one site and width share; Xavier-uniform at the start.

    Attributes:
        projection: ``(d, r)`` for ``d`` input features and rank ``r``.
    """

    def __init__(self, features: int, rank: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.empty(features, rank, device=device, dtype=dtype))
        nn.init.xavier_uniform_(self.projection)


class ARCLayer(Adapter):
    """The adapter of one layer: ``f(x) = x + dropout(x (U * c)) Uᵀ + β`` in front of it.

    Down and up projection are one shared matrix ``U``, so the change of the input is the symmetric ``U diag(c) Uᵀ``.
    Dropout acts on the ``r`` units between them.

    Shapes, for ``d`` input features and rank ``r``: ``rescale (r)`` is ``c``, ``bias (d)`` is ``β``. `projection`,
    ``U (d, r)``, belongs to the model.
    """

    def __init__(self, target: Target, shared: Projection, dropout: float) -> None:
        super().__init__()
        # In a tuple, past the registry: the model registers U once, and whatever swaps its tensors (a deep copy,
        # functional_call, a move to another dtype) is seen here, because U is looked up at each use.
        self._shared = (shared,)
        self.dropout = dropout
        rank = shared.projection.shape[1]
        rescale = torch.zeros(1, rank, device=target.device, dtype=target.dtype)
        if target.site == "mlp":
            # The reference starts only the attention site at the identity. Its Xavier bound is that of a (1, r) matrix.
            nn.init.xavier_uniform_(rescale)
        self.rescale = nn.Parameter(rescale.squeeze(0))
        self.bias = nn.Parameter(torch.zeros(target.in_features, device=target.device, dtype=target.dtype))

    @property
    def projection(self) -> nn.Parameter:
        """``U (d, r)``: the model's own parameter, not a copy, and none of this module's parameters."""
        return self._shared[0].projection

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Two thin products in front of the layer's own; ``c`` scales d·r numbers rather than an activation."""
        up = self.projection
        hidden = narrowed(x, Affine((up * self.rescale).T))
        hidden = dropped(hidden, self.dropout if self.training else 0.0)
        return base(x + widened(hidden, Affine(up, self.bias)))

    def merged(self, base: Affine) -> Affine:
        """``W + (W U) diag(c) Uᵀ`` and ``b + W β``: factored, so nothing of size d x d is multiplied."""
        up = self._wide(base)
        return base + base.linear.after(Affine(up, self.bias)).after(Affine((up * self.rescale).T))

    def low_rank(self, base: Affine) -> LowRank:
        """``(W U) (diag(c) Uᵀ)`` of rank ``r``, and the bias ``W β``."""
        up = self._wide(base)
        moved = base.linear.after(Affine(up, self.bias))
        return LowRank((up * self.rescale).T, moved.weight, moved.bias)

    def _wide(self, base: Affine) -> Tensor:
        """``U`` in the widest dtype at hand: a cast of this module does not reach it, and ``c`` scales it."""
        own = torch.promote_types(self.projection.dtype, self.rescale.dtype)
        return self.projection.to(torch.promote_types(base.weight.dtype, own))


class ARC(Method):
    """ARC (arXiv 2310.06234): low-rank adapters around one shared projection, which fold into qkv and fc1.

    Each layer learns only how to rescale the ``r`` directions of a projection that all layers of its site and width
    share, and a bias. On a Swin the stages have widths of their own, so there is one projection a stage and site, as in
    the reference; two stages of one width share theirs.

    Not the identity at the start: as in the reference, the rescaling of the MLP site is Xavier-uniform (the
    projections too, and all biases are zero). ``sites=("attn",)`` starts at the identity, and so do layers that
    ``targets`` names, whose rescaling is zero wherever they sit.

    The MLP site is directly in front of fc1 on every backbone. The reference's Swin puts that adapter on the residual
    stream before the second norm instead, where it does not fold, so its Swin with both sites is another function.

    Args:
        rank: Number ``r`` of shared directions; the reference uses 50 at every width.
        dropout: Probability of dropping one of the ``r`` units in training.
        sites: ``("attn", "mlp")``, or ``("attn",)`` for the paper's attention-only variant ARC_att.
        targets: Regular expressions on module paths that override ``sites``. Layers named so share one projection for
            each input width, apart from those of the sites.
    """

    separate: ClassVar[Separate] = "share"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"ARC_att": {"sites": ["attn"]}}

    def __init__(
        self,
        rank: int = 50,
        dropout: float = 0.1,
        sites: Sequence[str] = ("attn", "mlp"),
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets=targets, sites=sites)
        if rank < 1:
            raise ConfigError(f"ARC has rank={rank}", where="rank", fix="give a positive number")
        if not 0 <= dropout < 1:
            raise ConfigError(f"ARC has dropout={dropout}", where="dropout", fix="give a number in [0, 1)")
        self.rank, self.dropout = rank, dropout

    def shared(self, targets: Sequence[Target]) -> nn.ModuleDict:
        """Creates the projections ``<site>.<width>.projection``, in the order in which layers first need them."""
        projections: dict[str, dict[str, nn.Module]] = {}
        for target in targets:
            widths, width = projections.setdefault(target.site, {}), str(target.in_features)
            if width not in widths:
                widths[width] = Projection(target.in_features, self.rank, target.device, target.dtype)
        return nn.ModuleDict({site: nn.ModuleDict(widths) for site, widths in projections.items()})

    def build(self, target: Target, shared: nn.Module | None = None) -> ARCLayer:
        """Creates the adapter in front of one layer, around the projection of its site and width.

        Raises:
            ConfigError: ``shared`` is not what `shared` made for this layer's model.
        """
        try:
            projection = None if shared is None else shared.get_submodule(f"{target.site}.{target.in_features}")
        except AttributeError:
            projection = None
        if not isinstance(projection, Projection):
            raise ConfigError(
                "an ARC layer needs the projection of its site and width", where=target.path, fix="pass shared(targets)"
            )
        return ARCLayer(target, projection, self.dropout)
