"""Trainable parameters of RepAdapter, to the digit, on the backbones of the papers (built without memory)."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lightning_petl import RepAdapter, inject, trainable

VIT, LARGE, HUGE = "vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"
SMALL, SWIN, CONVNEXT = "vit_small_patch16_224", "swin_base_patch4_window7_224", "convnext_base"


def counts(name: str, method: RepAdapter) -> tuple[int, int]:
    """Trainable parameters of a backbone with a method: all, and weights only."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    parameters = trainable(inject(model, method))
    assert all(parameter.is_meta for parameter in parameters.values())
    weights = sum(parameter.numel() for key, parameter in parameters.items() if key.endswith("weight"))
    return sum(parameter.numel() for parameter in parameters.values()), weights


@pytest.mark.parametrize(
    ("name", "arguments", "total", "weights"),
    [
        (SMALL, {}, 120_000, 110_592),
        (SMALL, {"sites": ("attn",)}, 60_000, 55_296),
        (VIT, {}, 239_808, 221_184),
        (VIT, {"sites": ("attn",)}, 119_904, 110_592),
        (VIT, {"groups": 1}, 313_536, 294_912),
        (VIT, {"hidden_dim": 2}, 73_776, 55_296),
        (LARGE, {}, 639_360, 589_824),
        (LARGE, {"sites": ("attn",)}, 319_680, 294_912),
        (LARGE, {"groups": 1}, 835_968, 786_432),
        (HUGE, {}, 1_065_472, 983_040),
        (HUGE, {"sites": ("attn",)}, 532_736, 491_520),
        (SWIN, {}, 313_216, 288_768),
        (SWIN, {"sites": ("attn",)}, 156_608, 144_384),
        (SWIN, {"groups": 1}, 409_472, 385_024),
        (CONVNEXT, {}, 234_912, 216_576),
    ],
)
def test_counts(name: str, arguments: dict, total: int, weights: int) -> None:
    assert counts(name, RepAdapter(**arguments)) == (total, weights)
