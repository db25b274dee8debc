"""VPT: Jia et al., Visual Prompt Tuning, arXiv 2203.12119."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import ConfigError, Method, ModuleAdapter, NotMergeable, Target
from lightning_petl.adapter import JSON, Wraps
from petl_classics.bottleneck import probability, require_tensor

EACH_BLOCK = r"(?:.*\.)?blocks\.\d+"
ALL_BLOCKS = r"(?:.*\.)?blocks"


class Prompts(ModuleAdapter):
    """Learned tokens that stand behind the first token while the tokens pass through a module, and nowhere else.

    What comes out of the module at their places is taken out again, so that whatever follows (the next block with
    prompts of its own, the norm, pooling, the head) sees the tokens that the plain backbone has, in their order. To an
    attention without positions the place of the prompts is the same as any other.

    Attributes:
        prompts: ``(p, d)``.
    """

    def __init__(self, target: Target, tokens: int, patch_size: int, dropout: float) -> None:
        super().__init__()
        self.path, self.dropout = target.path, dropout
        self.prompts = nn.Parameter(torch.empty(tokens, target.in_features, device=target.device, dtype=target.dtype))
        bound = math.sqrt(6 / (3 * patch_size**2 + target.in_features))
        nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, x: Tensor, base: Callable[[Tensor], Any]) -> Tensor:
        """The module with the prompts among its tokens; ``(batch, tokens, d)`` in and out.

        Raises:
            NotMergeable: The module does not take any number of tokens.
        """
        if x.dim() != 3:
            raise NotMergeable(f"VPT needs (batch, tokens, features), and it sees {x.dim()} axes", where=self.path)
        prompts = self.prompts.to(x.dtype).expand(len(x), -1, -1)
        if self.training and self.dropout:
            prompts = F.dropout(prompts, self.dropout)
        longer = torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1)
        out = require_tensor(self._run(base, longer), self.path, "VPT")
        if out.shape[:2] != longer.shape[:2]:
            raise NotMergeable(
                "it changes the number of tokens, so that prompts cannot be found again", where=self.path
            )
        return torch.cat([out[:, :1], out[:, 1 + len(self.prompts) :]], dim=1)

    def _run(self, base: Callable[[Tensor], Any], tokens: Tensor) -> Any:
        """The module; a fault in the run on meta tensors, at injection, can only be the number of tokens."""
        if not tokens.is_meta:
            return base(tokens)
        try:
            return base(tokens)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise NotMergeable(
                "it takes the backbone's own number of tokens only (it has positions, windows or a grid inside)",
                where=self.path,
                fix="VPT needs a plain ViT",
            ) from error


class VPT(Method):
    """VPT (arXiv 2203.12119): learned prompt tokens, in front of the first block or of every block; it does not fold.

    Not the identity at the start: prompts are random, and attention sees them at once. VPT-deep (``deep=True``) has
    tokens of its own for each block, which replace those of the block before. VPT-shallow (``deep=False``) has one set,
    which passes through all blocks; there the blocks are called as one module, so code that loops over them itself, as
    timm's gradient checkpointing and attention masks do, is refused.

    For blocks that take any number of tokens ``(batch, tokens, features)``, as a plain ViT's with absolute position
    embeddings do; windows, rotary embeddings and tables of relative positions are refused.

    Args:
        tokens: Number ``p`` of prompts; the paper searches {1, 5, 10, 50, 100, 200} per data set.
        deep: Whether every block has prompts of its own.
        dropout: Probability of dropping a number of a prompt in training.
        patch_size: The backbone's, which the official code's bound of the random start depends on, and nothing else.
        targets: Regular expressions on module paths, each a full match; blocks, or what holds all blocks, if left out.
    """

    wraps: ClassVar[Wraps] = "module"
    variants: ClassVar[Mapping[str, Mapping[str, JSON]]] = {
        "VPT-shallow": {"tokens": 100, "deep": False},
        "VPT-deep": {"tokens": 50, "deep": True},
    }

    def __init__(
        self,
        tokens: int = 50,
        deep: bool = True,
        dropout: float = 0.0,
        patch_size: int = 16,
        targets: Sequence[str] | None = None,
    ) -> None:
        super().__init__(targets=(EACH_BLOCK if deep else ALL_BLOCKS,) if targets is None else targets)
        for name, value in (("tokens", tokens), ("patch_size", patch_size)):
            if value < 1:
                raise ConfigError(f"VPT has {name}={value}", where=name, fix="give a positive number")
        self.tokens, self.patch_size, self.dropout = tokens, patch_size, probability("VPT", dropout)

    def build(self, target: Target, shared: nn.Module | None = None) -> Prompts:
        """Creates the prompts of one module."""
        return Prompts(target, self.tokens, self.patch_size, self.dropout)
