"""Bottlenecks with a non-linearity between their two layers: one behind the MLP of each block, one beside it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import Affine, ConfigError, Method, ModuleAdapter, NotMergeable, Target
from lightning_petl.adapter import JSON, Wraps

MLPS = r"(?:.*\.)?blocks\.\d+\.mlp"
"""The channel MLP of every block of a timm model."""


def probability(method: str, dropout: float) -> float:
    """A dropout probability, once it is known to be one.

    Raises:
        ConfigError: It is not in ``[0, 1)``.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"{method} has dropout={dropout}", where="dropout", fix="give a number in [0, 1)")
    return dropout


def require_one_width(target: Target, method: str) -> None:
    """Refuses a module whose output cannot be added to its input.

    Raises:
        NotMergeable: Its input and its output differ in width.
    """
    if target.in_features != target.out_features:
        widths = f"{target.in_features} features to {target.out_features}"
        raise NotMergeable(
            f"{method} needs a module of one width, and it maps {widths}", where=target.path, fix="target another"
        )


def require_tensor(value: object, path: str, method: str) -> Tensor:
    """A module's output, once it is known to be one tensor.

    Raises:
        NotMergeable: It is something else, such as the tuples of transformers' attention modules.
    """
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise NotMergeable(f"{method} needs a module that returns a tensor, not a {kind}", where=path)
    return value


class Bottleneck(ModuleAdapter):
    """``up(dropout(between(down(x))))`` for one module; what is between, and what is done with it, are a subclass's.

    The start is the identity: ``up`` and both biases are zero.

    Shapes, for width ``d`` and ``h`` hidden units: ``down.weight (h, d)``, ``down.bias (h)``, ``up.weight (d, h)``,
    ``up.bias (d)``.
    """

    def __init__(self, target: Target, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": target.device, "dtype": target.dtype}
        self.path, self.dropout = target.path, dropout
        self.down = nn.Linear(target.in_features, hidden_dim, **place)
        self.up = nn.Linear(hidden_dim, target.out_features, **place)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    @abstractmethod
    def between(self, hidden: Tensor) -> Tensor:
        """What is not linear, on ``(..., h)``."""

    def branch(self, x: Tensor) -> Tensor:
        """What is added, ``(..., d)`` to ``(..., d)``, in the dtype of ``x``."""
        hidden = self.between(Affine(self.down.weight, self.down.bias)(x))
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        return Affine(self.up.weight, self.up.bias)(hidden)


class HoulsbyLayer(Bottleneck):
    """The adapter behind one MLP: ``y + up(gelu(down(y)))`` for the MLP's output ``y``."""

    def __init__(self, target: Target, hidden_dim: int, dropout: float) -> None:
        super().__init__(target, hidden_dim, dropout)
        nn.init.xavier_uniform_(self.down.weight)

    def between(self, hidden: Tensor) -> Tensor:
        """GELU."""
        return F.gelu(hidden)

    def forward(self, x: Tensor, base: Callable[[Tensor], Any]) -> Tensor:
        """The module, then the adapter; shapes as the module's."""
        out = require_tensor(base(x), self.path, "HoulsbyAdapter")
        return out + self.branch(out)


class AdaptFormerBranch(Bottleneck):
    """The adapter beside one MLP: ``mlp(x) + s · up(relu(down(x)))``."""

    def __init__(self, target: Target, hidden_dim: int, scale: float, dropout: float) -> None:
        super().__init__(target, hidden_dim, dropout)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))

    def between(self, hidden: Tensor) -> Tensor:
        """ReLU."""
        return F.relu(hidden)

    def forward(self, x: Tensor, base: Callable[[Tensor], Any]) -> Tensor:
        """The module and the adapter, both from ``x``; shapes as the module's."""
        return require_tensor(base(x), self.path, "AdaptFormer") + self.scale * self.branch(x)


class HoulsbyAdapter(Method):
    """Adapter (Houlsby et al., arXiv 1902.00751), one behind the MLP of each block; it does not fold.

    Its place and size are those in which it is compared on vision transformers (NOAH, arXiv 2206.04673). NOAH's code
    takes a sigmoid approximation of GELU and starts both layers at random; here the start is the identity. The adapter
    is inside the block's residual branch, so LayerScale and drop-path act on its output too.

    Args:
        hidden_dim: Width ``h`` of the bottleneck.
        dropout: Probability of dropping a hidden unit in training.
        targets: Regular expressions on module paths, each a full match.
    """

    wraps: ClassVar[Wraps] = "module"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"Adapter h=8": {"hidden_dim": 8}}

    def __init__(self, hidden_dim: int = 8, dropout: float = 0.0, targets: Sequence[str] = (MLPS,)) -> None:
        super().__init__(targets=targets)
        if hidden_dim < 1:
            raise ConfigError(f"it has hidden_dim={hidden_dim}", where="hidden_dim", fix="give a positive number")
        self.hidden_dim, self.dropout = hidden_dim, probability("HoulsbyAdapter", dropout)

    def build(self, target: Target, shared: nn.Module | None = None) -> HoulsbyLayer:
        """Creates the adapter behind one module.

        Raises:
            NotMergeable: The module's input and output differ in width.
        """
        require_one_width(target, "HoulsbyAdapter")
        return HoulsbyLayer(target, self.hidden_dim, self.dropout)


class AdaptFormer(Method):
    """AdaptFormer (arXiv 2205.13535): a bottleneck beside the MLP of each block; it does not fold.

    The bottleneck reads what the MLP reads, behind the block's norm, as in the paper's equation. The official code
    gives it the residual stream in front of that norm, and leaves it out of drop-path, which acts on it here.

    Args:
        hidden_dim: Width ``h`` of the bottleneck; the paper uses 64, comparisons on VTAB-1k 8.
        scale: Factor ``s`` of the branch.
        dropout: Probability of dropping a hidden unit in training; 0.1 in the official code.
        targets: Regular expressions on module paths, each a full match.
    """

    wraps: ClassVar[Wraps] = "module"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "AdaptFormer-8": {"hidden_dim": 8},
        "AdaptFormer-16": {"hidden_dim": 16},
        "AdaptFormer-64": {"hidden_dim": 64},
    }

    def __init__(
        self,
        hidden_dim: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        targets: Sequence[str] = (MLPS,),
    ) -> None:
        super().__init__(targets=targets)
        if hidden_dim < 1:
            raise ConfigError(f"it has hidden_dim={hidden_dim}", where="hidden_dim", fix="give a positive number")
        if not math.isfinite(scale):
            raise ConfigError(f"AdaptFormer has scale={scale}", where="scale", fix="give a finite number")
        self.hidden_dim, self.scale, self.dropout = hidden_dim, scale, probability("AdaptFormer", dropout)

    def build(self, target: Target, shared: nn.Module | None = None) -> AdaptFormerBranch:
        """Creates the adapter beside one module.

        Raises:
            NotMergeable: The module's input and output differ in width.
        """
        require_one_width(target, "AdaptFormer")
        return AdaptFormerBranch(target, self.hidden_dim, self.scale, self.dropout)
