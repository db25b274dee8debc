"""Backbones small enough for a test, with noise in every constant so that an adapter's effect can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """How to build a small model, the same weights every time.

    Attributes:
        new: Builds it, in any state.
        input_shape: Shape of one batch of inputs.
    """

    new: Callable[[], nn.Module]
    input_shape: tuple[int, ...] = (2, 3, 32, 32)

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A model in evaluation mode, without residual scales, norms or a head that are zero or one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20230216)
            model = self.new()
        add_noise(model.parameters())
        return model.to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """One batch, the same every time."""
        return normal(self.input_shape, seed=1).to(dtype)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers in float64, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def add_noise(tensors: Iterable[Tensor], std: float = 0.1, seed: int = 0, positive: bool = False) -> None:
    """Adds normal noise to tensors, in place and the same every time; meta tensors stay as they are.

    Args:
        tensors: What to change; tensors of integers and booleans are left alone.
        std: Standard deviation of the noise.
        seed: Seed of its generator.
        positive: Whether to add magnitudes only, as a running variance needs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_meta or not tensor.is_floating_point():
                continue
            noise = std * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.add_((noise.abs() if positive else noise).to(tensor))


class _ToyAttention(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed: Tensor = self.proj((q @ k.mT).softmax(-1) @ v)
        return mixed


class _SeparateAttention(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        mixed: Tensor = self.proj((q @ k.mT).softmax(-1) @ v)
        return mixed


class _ToyMLP(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width, bias=bias)
        self.fc2 = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x).tanh())
        return out


class _ToyBlock(nn.Module):
    def __init__(self, width: int, bias: bool, separate: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _SeparateAttention(width, bias) if separate else _ToyAttention(width, bias)
        self.mlp = _ToyMLP(width, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Toy(nn.Module):
    """Two pre-norm blocks on tokens ``(batch, tokens, width)``, named as in timm's ViT; the second has no biases.

    Args:
        width: Features of a token.
        classes: Outputs of the head.
        separate: Whether queries, keys and values come from three layers instead of one.
    """

    def __init__(self, width: int = 16, classes: int = 5, separate: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_ToyBlock(width, True, separate), _ToyBlock(width, False, separate))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, ``(batch, classes)``."""
        scores: Tensor = self.head(self.blocks(x).mean(1))
        return scores


def vit(**options: Any) -> nn.Module:
    """A timm ViT, 32 wide and two blocks deep, for images of 32x32."""
    small: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
    }
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **(small | options))
    return model


def swin(**options: Any) -> nn.Module:
    """A timm Swin with two stages, 32 and 64 wide, and windows of 4x4 that divide its feature maps."""
    small: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
    model: nn.Module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **(small | options))
    return model


def convnext(**options: Any) -> nn.Module:
    """A timm ConvNeXt with stages 16 and 32 wide; its MLP is of Linear layers unless ``conv_mlp=True``."""
    small: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 32, 16, 16), "num_classes": 5}
    model: nn.Module = timm.create_model("convnext_tiny", **(small | options))
    return model


BACKBONES = {
    "toy": Backbone(Toy, (2, 4, 16)),
    "separate_qkv": Backbone(partial(Toy, separate=True), (2, 4, 16)),
    "vit": Backbone(vit),
    "vit_layer_scale": Backbone(lambda: vit(init_values=0.1, qkv_bias=False)),
    "swin": Backbone(swin),
    "convnext": Backbone(convnext),
}
"""The backbones that the contract is judged on; all widths are multiples of 16."""
