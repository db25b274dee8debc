"""Trainable parameters of RepAdapter, to the digit, on the backbones of the papers (built without memory)."""

from __future__ import annotations

import pytest
from sizes import parameters

from lightning_petl import RepAdapter

VIT = "vit_base_patch16_224"


@pytest.mark.parametrize(
    ("name", "total", "weights", "attention"),
    [
        ("vit_small_patch16_224", 120_000, 110_592, 60_000),
        (VIT, 239_808, 221_184, 119_904),
        ("vit_large_patch16_224", 639_360, 589_824, 319_680),
        ("vit_huge_patch14_224", 1_065_472, 983_040, 532_736),
        ("swin_base_patch4_window7_224", 313_216, 288_768, 156_608),
        ("convnext_base", 234_912, 216_576, 0),  # the MLP site alone: the other does not fold
    ],
)
def test_both_sites(name: str, total: int, weights: int, attention: int) -> None:
    found = parameters(name, RepAdapter())
    assert sum(found.values()) == total
    assert sum(size for key, size in found.items() if key.endswith("weight")) == weights
    assert sum(size for key, size in found.items() if ".attn." in key) == attention


@pytest.mark.parametrize(
    ("arguments", "total", "weights"),
    [
        ({"sites": ("attn",)}, 119_904, 110_592),
        ({"groups": 1}, 313_536, 294_912),
        ({"hidden_dim": 2}, 73_776, 55_296),  # the paper's setting for video
    ],
    ids=str,
)
def test_arguments_on_vit_base(arguments: dict, total: int, weights: int) -> None:
    found = parameters(VIT, RepAdapter(**arguments))
    assert sum(found.values()) == total
    assert sum(size for key, size in found.items() if key.endswith("weight")) == weights
