"""IA3 keeps the contract of methods, and is what its paper says on a model whose parts are written out."""

from __future__ import annotations

import pytest
import timm
import torch
from petl_ia3 import IA3
from torch import nn

from lightning_petl import NotMergeable, adapted_layers, inject, merge, trainable
from lightning_petl.testing import BACKBONES, MethodContract, add_noise


class TestIA3(MethodContract):
    method = IA3()


def test_count_on_vit_base() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    inject(model, IA3())
    assert sum(parameter.numel() for parameter in trainable(model).values()) == 12 * (2 * 768 + 3072)


def test_keys_values_and_units_are_scaled_and_nothing_else() -> None:
    backbone = BACKBONES["vit"]
    model, plain = (backbone.build(torch.float64) for _ in range(2))
    inject(model, IA3())
    add_noise(trainable(model).values())
    scales = {path: layer.adapter.scale.detach() for path, layer in adapted_layers(model).items()}
    expected = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for block in range(2):
        keys, values = scales[f"blocks.{block}.attn.qkv"]
        for kind in ("weight", "bias"):
            query, key, value = expected[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)
            parts = (query, *((part.movedim(0, -1) * by).movedim(-1, 0) for part, by in ((key, keys), (value, values))))
            expected[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
        expected[f"blocks.{block}.mlp.fc2.weight"] @= torch.diag(scales[f"blocks.{block}.mlp.fc2"])
    certificate = merge(model)
    assert certificate.created == ()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-14, atol=0)


def test_a_projection_of_other_parts_is_refused() -> None:
    model = nn.Sequential()
    model.add_module("qkv", nn.Linear(4, 8))
    with pytest.raises(NotMergeable, match=r"8 outputs are no queries.*\[qkv\]"):
        inject(model, IA3(targets=("qkv",)))
