"""Adapter and AdaptFormer keep the contract, have the published counts, and compute what their papers say."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from petl_classics import AdaptFormer, HoulsbyAdapter
from torch import Tensor, nn

from lightning_petl import ConfigError, Method, NotMergeable, adapted_layers, inject, merge, trainable
from lightning_petl.testing import BACKBONES, MethodContract, add_noise


class TestHoulsbyAdapter(MethodContract):
    method = HoulsbyAdapter(hidden_dim=4)


class TestAdaptFormer(MethodContract):
    method = AdaptFormer(hidden_dim=4, scale=0.5, dropout=0.0)


@pytest.mark.parametrize(
    ("method", "total"),
    [
        (HoulsbyAdapter(hidden_dim=8), 156_768),
        (AdaptFormer(hidden_dim=8), 156_768),
        (AdaptFormer(hidden_dim=16), 304_320),
        (AdaptFormer(hidden_dim=64), 1_189_632),
    ],
    ids=str,
)
def test_counts_on_vit_base(method: Method, total: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert sum(parameter.numel() for parameter in trainable(inject(model, method)).values()) == total


def blocks_by_hand(method: Method, init_values: float | None = None) -> tuple[Tensor, Tensor]:
    """Logits of a small ViT with trained adapters, and those of its blocks written out around the plain modules."""
    backbone = BACKBONES["vit" if init_values is None else "vit_layer_scale"]
    model, plain = inject(backbone.build(torch.float64), method), backbone.build(torch.float64)
    add_noise(trainable(model).values())
    x = plain.patch_embed(backbone.inputs(torch.float64))
    x = plain.norm_pre(plain._pos_embed(x))
    for index, block in enumerate(plain.blocks):
        adapter = adapted_layers(model)[f"blocks.{index}.mlp"].adapter
        down, up = adapter.down, adapter.up
        x = x + block.ls1(block.attn(block.norm1(x)))
        normed = block.norm2(x)
        out = block.mlp(normed)
        if isinstance(method, AdaptFormer):
            out = out + method.scale * up(F.relu(down(normed)))
        else:
            out = out + up(F.gelu(down(out)))
        x = x + block.ls2(out)
    with torch.no_grad():
        return model(backbone.inputs(torch.float64)), plain.forward_head(plain.norm(x))


@pytest.mark.parametrize("init_values", [None, 0.1])
@pytest.mark.parametrize("method", [HoulsbyAdapter(4), AdaptFormer(4, scale=0.3)], ids=lambda m: type(m).__name__)
def test_it_is_the_block_written_out(method: Method, init_values: float | None) -> None:
    found, expected = blocks_by_hand(method, init_values)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_dropout_acts_in_training_alone() -> None:
    model = inject(BACKBONES["vit"].build(), AdaptFormer(dropout=0.5))
    add_noise(trainable(model).values())
    layer, x = adapted_layers(model)["blocks.0.mlp"], torch.randn(2, 3, 32)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("method", [HoulsbyAdapter(), AdaptFormer()], ids=lambda m: type(m).__name__)
def test_merging_is_refused_by_name(method: Method) -> None:
    model = inject(BACKBONES["vit"].build(), method)
    with pytest.raises(NotMergeable, match=type(method).__name__):
        merge(model)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


class FirstOf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pair(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


@pytest.mark.parametrize(
    ("model", "target", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 6)), "0", r"4 features to 6 \[0\]"),
        (FirstOf(), "inner", r"not a tuple \[inner\]"),
    ],
    ids=["width", "tuple"],
)
def test_modules_that_do_not_fit_are_refused(model: nn.Module, target: str, reason: str) -> None:
    for method in (HoulsbyAdapter(targets=[target]), AdaptFormer(targets=[target])):
        with pytest.raises(NotMergeable, match=reason):
            inject(model, method)
        assert not adapted_layers(model)


@pytest.mark.parametrize("options", [{"hidden_dim": 0}, {"dropout": 1.0}], ids=str)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    for method in (HoulsbyAdapter, AdaptFormer):
        with pytest.raises(ConfigError, match=next(iter(options))):
            method(**options)
    with pytest.raises(ConfigError, match="scale"):
        AdaptFormer(scale=math.nan)
