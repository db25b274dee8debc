"""IA3: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.

arXiv 2205.05638.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_petl import Adapter, Affine, Method, NotMergeable, Target

__all__ = ["IA3", "KeyValueScale", "UnitScale"]


class UnitScale(Adapter):
    """Rescales each input of a layer: ``y = W (scale * x) + b``.

    Attributes:
        scale: ``(in,)``, one at the start.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(target.in_features, device=target.device, dtype=target.dtype))

    def merged(self, base: Affine) -> Affine:
        """The columns of ``W``, scaled."""
        return Affine(base.weight * self.scale, base.bias)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Scales ``(..., in)`` rather than a whole weight."""
        return base(x * self.scale.to(x.dtype))


class KeyValueScale(Adapter):
    """Rescales the keys and the values of a fused projection to queries, keys and values; queries stay as they are.

    Attributes:
        scale: ``(2, width)``: of keys, then of values, one at the start.
    """

    scale: nn.Parameter

    def __init__(self, target: Target) -> None:
        super().__init__()
        width = target.out_features // 3
        self.scale = nn.Parameter(torch.ones(2, width, device=target.device, dtype=target.dtype))

    def _rows(self) -> Tensor:
        """A factor for each output, ``(3 * width,)``."""
        return torch.cat([torch.ones_like(self.scale[0]), self.scale.flatten()])

    def merged(self, base: Affine) -> Affine:
        """The rows of keys and values scaled, and their biases with them."""
        return base.scaled(self._rows())

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """Scales ``(..., 3 * width)`` rather than a whole weight."""
        return base(x) * self._rows().to(x.dtype)


class IA3(Method):
    """IA3 (arXiv 2205.05638): learned rescaling of keys, values and the MLP's hidden units; the identity at the start.

    A layer called ``qkv`` is taken for a fused projection: the last two thirds of its outputs, keys and values, are
    rescaled. Of any other layer the inputs are: in front of an MLP's second layer, these are its hidden units.

    Args:
        targets: Regular expressions, each a full match on module paths.
    """

    def __init__(self, targets: Sequence[str] = (r".*\.(?:qkv|fc2)",)) -> None:
        super().__init__(targets=targets)

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        """Creates the adapter of one layer.

        Raises:
            NotMergeable: A layer called ``qkv`` has outputs that are no three equal parts.
        """
        if target.path.rpartition(".")[2] != "qkv":
            return UnitScale(target)
        if target.out_features % 3:
            raise NotMergeable(
                f"its {target.out_features} outputs are no queries, keys and values of one width",
                where=target.path,
                fix="leave it out with targets=",
            )
        return KeyValueScale(target)
