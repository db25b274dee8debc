"""Template: one sentence on the method, and where it is published."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_petl import Adapter, Affine, ConfigError, Method, Target

__all__ = ["Template", "TemplateAdapter"]


class TemplateAdapter(Adapter):
    """What the method adds to one layer. Here: a learned factor ``1 + strength * gain`` for each of its outputs.

    Everything that is learned is a parameter, created on ``target.device`` and in ``target.dtype``.

    Attributes:
        gain: ``(out,)``, zero at the start, so that the layer is as it was.
    """

    def __init__(self, target: Target, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.gain = nn.Parameter(torch.zeros(target.out_features, device=target.device, dtype=target.dtype))

    def merged(self, base: Affine) -> Affine:
        """The definition: the affine map of layer and adapter together, with ``base.weight (out, in)``.

        It is exact, and changes neither ``base`` nor this adapter. `Affine` has the algebra: ``a.after(b)``, ``a + b``,
        ``a.scaled(factor)``, ``a.rows(start, stop)``.
        """
        return base.scaled(1 + self.strength * self.gain)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        """The same map, cheaper: ``(..., in)`` to ``(..., out)``, in the dtype of ``x``. May be left out."""
        return base(x) * (1 + self.strength * self.gain).to(x.dtype)


class Template(Method):
    """Template: what a user reads in ``lightning-petl methods --check`` and ``--model.method.help Template``.

    Args:
        strength: How strongly the learned numbers act. Arguments are plain values, since adapter files keep them.
        targets: Regular expressions on module paths, each a full match: the layers that are adapted.
    """

    def __init__(self, strength: float = 1.0, targets: Sequence[str] = (r".*\.fc[12]",)) -> None:
        super().__init__(targets=targets)
        if strength == 0:
            raise ConfigError("Template has strength=0", where="strength", fix="give another number")
        self.strength = strength

    def build(self, target: Target, shared: nn.Module | None = None) -> TemplateAdapter:
        """Creates the adapter of one layer; ``target`` has its path, widths, device and dtype."""
        return TemplateAdapter(target, self.strength)
