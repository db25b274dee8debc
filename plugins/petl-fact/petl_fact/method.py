"""The changes of all layers as one stack of square matrices, factorised as a tensor train or as a Tucker form."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import Adapter, Affine, ConfigError, Method, NotMergeable, Target
from lightning_petl.adapter import JSON

TARGETS = r"(?:.*\.)?blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12])"
"""Queries, keys, values, output, and both layers of the MLP, in every block of a timm model."""

Form = Literal["tt", "tk"]


class Factors(nn.Module):
    """What all layers of one width share.

    Attributes:
        u: ``(r, d)``: from a block of ``d`` inputs to rank ``r``; drawn as torch draws a linear layer's weight.
        v: ``(d, r)``: back to a block of outputs; zero, so that nothing is changed at the start.
        core: ``(r, r, r)``: inputs, outputs, and what `TuckerLayer.mix` weighs; None in a tensor train.
    """

    def __init__(self, width: int, rank: int, form: Form, matrices: int, like: Target) -> None:
        super().__init__()
        self.matrices = matrices
        place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.u = nn.Parameter(torch.empty(rank, width, **place))
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        self.v = nn.Parameter(torch.zeros(width, rank, **place))
        self.core = nn.Parameter(torch.empty(rank, rank, rank, **place)) if form == "tk" else None
        if self.core is not None:
            nn.init.xavier_uniform_(self.core)


class FacTLayer(Adapter):
    """The change of one layer: ``s (v ⊗) Σ (u ⊗)``, for a layer of ``a`` blocks of inputs and ``b`` of outputs.

    Each block is as wide as the backbone: a fused qkv has three blocks of outputs, fc1 of a ViT has four, its fc2 has
    four of inputs. ``Σ (b r, a r)`` is the layer's own; dropout acts on its outputs.
    """

    def __init__(self, target: Target, factors: Factors, scale: float, dropout: float) -> None:
        super().__init__()
        # In a tuple, past the registry: the model registers the factors once, and whatever swaps their tensors (a deep
        # copy, a move to another dtype) is seen here, because they are looked up at each use.
        self._shared = (factors,)
        self.scale, self.dropout = scale, dropout
        width = factors.u.shape[1]
        self.blocks_in, self.blocks_out = target.in_features // width, target.out_features // width

    @property
    def factors(self) -> Factors:
        """The model's own shared factors, not a copy, and none of this module's parameters."""
        return self._shared[0]

    @abstractmethod
    def small(self) -> Tensor:
        """``Σ``, ``(b r, a r)``: from the ranks of all input blocks to those of all output blocks."""

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Three small linear maps beside the layer's own, ``(..., in)`` to ``(..., out)``; the middle one is scaled."""
        width = self.factors.u.shape[1]
        hidden = Affine(self.factors.u)(x.reshape(*x.shape[:-1], self.blocks_in, width)).flatten(-2)
        hidden = Affine(self.small() * self.scale)(hidden)
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        out = Affine(self.factors.v)(hidden.reshape(*x.shape[:-1], self.blocks_out, -1)).flatten(-2)
        return base(x) + out

    def merged(self, base: Affine) -> Affine:
        """``W + s (v ⊗) Σ (u ⊗)``; the bias stays as it is."""
        small = self.small()
        # A cast of this module does not reach what the model shares, so the factors are widened here.
        dtype = torch.promote_types(base.weight.dtype, small.dtype)
        u, v = self.factors.u.to(dtype), self.factors.v.to(dtype)
        parts = small.to(dtype).reshape(self.blocks_out, len(u), self.blocks_in, len(u))
        change = torch.einsum("dq,bqap,pe->bdae", v, parts, u).reshape(base.weight.shape)
        return base + Affine(change * self.scale)


class TensorTrainLayer(FacTLayer):
    """FacT-TT: ``Σ`` is the layer's own matrix, drawn as torch draws a linear layer's weight.

    Attributes:
        core: ``(b r, a r)``.
    """

    def __init__(self, target: Target, factors: Factors, scale: float, dropout: float) -> None:
        super().__init__(target, factors, scale, dropout)
        shape = (self.blocks_out * len(factors.u), self.blocks_in * len(factors.u))
        self.core = nn.Parameter(torch.empty(shape, device=target.device, dtype=target.dtype))
        nn.init.kaiming_uniform_(self.core, a=math.sqrt(5))

    def small(self) -> Tensor:
        """The parameter itself."""
        return self.core


