"""Convpass: Jie and Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, arXiv 2207.07039."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import ConfigError, Method, NotMergeable, Target
from lightning_petl.adapter import JSON, Wraps
from petl_classics.bottleneck import Bottleneck, probability, require_one_width, require_tensor

MODULES = {"attn": r"(?:.*\.)?blocks\.\d+\.attn", "mlp": r"(?:.*\.)?blocks\.\d+\.mlp"}
"""What a bypass can go around, in every block of a timm model."""

Around = Literal["attn", "mlp"]


class ConvpassBranch(Bottleneck):
    """The bypass of one module: ``module(x) + s · up(dropout(act(conv(act(down(x))))))``.

    ``conv`` is 3x3 on the grid of patches, padded with zeros. Each token in front of the patches is a 1x1 image of its
    own, of which the kernel sees but its centre. ``conv`` starts as the identity. Shapes as in `Bottleneck`, and
    ``conv.weight (h, h, 3, 3)``, ``conv.bias (h)``.
    """

    def __init__(
        self, target: Target, hidden_dim: int, scale: float, dropout: float, prefix: int, grid: tuple[int, int] | None
    ) -> None:
        super().__init__(target, hidden_dim, dropout)
        self.scale, self.prefix, self.grid = scale, prefix, grid
        nn.init.xavier_uniform_(self.down.weight)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, device=target.device, dtype=target.dtype)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def between(self, hidden: Tensor) -> Tensor:
        """GELU, the convolution, GELU, on ``(batch, tokens, h)``; the official code's approximation by a sigmoid."""
        return _quick_gelu(self._convolved(_quick_gelu(hidden)))

    def _convolved(self, hidden: Tensor) -> Tensor:
        prefix, patches = hidden[:, : self.prefix], hidden[:, self.prefix :].mT
        weight, bias = (tensor.to(hidden.dtype) for tensor in (self.conv.weight, cast(Tensor, self.conv.bias)))
        grid = self._grid(hidden.shape[1])
        image = F.conv2d(patches.reshape(*patches.shape[:2], *grid), weight, bias, padding=1)
        return torch.cat([F.linear(prefix, weight[:, :, 1, 1], bias), image.flatten(2).mT], dim=1)

    def _grid(self, tokens: int) -> tuple[int, int]:
        """Height and width of the grid of patches.

        Raises:
            NotMergeable: The tokens do not make up that grid.
        """
        patches = tokens - self.prefix
        side = math.isqrt(max(patches, 0))
        grid = self.grid or (side, side)
        if patches < 1 or grid[0] * grid[1] != patches:
            wanted = "a square" if self.grid is None else f"{grid[0]} x {grid[1]} patches"
            raise NotMergeable(
                f"{tokens} tokens are not {self.prefix} and {wanted}", where=self.path, fix="set prefix_tokens and grid"
            )
        return grid

    def forward(self, x: Tensor, base: Callable[[Tensor], Any]) -> Tensor:
        """The module and its bypass, both from ``x (batch, tokens, d)``; shapes as the module's.

        Raises:
            NotMergeable: ``x`` has another number of axes, or its tokens do not make up the grid.
        """
        if x.dim() != 3:
            raise NotMergeable(f"Convpass needs (batch, tokens, features), and it sees {x.dim()} axes", where=self.path)
        return require_tensor(base(x), self.path, "Convpass") + self.scale * self.branch(x)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class Convpass(Method):
    """Convpass (arXiv 2207.07039): convolutional bypasses around attention and MLP; it does not fold.

    For backbones whose blocks all see one grid of patches, as a plain ViT's do. One of windows or stages, as a Swin, is
    refused: its attention sees pieces of the grid. A bypass is inside the block's residual branch, so LayerScale and
    drop-path act on it together with the module that it goes around.

    Args:
        hidden_dim: Channels ``h`` of the convolution.
        scale: Factor ``s`` of the bypass; the paper searches {0.01, 0.1, 1, 10, 100} per data set.
        dropout: Probability of dropping a hidden unit in training; 0.1 in the official code.
        around: ``("attn", "mlp")``, or ``("attn",)`` for the paper's attention-only variant.
        prefix_tokens: Number of tokens in front of the patches: class and register tokens.
        grid: Height and width of the grid of patches; a square where left out.
        targets: Regular expressions on module paths, each a full match; they override ``around``.
    """

    wraps: ClassVar[Wraps] = "module"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {"Convpass h=8": {"hidden_dim": 8}}

    def __init__(
        self,
        hidden_dim: int = 8,
        scale: float = 1.0,
        dropout: float = 0.1,
        around: Sequence[Around] = ("attn", "mlp"),
        prefix_tokens: int = 1,
        grid: Sequence[int] | None = None,
        targets: Sequence[str] | None = None,
    ) -> None:
        unknown = [name for name in around if name not in MODULES]
        if unknown or not around or isinstance(around, str):
            raise ConfigError(f"Convpass goes around {around!r}", where="around", fix="choose among attn and mlp")
        super().__init__(targets=[MODULES[name] for name in around] if targets is None else targets)
        if hidden_dim < 1:
            raise ConfigError(f"it has hidden_dim={hidden_dim}", where="hidden_dim", fix="give a positive number")
        if not math.isfinite(scale):
            raise ConfigError(f"Convpass has scale={scale}", where="scale", fix="give a finite number")
        if prefix_tokens < 0:
            raise ConfigError(f"it has prefix_tokens={prefix_tokens}", where="prefix_tokens", fix="give 0 or more")
        self.hidden_dim, self.scale, self.dropout = hidden_dim, scale, probability("Convpass", dropout)
        self.prefix_tokens, self.grid = prefix_tokens, None if grid is None else _pair(grid)

    def build(self, target: Target, shared: nn.Module | None = None) -> ConvpassBranch:
        """Creates the bypass of one module.

        Raises:
            NotMergeable: The module's input and output differ in width.
        """
        require_one_width(target, "Convpass")
        return ConvpassBranch(target, self.hidden_dim, self.scale, self.dropout, self.prefix_tokens, self.grid)

    def trained(self, model: nn.Module) -> Iterable[str]:
        """Nothing of the backbone. Here it is seen as a whole, so what it says of its tokens is compared here.

        Raises:
            NotMergeable: Its prefix tokens or its grid are not those of the arguments, or its blocks see no fixed grid.
        """
        found = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        prefix = getattr(model, "num_prefix_tokens", None)
        if found is not None and prefix is None:
            raise NotMergeable(
                "this backbone does not say how many tokens stand in front of its patches: one of windows or stages",
                where=type(model).__name__,
                fix="Convpass needs a plain ViT",
            )
        if prefix is not None and prefix != self.prefix_tokens:
            raise NotMergeable(
                f"this backbone has {prefix} tokens in front of its patches, not {self.prefix_tokens}",
                where="prefix_tokens",
                fix=f"set prefix_tokens={prefix}",
            )
        self._compare_grid(model, found)
        return ()

    def _compare_grid(self, model: nn.Module, found: Sequence[int] | None) -> None:
        if self.grid is None and getattr(model, "dynamic_img_size", False):
            raise NotMergeable(
                "this backbone takes images of any shape, so the grid cannot be told from the number of tokens",
                where="grid",
                fix="set grid=[height, width], in patches",
            )
        if found is not None and not getattr(model, "dynamic_img_size", False):
            height, width = found
            if (height, width) != (self.grid or (height, height)):
                raise NotMergeable(
                    f"this backbone has a grid of {height} x {width} patches",
                    where="grid",
                    fix=f"set grid=[{height}, {width}]",
                )


def _pair(grid: Sequence[int]) -> tuple[int, int]:
    if isinstance(grid, str) or len(grid) != 2 or any(type(side) is not int or side < 1 for side in grid):
        raise ConfigError(f"Convpass has grid={grid!r}", where="grid", fix="give height and width, as in [14, 14]")
    return grid[0], grid[1]
