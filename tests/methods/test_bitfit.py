"""BitFit: which parameters it trains, their count, and that they are stored and merged as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lightning_petl import BitFit, ConfigError, adapted_layers, inject, load_adapter, merge, save_adapter, trainable
from lightning_petl.testing import BACKBONES, add_noise

each_backbone = pytest.mark.parametrize("name", BACKBONES)


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit_base_patch16_224", 102_912), ("vit_small_patch16_224", 51_456), ("beit_base_patch16_224", 93_696)],
)
def test_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    assert sum(parameter.numel() for parameter in trainable(inject(model, BitFit())).values()) == count


@each_backbone
def test_every_bias_trains_and_nothing_else(name: str) -> None:
    model = inject(BACKBONES[name].build(), BitFit())
    own = {
        f"{path}.bias": module.bias
        for path, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter)
    }
    assert {key: id(value) for key, value in trainable(model).items()} == {key: id(value) for key, value in own.items()}
    assert not adapted_layers(model)


def test_biases_that_an_attention_keeps_by_itself() -> None:
    model = timm.create_model("beit_base_patch16_224", num_classes=0, img_size=32, embed_dim=32, depth=1, num_heads=2)
    names = {name.removeprefix("blocks.0.attn.") for name in trainable(inject(model, BitFit())) if ".attn." in name}
    assert names == {"q_bias", "v_bias", "proj.bias"}
    assert not model.blocks[0].attn.qkv.weight.requires_grad


@each_backbone
def test_trained_biases_are_stored_and_merging_leaves_them(name: str, tmp_path: Path) -> None:
    backbone = BACKBONES[name]
    model, plain = inject(backbone.build(), BitFit()), backbone.build()
    add_noise(trainable(model).values())
    save_adapter(model, tmp_path / "biases.safetensors")
    expected = model(backbone.inputs())
    assert (expected - plain(backbone.inputs())).abs().max() > 1e-3
    loaded = load_adapter(backbone.build(), tmp_path / "biases.safetensors")
    assert torch.equal(loaded(backbone.inputs()), expected)
    certificate = merge(loaded)
    assert (certificate.layers, certificate.created) == ({}, ())
    assert torch.equal(loaded(backbone.inputs()), expected)


def test_a_backbone_without_biases_is_refused() -> None:
    with pytest.raises(ConfigError, match="no biases"):
        inject(nn.Sequential(nn.Linear(4, 4, bias=False)), BitFit())
