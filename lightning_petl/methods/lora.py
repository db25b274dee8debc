"""LoRA: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from lightning_petl.adapter import JSON, Adapter, LowRank, Method, Separate, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError, NotMergeable
from lightning_petl.products import narrowed, widened

PARTS = ("q", "k", "v")
"""Parts of a fused projection, in the order of its rows."""

_HOLDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qkv", "Wqkv", "query_key_value"), PARTS),
    "kv": ("k", "v"),
    **dict.fromkeys(("q", "q_proj", "query", "to_q"), ("q",)),
    **dict.fromkeys(("k", "k_proj", "key", "to_k"), ("k",)),
    **dict.fromkeys(("v", "v_proj", "value", "to_v"), ("v",)),
}
"""The parts that a layer of a name holds, in the order of its rows."""


class LoRALayer(Adapter):
    """The adapter of one layer: ``base(x) + s · up(down(dropout(x)))`` with ``s = alpha / rank``.

    Shapes, for ``i`` inputs, ``o`` outputs and rank ``r``: ``down.weight (r, i)``, ``up.weight (o, r)`` and, if
    trained, ``up.bias (o)``. With ``n`` parts of a layer that holds ``m``, each part has a pair of its own:
    ``down.weight (n r, i)``, ``up.weight (n o/m, r)`` block by block, ``up.bias (n o/m)``.
    """

    def __init__(
        self, target: Target, rank: int, scale: float, dropout: float, bias: bool, chosen: Sequence[bool] = (True,)
    ) -> None:
        super().__init__()
        place = {"device": target.device, "dtype": target.dtype}
        self.rank, self.scale, self.dropout, self.chosen = rank, scale, dropout, tuple(chosen)
        pairs, rows = sum(chosen), target.out_features // len(chosen)
        self.down = nn.Linear(target.in_features, pairs * rank, bias=False, **place)
        self.up = nn.Linear(rank, pairs * rows, bias=bias, **place)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        if bias:
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Two thin products beside the layer's own; the scale multiplies o·r numbers, not an activation."""
        hidden = narrowed(x, Affine(self.down.weight), self.dropout if self.training else 0.0)
        return base(x) + widened(hidden, self._up())

    def merged(self, base: Affine) -> Affine:
        """``W + s B A`` and ``b + s b_up``."""
        return base + self._up().after(Affine(self.down.weight))

    def low_rank(self, base: Affine) -> LowRank:
        """The adapter itself; of several parts, their pairs one after the other."""
        up = self._dense()
        return LowRank(self.down.weight, up.weight, up.bias, self.scale)

    def _up(self) -> Affine:
        up = self._dense()
        return up if self.scale == 1 else up.scaled(self.scale)

    def _dense(self) -> Affine:
        """``up`` as a map from all pairs' units to all outputs, ``(o, n r)``: zero where a part is another pair's."""
        if self.chosen == (True,):
            return Affine(self.up.weight, self.up.bias)
        places = [place for place, chosen in enumerate(self.chosen) if chosen]
        rows, rank = len(self.up.weight) // len(places), self.rank
        weight = self.up.weight.new_zeros(rows * len(self.chosen), rank * len(places))
        bias = weight.new_zeros(len(weight))
        for pair, place in enumerate(places):
            own, out = slice(pair * rows, (pair + 1) * rows), slice(place * rows, (place + 1) * rows)
            weight[out, pair * rank : (pair + 1) * rank] = self.up.weight[own]
            if self.up.bias is not None:
                bias[out] = self.up.bias[own]
        return Affine(weight, None if self.up.bias is None else bias)


class UnchangedLayer(Adapter):
    """Stands around a separate layer that no part chooses, such as a key where ``parts`` are q and v."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """The layer's own output."""
        return base(x)

    def merged(self, base: Affine) -> Affine:
        """The layer's own map."""
        return base

    def low_rank(self, base: Affine) -> LowRank:
        """Nothing, of rank 0."""
        return LowRank(base.weight.new_zeros(0, base.in_features), base.weight.new_zeros(base.out_features, 0))


