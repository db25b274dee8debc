"""The two thin matrix products of a low-rank adapter, into a few units and out of them again, and dropout.

They are F.linear and F.dropout. What is different is their backward pass: the first product keeps no input that can be
made again, both multiply in the order that is fast where one side is thin, and dropout keeps one byte a number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_petl.activations import Remade, Saved, functions_work, itself, product_dtype, remade
from lightning_petl.affine import Affine


def narrowed(x: Tensor, by: Affine, drop: float = 0.0) -> Tensor:
    """``by(x)``, ``(..., in)`` to ``(..., few)``, which keeps no ``x`` for the gradient of ``by`` if it need not.

    It need not where ``x`` comes straight out of a LayerNorm or a GELU. Anywhere else, and under compilers, tracers,
    torch.func and checkpointing, this is plain autograd.

    Args:
        x: Inputs.
        by: The map; only the gradients of its own tensors need ``x``.
        drop: Probability of dropping an input.
    """
    learns = torch.is_grad_enabled() and by.weight.requires_grad and not torch.compiler.is_compiling()
    if learns and functions_work(x, by.weight, by.bias):
        source, saved = remade(x)
        if source.remake is not itself:
            bias = None if by.bias is None else by.bias.to(x.dtype)
            out: Tensor = _Narrowed.apply(x, by.weight.to(x.dtype), bias, source, saved, drop)
            return out
    return by(dropped(x, drop))


def dropped(x: Tensor, drop: float) -> Tensor:
    """F.dropout in training, the same random numbers, with what it drops kept as booleans on every device."""
    return torch.native_dropout(x, drop, True)[0] if drop else x


def widened(hidden: Tensor, by: Affine) -> Tensor:
    """``by(hidden)``, ``(..., few)`` to ``(..., out)``.

    The weight is laid out column by column: autograd then multiplies ``(few, tokens)`` by ``(tokens, out)`` for its
    gradient. On a CPU, ``(out, tokens)`` by ``(tokens, few)`` takes eight times as long; measured.
    """
    return Affine(by.weight.mT.contiguous().mT, by.bias)(hidden)


class _Narrowed(torch.autograd.Function):
    """Dropout, then F.linear, which makes its input again in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, source: Remade, saved: Saved, drop: float
    ) -> Tensor:
        """Output, ``(..., few)``, of ``x (..., in)``."""
        ctx.source, ctx.scale, ctx.like = source, 1 / (1 - drop), (x.dtype, weight.dtype)
        x, mask = torch.native_dropout(x, drop, True) if drop else (x, None)
        ctx.save_for_backward(weight, mask, *saved)
        dtype = product_dtype(x)
        out = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        # A view that a Function returns may not be changed in place; nothing else sees this one.
        plain: Tensor = torch.ops.aten._unsafe_view(out, out.shape)
        return plain

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        weight, mask, *saved = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.like
        rows, of_x = grad.reshape(-1, grad.shape[-1]), (grad @ weight.to(grad.dtype)).to(x_dtype)
        if mask is None:
            of_weight = ctx.source.product(rows, *saved)
        else:
            of_x = torch.ops.aten.native_dropout_backward(of_x, mask, ctx.scale)
            x = torch.ops.aten.native_dropout_backward(ctx.source.again(*saved), mask, ctx.scale)
            of_weight = rows.mT @ x.to(rows.dtype).reshape(-1, x.shape[-1])
        of_bias = rows.sum(0).to(weight_dtype) if ctx.needs_input_grad[2] else None
        return of_x, of_weight.to(weight_dtype), of_bias, None, None, None
