"""Grouped connections beside a frozen layer: which of its weights they reach, and a step at nearly its own cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl.activations import functions_work, product_dtype, remade

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
        self._in_order = len(branches) == 1 and bool((branches[0] == index).all())
        for k, place in enumerate(() if self._in_order else places.split([len(branch) for branch in branches])):
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
        if self._in_order:
            return weights[0].flatten() if factors[0] == 1 else weights[0].flatten() * factors[0]
        total = weights[0].new_zeros(self.index.shape)
        for k, (weight, factor) in enumerate(zip(weights, factors, strict=True)):
            total = total.index_add(0, self.get_buffer(f"place_{k}"), weight.flatten(), alpha=factor)
        return total

    def reached(self, weight: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries of ``weight (out, in)`` with ``values (entries,)`` added, rounded to ``dtype`` once."""
        exact = torch.promote_types(weight.dtype, values.dtype)
        return (weight.reshape(-1)[self.index].to(exact) + values).to(dtype)

    def written(self, weight: Tensor, reached: Tensor) -> Tensor:
        """A copy of ``weight (out, in)``, in the dtype of ``reached (entries,)``, with these in their places."""
        flat = weight.reshape(-1).to(reached.dtype, copy=True)
        return flat.index_copy_(0, self.index, reached).view(weight.shape)

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
        ys = grad.reshape(tokens, wide, self.out_features // wide)
        xs = x.reshape(tokens, wide, self.in_features // wide)
        if self.out_features <= self.in_features:  # the narrower side first, which is faster
            products = torch.bmm(ys.permute(1, 2, 0), xs.transpose(0, 1))
            blocks = products.view(wide, groups // wide, -1, groups // wide, columns).diagonal(0, 1, 3)
            return blocks.permute(0, 3, 1, 2).reshape(self.out_features, columns)
        products = torch.bmm(xs.permute(1, 2, 0), ys.transpose(0, 1))
        blocks = products.view(wide, groups // wide, columns, groups // wide, -1).diagonal(0, 1, 3)
        return blocks.permute(0, 3, 2, 1).reshape(self.out_features, columns)


@dataclass(frozen=True)
class Part:
    """Samples of a batch (all, where None) that keep the same branches, and the factor of each branch for them."""

    samples: Tensor | None
    factors: tuple[float, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Tokens of these samples: ``(batch, ..., features)`` to ``(tokens, features)``."""
        return (tensor if self.samples is None else tensor[self.samples]).flatten(0, -2)


Parts = tuple[Part, ...]


def draw_parts(samples: int, branches: int, drop: float, device: torch.device) -> Parts:
    """Draws which branches each sample keeps; samples that keep the same ones share one merged weight."""
    if not drop or not samples:
        return (Part(None, (1.0,) * branches),)
    # On the CPU: Python has to know who goes together, and waiting for another device would cost more.
    kept = (torch.rand(samples, branches, device="cpu") >= drop).tolist()
    alike: dict[tuple[bool, ...], list[int]] = {}
    for sample, keeps in enumerate(kept):
        alike.setdefault(tuple(keeps), []).append(sample)
    return tuple(
        Part(
            None if len(members) == samples else torch.tensor(members, device="cpu").to(device),
            tuple(keep / (1 - drop) for keep in keeps),
        )
        for keeps, members in alike.items()
    )


def _joined(pieces: list[Tensor], parts: Parts, shape: tuple[int, ...]) -> Tensor:
    """Tokens of all parts, each ``(tokens, features)``, back in the order of their batch."""
    if parts[0].samples is None:
        if torch._C._get_tracing_state() is not None:  # a trace keeps only the sizes that it sees a view take
            return pieces[0].view(shape)
        # A view that a Function returns may not be changed in place, as an activation may want; nothing else sees this.
        whole: Tensor = torch.ops.aten._unsafe_view(pieces[0], shape)
        return whole
    out = pieces[0].new_empty(shape)
    for piece, part in zip(pieces, parts, strict=True):
        samples = cast(Tensor, part.samples)
        out[samples] = piece.view(len(samples), *shape[1:])
    return out


def merged_anew(
    x: Tensor, base: Tensor, pattern: Pattern, parts: Parts, biases: Sequence[Tensor | None], weights: Sequence[Tensor]
) -> Tensor:
    """``x (W + ΔW)ᵀ + b`` for each part of a batch, ``(batch, ..., in)`` to ``(batch, ..., out)``.

    Neither the merged weight nor its dense gradient is kept, nor ``x`` where it can be made again.

    Args:
        x: Inputs.
        base: The frozen weight, ``(out, in)``.
        pattern: Which of its entries the branches reach.
        parts: The samples of the batch, by the branches that they keep.
        biases: Of each part, ``(out,)`` or None.
        weights: Of each branch, ``(out, in/g)``.
    """
    if functions_work(x, base, *biases, *weights):
        out: Tensor = Merged.apply(x, base, pattern, parts, *biases, *weights)
        return out
    return _outputs(x, _entries(base, pattern, parts, weights, product_dtype(x)), base, pattern, parts, biases)


def _entries(
    base: Tensor, pattern: Pattern, parts: Parts, weights: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """For each part, the entries of its merged weight that its branches reach."""
    return [pattern.reached(base, pattern.sum(weights, part.factors), dtype) for part in parts]


def _outputs(
    x: Tensor, entries: list[Tensor], base: Tensor, pattern: Pattern, parts: Parts, biases: Sequence[Tensor | None]
) -> Tensor:
    x = x.to(entries[0].dtype)
    outs = [
        F.linear(part.of(x), pattern.written(base, reached), None if bias is None else bias.to(x.dtype))
        for part, reached, bias in zip(parts, entries, biases, strict=True)
    ]
    return _joined(outs, parts, (*x.shape[:-1], pattern.out_features))


class Merged(torch.autograd.Function):
    """What `merged_anew` does; merged in forward, and again in backward.

    The last arguments are the bias of each part, then the weight of each branch. This runs for every layer in every
    step: on a small model, each operation in it costs a thousandth of the step.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Tensor, pattern: Pattern, parts: Parts, *biases_and_weights: Tensor | None
    ) -> Tensor:
        """Output, ``(batch, ..., out)``, of ``x (batch, ..., in)``."""
        biases, weights = biases_and_weights[: len(parts)], cast(tuple[Tensor, ...], biases_and_weights[len(parts) :])
        learns = ctx.needs_input_grad[1] or any(ctx.needs_input_grad[4 + len(parts) :])
        ctx.source, kept = remade(x) if learns else (None, ())
        ctx.pattern, ctx.parts, ctx.like = pattern, parts, (x.shape, x.dtype)
        entries = _entries(base, pattern, parts, weights, product_dtype(x))
        ctx.save_for_backward(base, *weights, *entries, *kept)
        return _outputs(x, entries, base, pattern, parts, biases)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        pattern, parts, (shape, dtype) = cast(Pattern, ctx.pattern), cast(Parts, ctx.parts), ctx.like
        base, *saved = ctx.saved_tensors
        branches, first = len(pattern.groups), len(pattern.groups) + len(parts)
        weights, entries, kept = saved[:branches], saved[branches:first], saved[first:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # for a gradient of a gradient
            entries = _entries(base, pattern, parts, weights, entries[0].dtype)
        x = None if ctx.source is None else ctx.source.again(*kept).to(entries[0].dtype)
        of_weights = [torch.zeros_like(weight) for weight in weights]
        of_x, of_biases, of_base = [], [], torch.zeros_like(base) if ctx.needs_input_grad[1] else None
        for part, reached, biased in zip(parts, entries, ctx.needs_input_grad[4:], strict=False):
            rows = part.of(grad)
            of_biases.append(rows.sum(0, dtype=weights[0].dtype) if biased else None)
            if ctx.needs_input_grad[0]:
                of_x.append(rows @ pattern.written(base, reached))
            if x is None:
                continue
            inputs = part.of(x)
            for k, factor in enumerate(part.factors):
                if factor:
                    of_weights[k].add_(pattern.gradient(rows, inputs, pattern.groups[k]), alpha=factor)
            if of_base is not None:
                of_base.add_(rows.mT @ inputs)
        whole = _joined(of_x, parts, shape).to(dtype) if of_x else None
        return whole, of_base, None, None, *of_biases, *of_weights
