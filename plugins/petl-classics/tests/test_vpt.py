"""VPT keeps the contract, has the published counts, and is the plain model with tokens put in, under any pooling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from petl_classics import VPT
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from lightning_petl import ConfigError, NotMergeable, adapted_layers, inject, merge, trainable
from lightning_petl.testing import Backbone, MethodContract, add_noise
from lightning_petl.testing.backbones import convnext, swin, vit


class TestVPTDeep(MethodContract):
    method = VPT(tokens=3)
    identity_at_init = False  # prompts are random, and attention sees them at once


class TestVPTShallow(MethodContract):
    method = VPT(tokens=3, deep=False)
    identity_at_init = False


@pytest.mark.parametrize(("options", "total"), [({"tokens": 100, "deep": False}, 76_800), ({"tokens": 50}, 460_800)])
def test_counts_on_vit_base(options: dict, total: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert sum(parameter.numel() for parameter in trainable(inject(model, VPT(**options))).values()) == total


LAYOUTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "class token, average": {"global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "registers, average": {"reg_tokens": 4, "global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "average of all": {"global_pool": "avg", "pool_include_prefix": True},
    "attention pooling": {"global_pool": "map"},
    "largest": {"global_pool": "max", "class_token": False},
    "layer scale, no bias": {"init_values": 0.1, "qkv_bias": False},
}


def prompted(plain: nn.Module, images: Tensor, prompts: list[Tensor], deep: bool) -> Tensor:
    """The paper's forward: prompts behind all prefix tokens; deep ones overwrite those of the block before."""
    prefix = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(images)))
    count = len(prompts[0])
    x = torch.cat([x[:, :prefix], prompts[0].expand(len(x), -1, -1), x[:, prefix:]], dim=1)
    for index, block in enumerate(plain.blocks):
        if deep and index:
            x = x.clone()
            x[:, prefix : prefix + count] = prompts[index]
        x = block(x)
    x = plain.norm(x)
    kept = [place for place in range(x.shape[1]) if not prefix <= place < prefix + count]
    return plain.forward_head(x[:, kept])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
def test_it_is_the_plain_model_with_tokens_put_in(layout: str, deep: bool) -> None:
    backbone = Backbone(lambda: vit(depth=3, **LAYOUTS[layout]))
    model, plain = backbone.build(torch.float64), backbone.build(torch.float64)
    inject(model, VPT(tokens=5, deep=deep))
    add_noise(trainable(model).values(), std=1.0)
    prompts = [layer.adapter.prompts for layer in adapted_layers(model).values()]
    assert len(prompts) == (3 if deep else 1)
    images = backbone.inputs(torch.float64)
    with torch.no_grad():
        found, expected = model(images), prompted(plain, images, prompts, deep)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert (found - plain(images)).abs().max() > 1e-3


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
def test_the_head_sees_the_backbones_own_tokens_alone(deep: bool) -> None:
    model = vit(reg_tokens=2)
    inject(model, VPT(tokens=7, deep=deep))
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 1 + 2 + 16, 32)


def test_intermediate_features_of_deep_prompts_are_the_backbones_tokens() -> None:
    model = inject(vit(), VPT(tokens=3))
    _, maps = model.forward_intermediates(torch.randn(2, 3, 32, 32))
    assert [tuple(each.shape) for each in maps] == [(2, 32, 4, 4)] * 2


def test_code_that_loops_over_the_blocks_does_not_pass_by_shallow_prompts() -> None:
    model = inject(vit(), VPT(tokens=3, deep=False))
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(NotMergeable, match=r"\[blocks\]"):
        model.forward_intermediates(images)
    model.set_grad_checkpointing()
    with pytest.raises(NotMergeable, match=r"\[blocks\]"):
        model(images)


def test_gradient_checkpointing_gives_deep_prompts_their_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = inject(vit(), VPT(tokens=3))
        model.set_grad_checkpointing(checkpointing)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
        model(images).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in trainable(model).items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def rotary() -> nn.Module:
    return timm.create_model("eva02_tiny_patch14_224", img_size=28, embed_dim=24, depth=1, num_heads=2, num_classes=2)


def relative_positions() -> nn.Module:
    return timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=2)


def mixer() -> nn.Module:
    return MlpMixer(img_size=32, patch_size=16, embed_dim=16, num_blocks=1, num_classes=2)


NUMBER = "own number of tokens only"
LOOPED = r"never calls it .*\[blocks\]"  # its forward loops over the blocks, so they are never called as one


@pytest.mark.parametrize(
    ("build", "deep", "reason"),
    [
        (swin, True, "sees 4 axes"),
        (swin, False, "sees 4 axes"),
        (convnext, True, r"\[stages.0.blocks.0\]"),
        (convnext, False, r"\[stages.0.blocks\]"),
        (rotary, True, NUMBER),
        (rotary, False, LOOPED),
        (relative_positions, True, NUMBER),
        (relative_positions, False, LOOPED),
        (mixer, True, NUMBER),
        (mixer, False, NUMBER),
    ],
)
def test_backbones_that_do_not_fit_are_refused(build: Any, deep: bool, reason: str) -> None:
    model = build()
    before = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(NotMergeable, match=reason):
        inject(model, VPT(deep=deep))
    assert {path: type(module) for path, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_start_is_the_official_codes() -> None:
    torch.manual_seed(0)
    model = inject(vit(), VPT(tokens=50, patch_size=8))
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    for layer in adapted_layers(model).values():
        assert 0.95 * bound < layer.adapter.prompts.abs().max() <= bound


def test_dropout_acts_on_each_sample_in_training_alone() -> None:
    model = inject(vit().eval(), VPT(tokens=4, dropout=0.5))
    layer, x = adapted_layers(model)["blocks.0"], torch.randn(1, 17, 32).expand(2, -1, -1)
    assert torch.equal(layer(x), layer(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], layer(x)[1])
        layer.train()
        assert (layer(x)[0] - layer(x)[1]).abs().max() > 1e-3


def test_merging_is_refused_by_name() -> None:
    with pytest.raises(NotMergeable, match="VPT does not fold"):
        merge(inject(vit(), VPT()))


@pytest.mark.parametrize("options", [{"tokens": 0}, {"patch_size": 0}, {"dropout": 1.0}], ids=str)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        VPT(**options)