class LoRA(Method):
    """LoRA (arXiv 2106.09685): adds a product of two thin matrices to a frozen layer's weight.

    The identity at the start: ``down`` is Kaiming-uniform with ``a = √5`` and ``up`` is zero, as in PEFT.

    With ``parts``, a layer with a fused projection is taken to hold the rows of q, then k, then v, as in timm's ViT and
    Swin. What is checked is that it has three times as many outputs as inputs; the order of its rows cannot be seen
    (some of timm's MaxViTs sort them by head first). Of separate layers, those are adapted whose name is a part's.

    Args:
        rank: Rank ``r``, of each part's pair where there are parts.
        alpha: The branch is scaled by ``alpha / rank``.
        dropout: Probability of dropping an input of the branch in training.
        parts: Which of ``q``, ``k`` and ``v`` to adapt, each with a pair of its own; None for the whole layer as one.
        sites: ``("attn",)``, ``("mlp",)`` or both; ``parts`` are of attention alone.
        targets: Regular expressions on module paths that override ``sites``.
        bias: Whether to train a bias of ``up`` too, scaled as the branch is.
    """

    separate: ClassVar[Separate] = "each"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"LoRA q, v": {"parts": ["q", "v"]}}

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 8,
        dropout: float = 0.0,
        parts: Sequence[str] | None = None,
        sites: Sequence[str] = ("attn",),
        targets: Sequence[str] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(targets=targets, sites=sites)
        if rank < 1:
            raise ConfigError(f"LoRA has rank={rank}", where="rank", fix="give a positive number")
        if not math.isfinite(alpha):
            raise ConfigError(f"LoRA has alpha={alpha}", where="alpha", fix="give a finite number")
        if not 0 <= dropout < 1:
            raise ConfigError(f"LoRA has dropout={dropout}", where="dropout", fix="give a number in [0, 1)")
        if parts is not None:
            _check_parts(parts)
            if targets is None and set(sites) - {"attn"}:
                raise ConfigError(
                    "parts are of attention alone", where="parts", fix="leave them out, or set sites=[attn]"
                )
        self.rank, self.alpha, self.dropout, self.bias = rank, alpha, dropout, bias
        self.parts = None if parts is None else frozenset(parts)

    def build(self, target: Target, shared: nn.Module | None = None) -> LoRALayer | UnchangedLayer:
        """Creates the adapter of one layer.

        Raises:
            NotMergeable: There are parts, and the layer is no projection to queries, keys or values.
        """
        chosen = (True,) if self.parts is None else tuple(part in self.parts for part in _held_by(target))
        if not any(chosen):
            return UnchangedLayer()
        chosen = (True,) if len(chosen) == 1 else chosen
        return LoRALayer(target, self.rank, self.alpha / self.rank, self.dropout, self.bias, chosen)


def _check_parts(parts: Sequence[str]) -> None:
    """Refuses what is no choice among q, k and v."""
    known = not isinstance(parts, str) and all(part in PARTS for part in parts)
    if not known or not parts or len(set(parts)) < len(parts):
        raise ConfigError(f"LoRA has parts={parts!r}", where="parts", fix="give one or more of q, k and v, each once")


def _held_by(target: Target) -> tuple[str, ...]:
    """The parts that a layer holds, in the order of its rows; one whose name tells nothing may hold all three."""
    held = _HOLDS.get(target.path.rpartition(".")[2], PARTS)
    if len(held) > 1 and target.out_features != len(held) * target.in_features:
        shape = f"{target.in_features} inputs and {target.out_features} outputs"
        raise NotMergeable(
            f"with {shape} it does not hold {', '.join(held)} one after the other",
            where=target.path,
            fix="leave parts out, or target other layers",
        )
    return held
