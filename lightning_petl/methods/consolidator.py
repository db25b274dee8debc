"""Consolidator: Hao et al., Consolidator: Mergeable Adapter with Grouped Connections, arXiv 2305.00603 (ICLR 2023)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_petl.activations import origin, product_dtype
from lightning_petl.adapter import JSON, Adapter, Method, Separate, Target
from lightning_petl.affine import Affine
from lightning_petl.errors import ConfigError, NotMergeable

INIT = 1e-3
"""Branches start uniform in ``[-INIT, INIT]``, as in the reference: near the identity, and not the identity."""

BLOCK_LAYERS = (
    # Below a numbered block: timm's names, with q, k and v fused or not, the MLPs of torchvision and OpenCLIP, and what
    # transformers calls them. An attention pool, a mixer's mlp_tokens, Swin's reduction and cpb_mlp are not among them.
    r"(?:.*[._])?\d+\.(?:.*\.)?(?:attn\.(?:qkv|q|k|v|kv|q_proj|k_proj|v_proj|proj)"
    r"|(?:mlp|mlp_channels|ffn)\.(?:fc1|fc1_g|fc1_x|fc2|w12|w1|w2|w3|up_proj|gate_proj|down_proj|0|3|c_fc|c_proj)"
    r"|attention\.attention\.(?:query|key|value)|(?:intermediate|output)\.dense)"
)
"""Full match on the fully connected layers of every block."""

_BLOCK = re.compile(r"((?:.*\.)?(?:\w*_)?\d+)\.")
_NARROWEST = 16  # a matrix product of fewer channels costs as much as one of these; measured


class Pattern(nn.Module):
    """Which entries of a layer's weight its branches reach; a function of widths, group counts and shuffle alone.

    Branch ``k`` cuts the input channels, shuffled or not, into ``g`` groups, and the outputs too; output group ``j``
    reads input group ``j`` only. The shuffle moves channel ``a·(in/g) + c`` to position ``c·g + a``.

    Attributes:
        index: Flat positions in ``(out, in)`` that any branch reaches, ascending: ``(entries,)``.
    """

    index: Tensor

    def __init__(
        self, in_features: int, out_features: int, groups: tuple[int, ...], shuffle: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.groups, self.shuffle = groups, shuffle
        self._lay_out(device)

    def _lay_out(self, device: torch.device) -> None:
        # Always counted on the CPU: on the meta device, sizes that depend on values do not exist.
        branches = [self._entries(groups).flatten() for groups in self.groups]
        index, places = torch.unique(torch.cat(branches), return_inverse=True)
        self.register_buffer("index", index.to(device), persistent=False)
        for k, place in enumerate(places.split([len(branch) for branch in branches])):
            self.register_buffer(f"place_{k}", place.to(device), persistent=False)

    def _entries(self, groups: int) -> Tensor:
        """Flat position in the dense weight of each entry of a branch's weight, ``(out, in/g)``."""
        channel = torch.arange(self.in_features, device="cpu").view(groups, 1, -1)
        if self.shuffle:
            channel = channel % groups * (self.in_features // groups) + channel // groups
        row = torch.arange(self.out_features, device="cpu").view(groups, -1, 1)
        return (row * self.in_features + channel).flatten(0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out(self.index.device)  # to_empty() leaves buffers without their values
        return self

    def sum(self, weights: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
        """The branches' weights, each ``(out, in/g)``, times their factors, added up into ``(entries,)``."""
        total = weights[0].new_zeros(self.index.shape)
        for k, (weight, factor) in enumerate(zip(weights, factors, strict=True)):
            total = total.index_add(0, self.get_buffer(f"place_{k}"), weight.flatten(), alpha=factor)
        return total

    def add(self, weight: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of ``weight (out, in)`` with ``values (entries,)`` added, rounded to ``dtype`` once."""
        reached = weight.reshape(-1)[self.index].to(torch.promote_types(weight.dtype, values.dtype)) + values
        flat = weight.reshape(-1).to(dtype, copy=True)
        return flat.index_copy_(0, self.index, reached.to(dtype)).view(weight.shape)

    def gradient(self, grad: Tensor, x: Tensor, groups: int) -> Tensor:
        """Gradient of one branch's weight, ``(out, in/g)``, from ``grad (tokens, out)`` and ``x (tokens, in)``.

        A group is too narrow for a fast matrix product. Several are taken together, and the blocks between different
        groups thrown away: a few per cent of the dense gradient's cost, and nothing of its size.
        """
        tokens, columns = len(x), self.in_features // groups
        if self.shuffle:
            x = x.reshape(tokens, groups, columns).mT.reshape(tokens, self.in_features)
        most = max(1, min(self.in_features, self.out_features) // _NARROWEST)
        wide = max(count for count in range(1, min(groups, most) + 1) if groups % count == 0)
        ys, xs = (each.reshape(tokens, wide, each.shape[1] // wide).transpose(0, 1) for each in (grad, x))
        # The narrower side first, which is faster.
        products = ys.mT @ xs if ys.shape[2] <= xs.shape[2] else (xs.mT @ ys).mT
        blocks = products.reshape(wide, groups // wide, -1, groups // wide, columns).diagonal(dim1=1, dim2=3)
        return blocks.permute(0, 3, 1, 2).reshape(self.out_features, columns)


@dataclass(frozen=True)
class _Part:
    """Samples of a batch (all, where None) that keep the same branches, and the factor of each branch for them."""

    samples: Tensor | None
    factors: tuple[float, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Tokens of these samples: ``(batch, ..., features)`` to ``(tokens, features)``."""
        return (tensor if self.samples is None else tensor[self.samples]).flatten(0, -2)


_Parts = tuple[_Part, ...]


def _parts(samples: int, branches: int, drop: float, device: torch.device) -> _Parts:
    """Draws which branches each sample keeps; samples that keep the same ones share one merged weight."""
    if not drop or not samples:
        return (_Part(None, (1.0,) * branches),)
    # On the CPU: Python has to know who goes together, and waiting for another device would cost more.
    kept = (torch.rand(samples, branches, device="cpu") >= drop).tolist()
    alike: dict[tuple[bool, ...], list[int]] = {}
    for sample, keeps in enumerate(kept):
        alike.setdefault(tuple(keeps), []).append(sample)
    return tuple(
        _Part(
            None if len(members) == samples else torch.tensor(members, device="cpu").to(device),
            tuple(keep / (1 - drop) for keep in keeps),
        )
        for keeps, members in alike.items()
    )


def _joined(pieces: list[Tensor], parts: _Parts, shape: tuple[int, ...]) -> Tensor:
    """Tokens of all parts, each ``(tokens, features)``, back in the order of their batch."""
    if parts[0].samples is None:
        return pieces[0].view(shape)
    out = pieces[0].new_empty(shape)
    for piece, part in zip(pieces, parts, strict=True):
        out[part.samples] = piece.view(-1, *shape[1:])
    return out


class _Merged(torch.autograd.Function):
    """``x (W + ΔW)ᵀ + b`` for each part of a batch, merged anew in forward and in backward.

    Neither the merged weight nor its dense gradient is kept, nor ``x`` where it can be made again. ``shifts`` are the
    biases of the parts, ``(parts, out)``; ``weights`` are those of the branches.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Tensor, shifts: Tensor | None, pattern: Pattern, parts: _Parts, *weights: Tensor
    ) -> Tensor:
        learns = ctx.needs_input_grad[1] or any(ctx.needs_input_grad[5:])
        ctx.remake, kept = origin(x) if learns else (None, ())
        ctx.pattern, ctx.parts, ctx.like = pattern, parts, (x.shape, x.dtype, product_dtype(x))
        changes = [pattern.sum(weights, part.factors) for part in parts]
        ctx.save_for_backward(base, *changes, *kept)
        outs, x = [], x.to(product_dtype(x))
        for k, (part, change) in enumerate(zip(parts, changes, strict=True)):
            bias = None if shifts is None else shifts[k].to(x.dtype)
            outs.append(F.linear(part.of(x), pattern.add(base, change, x.dtype), bias))
        return _joined(outs, parts, (*x.shape[:-1], pattern.out_features))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pattern, parts, (shape, x_dtype, dtype) = cast(Pattern, ctx.pattern), cast(_Parts, ctx.parts), ctx.like
        base, *saved = ctx.saved_tensors
        changes, kept = saved[: len(parts)], saved[len(parts) :]
        x = None if ctx.remake is None else ctx.remake(*kept).to(dtype)
        of_weights = [changes[0].new_zeros(pattern.out_features, pattern.in_features // g) for g in pattern.groups]
        of_base = torch.zeros_like(base) if ctx.needs_input_grad[1] else None
        of_x, of_shifts = [], []
        for part, change in zip(parts, changes, strict=True):
            rows = part.of(grad)
            of_shifts.append(rows.sum(0, dtype=change.dtype))
            if ctx.needs_input_grad[0]:
                of_x.append(rows @ pattern.add(base, change, dtype))
            if x is None:
                continue
            for k, factor in enumerate(part.factors):
                if factor:
                    of_weights[k].add_(pattern.gradient(rows, part.of(x), pattern.groups[k]), alpha=factor)
            if of_base is not None:
                of_base.add_(rows.mT @ part.of(x))
        whole = _joined(of_x, parts, shape).to(x_dtype) if of_x else None
        return whole, of_base, torch.stack(of_shifts) if ctx.needs_input_grad[2] else None, None, None, *of_weights


class Branch(nn.Module):
    """One grouped connection: a linear layer whose weight is block diagonal, stored by its blocks.

    Attributes:
        weight: ``(out, in / groups)``.
        bias: ``(out,)``, or None.
    """

    def __init__(self, target: Target, groups: int, bias: bool) -> None:
        super().__init__()
        rows, columns = target.out_features, target.in_features // groups
        self.weight = nn.Parameter(torch.empty(rows, columns, device=target.device, dtype=target.dtype))
        self.bias = nn.Parameter(torch.empty(rows, device=target.device, dtype=target.dtype)) if bias else None
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -INIT, INIT)


class ConsolidatorLayer(Adapter):
    """Grouped connections beside one layer: ``y = W x + b + Σ_k DropPath(C_k(S_k(x)))``.

    ``S`` is the optional shuffle of input channels, ``C`` the grouped layer. Each branch is dropped for a sample as a
    whole, its bias too, and independently of the others; the frozen layer's own output never is. A sample is an index
    of the input's first axis, which for window attention is a window.

    Attributes:
        branches: One `Branch` per group count.
        base_bias: ``(out,)``, what training added to the layer's own bias; None where that stays frozen.
    """

    def __init__(
        self, target: Target, groups: tuple[int, ...], shuffle: bool, drop_path: float, bias: bool, base_bias: bool
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.pattern = Pattern(target.in_features, target.out_features, groups, shuffle, target.device)
        self.branches = nn.ModuleList([Branch(target, count, bias) for count in groups])
        zeros = torch.zeros(target.out_features, device=target.device, dtype=target.dtype) if base_bias else None
        self.base_bias = None if zeros is None else nn.Parameter(zeros)

    def _weights(self) -> list[Tensor]:
        return [cast(Branch, branch).weight for branch in self.branches]

    def _bias(self, factors: Sequence[float], base: Tensor | None = None) -> Tensor | None:
        """The biases of all branches times their factors, with the layer's own, ``(out,)``."""
        biases = [base, self.base_bias, *(cast(Branch, branch).bias for branch in self.branches)]
        total: Tensor | None = None
        for bias, factor in zip(biases, (1.0, 1.0, *factors), strict=True):
            if bias is not None:
                total = bias * factor if total is None else torch.add(total, bias, alpha=factor)
        return total

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """One matrix product with the merged weight; with drop-path, one for each way in which samples drop branches.

        In training, the dense weight's gradient is never formed, and no activation is kept that the frozen backbone
        does not keep, if ``x`` comes straight out of a LayerNorm or a GELU.
        """
        if x.dim() == 1:
            return self.forward(x.unsqueeze(0), base).squeeze(0)
        drop = self.drop_path if self.training else 0.0
        parts = _parts(x.shape[0], len(self.branches), drop, x.device)
        biases = [bias for part in parts if (bias := self._bias(part.factors, base.bias)) is not None]
        shifts = torch.stack(biases) if biases else None
        out: Tensor = _Merged.apply(x, base.weight, shifts, self.pattern, parts, *self._weights())
        return out

    def merged(self, base: Affine) -> Affine:
        """``W + Σ_k ΔW_k`` and ``b + Σ_k β_k``; ``ΔW_k`` is block diagonal, its columns put back in order."""
        return _plus(base, self.pattern, *self._summed())

    def _summed(self) -> tuple[Tensor, Tensor | None]:
        every = (1.0,) * len(self.branches)
        return self.pattern.sum(self._weights(), every), self._bias(every)

    def consolidated(self) -> Consolidated:
        """All branches added up, on the entries that any of them reaches; equal, and never larger."""
        with torch.no_grad():
            return Consolidated(self.pattern, *self._summed())


class Consolidated(Adapter):
    """What is stored: one sparse matrix and one bias.

    Attributes:
        values: The sum of the branches on the union of their patterns, row by row: ``(entries,)``.
        bias: ``(out,)``, or None where nothing trained a bias.
    """

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pattern = pattern
        self.values = nn.Parameter(values)
        self.bias = None if bias is None else nn.Parameter(bias)

    def merged(self, base: Affine) -> Affine:
        """``W`` plus the sparse matrix, ``b`` plus the bias."""
        return _plus(base, self.pattern, self.values, self.bias)


def _plus(base: Affine, pattern: Pattern, values: Tensor, bias: Tensor | None) -> Affine:
    dtype = torch.promote_types(base.weight.dtype, values.dtype)
    added = base.bias if bias is None else bias if base.bias is None else base.bias + bias
    return Affine(pattern.add(base.weight, values, dtype), added)


class Consolidator(Method):
    """Consolidator (arXiv 2305.00603): grouped connections beside every fully connected layer, added up for storage.

    Not the identity at initialisation: weights and biases of the branches start uniform in ``[-0.001, 0.001]``.

    Args:
        groups: Group counts, one branch each; the paper's ViT-B has ``(384,)``. None for half the width of each layer,
            where a layer's width is the smaller of its in and out features.
        channel_shuffle: Whether a branch reads the input channels shuffled.
        drop_path: Probability of dropping a branch for a sample in training, 0 to 0.8 in the paper by data set.
        bias: Whether branches have biases.
        train_norms_and_biases: Whether to train the norms of the blocks, the final norm, and the biases of the blocks
            too, as the official recipe does. An adapted layer's own bias is trained as a change that starts at zero,
            ``base_bias``, beside that of the branches; this equals training it in place under an optimizer without
            weight decay on biases, as the recipe's is.
        targets: Regular expressions on module paths; the fully connected layers of every block where left out.
    """

    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"Consolidator g=384": {"groups": [384]}}
    separate: ClassVar[Separate] = "each"

    def __init__(
        self,
        groups: Sequence[int] | None = None,
        channel_shuffle: bool = False,
        drop_path: float = 0.0,
        bias: bool = True,
        train_norms_and_biases: bool = False,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets=(BLOCK_LAYERS,) if targets is None else targets)
        if not 0 <= drop_path < 1:
            raise ConfigError(f"Consolidator has drop_path={drop_path}", where="drop_path", fix="give one in [0, 1)")
        self.groups = None if groups is None else _counts(groups)
        self.channel_shuffle, self.drop_path, self.bias = channel_shuffle, drop_path, bias
        self.train_norms_and_biases = train_norms_and_biases

    def build(self, target: Target, shared: nn.Module | None = None) -> ConsolidatorLayer:
        """Creates the branches of one layer.

        Raises:
            NotMergeable: A group count does not divide both widths of the layer.
        """
        width = min(target.in_features, target.out_features)
        groups = (max(1, width // 2),) if self.groups is None else self.groups
        for count in groups:
            inputs, outputs = target.in_features, target.out_features
            if inputs % count or outputs % count:
                raise NotMergeable(
                    f"{count} groups do not divide both {inputs} input and {outputs} output features",
                    where=target.path,
                    fix="choose groups that divide both widths of every adapted layer, or other layers with targets=",
                )
        base_bias = self.train_norms_and_biases and target.has_bias
        return ConsolidatorLayer(target, groups, self.channel_shuffle, self.drop_path, self.bias, base_bias)

    def trained(self, model: nn.Module) -> Iterable[str]:
        """With ``train_norms_and_biases``: norms in blocks and after them, and biases in blocks of unadapted layers."""
        if not self.train_norms_and_biases:
            return ()
        paths = [path for path, _ in model.named_modules()]
        adapted = {path for path in paths if any(re.fullmatch(pattern, path) for pattern in self.targets or ())}
        blocks = tuple({f"{match[1]}." for path in adapted if (match := _BLOCK.match(path))})
        last = max((place for place, path in enumerate(paths) if path.startswith(blocks)), default=len(paths))
        names = []
        for place, (path, module) in enumerate(model.named_modules()):
            inside, norm = path.startswith(blocks), "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(path, recurse=False):
                of_norm = norm and (inside or place > last)
                if parameter.dim() == 1 and path not in adapted and (of_norm or (inside and name.endswith("bias"))):
                    names.append(name)
        return names


def _counts(groups: Sequence[int]) -> tuple[int, ...]:
    """Group counts as a tuple of positive whole numbers."""
    whole = not isinstance(groups, int | str) and all(type(count) is int and count > 0 for count in groups)
    if not whole or not groups:
        raise ConfigError(
            f"Consolidator has groups={groups!r}", where="groups", fix="give a list of positive numbers, as in [384]"
        )
    return tuple(groups)
