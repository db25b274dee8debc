"""The value that the whole package computes with: an affine map over features, and its algebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch's own documentation uses
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``y = x Wᵀ + b`` over the last axis of ``x``, stored as ``torch.nn.Linear`` stores it.

    The algebra never writes to its operands, and mixed dtypes promote to the wider one.

    Attributes:
        weight: ``(out, in)``.
        bias: ``(out,)``, or None for a map without one.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuses shapes that are no affine map.

        Raises:
            ValueError: weight is not two-dimensional, or bias is not ``(out,)``.
        """
        if self.weight.dim() != 2:
            raise ValueError(f"an affine map's weight is (out, in), not {tuple(self.weight.shape)}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(f"bias {tuple(self.bias.shape)} does not fit weight {tuple(self.weight.shape)}")

    @classmethod
    def identity(cls, features: int, like: Tensor) -> Affine:
        """The map ``y = x`` over ``features`` features, in the dtype and on the device of ``like``."""
        return cls(torch.eye(features, dtype=like.dtype, device=like.device))

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    @property
    def linear(self) -> Affine:
        """The same map without its bias."""
        return Affine(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Applies the map in the dtype of ``x``: ``(..., in)`` to ``(..., out)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def after(self, first: Affine) -> Affine:
        """The map that applies ``first``, then this one: ``W W₁`` and ``W b₁ + b``."""
        dtype = torch.promote_types(self.weight.dtype, first.weight.dtype)
        weight = self.weight.to(dtype)
        moved = None if first.bias is None else weight @ first.bias.to(dtype)
        return Affine(weight @ first.weight.to(dtype), _sum(self.bias, moved))

    def __add__(self, other: Affine) -> Affine:
        """The map whose output is the sum of both outputs."""
        return Affine(self.weight + other.weight, _sum(self.bias, other.bias))

    def scaled(self, factor: float | Tensor) -> Affine:
        """The map with its output multiplied by ``factor``, a number or one value per output, ``(out,)``."""
        rows = factor.unsqueeze(1) if isinstance(factor, Tensor) and factor.dim() else factor
        return Affine(self.weight * rows, None if self.bias is None else self.bias * factor)

    def rows(self, start: int, stop: int) -> Affine:
        """The outputs ``start`` to ``stop``: for one of q, k, v in a fused projection."""
        return Affine(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    @classmethod
    def stacked(cls, maps: Sequence[Affine]) -> Affine:
        """The map that gives the outputs of several maps of one input, one after the other; `rows` takes them apart."""
        weight = torch.cat([each.weight for each in maps])
        if all(each.bias is None for each in maps):
            return cls(weight)
        zeros = [each.weight.new_zeros(each.out_features) if each.bias is None else each.bias for each in maps]
        return cls(weight, torch.cat(zeros))

    def to(self, dtype: torch.dtype) -> Affine:
        """The same map, rounded or widened to ``dtype``."""
        return Affine(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def relative_error(expected: Tensor, found: Tensor) -> float:
    """Largest difference of two float64 tensors, relative to the largest expected value; NaN where either holds one."""
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((expected - found).abs().max() / scale)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Adds two biases of which either may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
