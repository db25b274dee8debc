"""Consolidator's adapter by itself, with a layer and inputs, the same every time."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_petl import Affine, Consolidator, Target
from lightning_petl.methods.consolidator import ConsolidatorLayer
from lightning_petl.testing import add_noise

CPU = torch.device("cpu")


def layer(
    i: int, o: int, groups: tuple[int, ...] | None, shuffle: bool = False, dtype: torch.dtype = torch.float64, **more
) -> ConsolidatorLayer:
    """An adapter by itself, with branches that are large enough to see."""
    torch.manual_seed(0)
    target = Target("fc", "custom", i, o, True, CPU, dtype)
    adapter = Consolidator(groups, channel_shuffle=shuffle, **more).build(target).eval()
    add_noise(adapter.parameters())
    return adapter


def affine(i: int, o: int, dtype: torch.dtype = torch.float64) -> Affine:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(o, i, generator=generator, dtype=torch.float64)
    return Affine(weight, torch.randn(o, generator=generator, dtype=torch.float64)).to(dtype)


def tokens(i: int, *shape: int) -> Tensor:
    return torch.randn(*shape, i, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