class TuckerLayer(FacTLayer):
    """FacT-TK: ``Σ`` is the shared core, weighed for each pair of blocks by ``r`` numbers.

    Attributes:
        mix: ``(b a, r)``, the inputs of one block of outputs next to each other.
    """

    def __init__(self, target: Target, factors: Factors, scale: float, dropout: float) -> None:
        super().__init__(target, factors, scale, dropout)
        rank, pairs = len(factors.u), self.blocks_out * self.blocks_in
        self.mix = nn.Parameter(torch.empty(pairs, rank, device=target.device, dtype=target.dtype))
        # Xavier's bound of the matrix that the rows of all layers make up.
        bound = math.sqrt(6 / (rank + factors.matrices))
        nn.init.uniform_(self.mix, -bound, bound)

    def small(self) -> Tensor:
        """``Σ_k core[p, q, k] mix[b a, k]``, with outputs in the rows."""
        core = self.factors.core
        assert core is not None
        dtype = torch.promote_types(core.dtype, self.mix.dtype)
        mix = self.mix.to(dtype).reshape(self.blocks_out, self.blocks_in, -1)
        parts = torch.einsum("bak,pqk->bqap", mix, core.to(dtype))
        return parts.flatten(2).flatten(0, 1)


class FacT(Method):
    """FacT (arXiv 2212.03145): the changes of all layers as one factorised tensor, which folds into every layer.

    The weights of a ViT's queries, keys, values, outputs and MLPs are seen as one stack of ``d x d`` matrices, twelve a
    block. Two factors are shared by the whole stack; a layer learns what stands between them. The identity at the
    start. In a backbone of several widths, such as a Swin, each width has factors of its own.

    Args:
        form: ``tt`` for the tensor train, where each matrix has an ``r x r`` core of its own; ``tk`` for the Tucker
            form, where all cores are mixed from one ``r x r x r`` core.
        rank: ``r``; the paper chooses it by data set. A Tucker core of 32 takes about as much as a train of 16.
        scale: Factor ``s`` of the change; the paper chooses it by data set.
        dropout: Probability of dropping one of the numbers that reach ``v``, in training.
        targets: Regular expressions on module paths, each a full match.
    """

    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "FacT-TT": {"form": "tt", "rank": 16},
        "FacT-TK": {"form": "tk", "rank": 32},
    }

    def __init__(
        self,
        form: Form = "tt",
        rank: int = 16,
        scale: float = 1.0,
        dropout: float = 0.1,
        targets: Sequence[str] = (TARGETS,),
    ) -> None:
        super().__init__(targets=targets)
        if form not in ("tt", "tk"):
            raise ConfigError(f"FacT has form={form!r}", where="form", fix="choose tt or tk")
        if rank < 1:
            raise ConfigError(f"FacT has rank={rank}", where="rank", fix="give a positive number")
        if not math.isfinite(scale):
            raise ConfigError(f"FacT has scale={scale}", where="scale", fix="give a finite number")
        if not 0 <= dropout < 1:
            raise ConfigError(f"FacT has dropout={dropout}", where="dropout", fix="give a number in [0, 1)")
        self.form: Form = form
        self.rank, self.scale, self.dropout = rank, scale, dropout

    def shared(self, targets: Sequence[Target]) -> nn.ModuleDict:
        """Creates the factors ``<site>.<width>.u``, ``.v`` and ``.core``, in the order in which layers need them.

        Raises:
            NotMergeable: A layer is not made of square blocks.
        """
        stacks: dict[str, dict[str, list[Target]]] = {}
        for target in targets:
            stacks.setdefault(target.site, {}).setdefault(str(_width(target)), []).append(target)
        return nn.ModuleDict(
            {
                site: nn.ModuleDict({width: self._factors(int(width), stack) for width, stack in widths.items()})
                for site, widths in stacks.items()
            }
        )

    def _factors(self, width: int, stack: Sequence[Target]) -> Factors:
        matrices = sum(target.in_features * target.out_features for target in stack) // width**2
        return Factors(width, self.rank, self.form, matrices, stack[0])

    def build(self, target: Target, shared: nn.Module | None = None) -> FacTLayer:
        """Creates the adapter of one layer, between the factors of its width.

        Raises:
            ConfigError: ``shared`` is not what `shared` made for this layer's model.
        """
        try:
            factors = None if shared is None else shared.get_submodule(f"{target.site}.{_width(target)}")
        except AttributeError:
            factors = None
        if not isinstance(factors, Factors):
            raise ConfigError(
                "a FacT layer needs the factors of its width", where=target.path, fix="pass shared(targets)"
            )
        kind = TensorTrainLayer if self.form == "tt" else TuckerLayer
        return kind(target, factors, self.scale, self.dropout)


def _width(target: Target) -> int:
    """The width of a layer's square blocks: the smaller of its in and out features.

    Raises:
        NotMergeable: It does not divide the larger.
    """
    width = min(target.in_features, target.out_features)
    if max(target.in_features, target.out_features) % width:
        raise NotMergeable(
            f"its {target.out_features} x {target.in_features} weight is not made of square blocks",
            where=target.path,
            fix="leave it out with targets=",
        )
    return width
