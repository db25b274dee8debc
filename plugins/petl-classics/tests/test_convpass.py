"""Convpass keeps the contract, has the published count, computes what its paper says, and refuses other grids."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from petl_classics import Convpass, ConvpassBranch
from torch import Tensor, nn

from lightning_petl import ConfigError, NotMergeable, adapted_layers, inject, trainable
from lightning_petl.testing import BACKBONES, Backbone, MethodContract, add_noise
from lightning_petl.testing.backbones import swin, vit


class TestConvpass(MethodContract):
    method = Convpass(hidden_dim=4, scale=0.5, dropout=0.0)


@pytest.mark.parametrize(("around", "total"), [(("attn", "mlp"), 327_552), (("attn",), 163_776)])
def test_counts_on_vit_base(around: tuple, total: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert sum(parameter.numel() for parameter in trainable(inject(model, Convpass(around=around))).values()) == total


def bypass(adapter: ConvpassBranch, x: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """The bypass with torch's own modules: each prefix token is convolved as an image of one pixel."""

    def act(tensor: Tensor) -> Tensor:
        return tensor * (1.702 * tensor).sigmoid()

    hidden = act(adapter.down(x))
    pieces = [hidden[:, place].reshape(len(x), -1, 1, 1) for place in range(prefix)]
    pieces.append(hidden[:, prefix:].transpose(1, 2).reshape(len(x), -1, *grid))
    tokens = [adapter.conv(piece).flatten(2).transpose(1, 2) for piece in pieces]
    return adapter.up(act(torch.cat(tokens, 1)))


@pytest.mark.parametrize(
    ("options", "prefix", "grid"),
    [
        ({}, 1, (4, 4)),
        ({"reg_tokens": 4}, 5, (4, 4)),
        ({"class_token": False, "global_pool": "avg"}, 0, (4, 4)),
        ({"img_size": (16, 64)}, 1, (2, 8)),
        ({"init_values": 0.1}, 1, (4, 4)),
    ],
    ids=["class", "registers", "average", "oblong", "layer scale"],
)
def test_it_is_the_block_written_out(options: dict, prefix: int, grid: tuple[int, int]) -> None:
    shape = (2, 3, 8 * grid[0], 8 * grid[1])
    backbone = Backbone(lambda: vit(**options), shape)
    method = Convpass(4, scale=0.3, prefix_tokens=prefix, grid=None if grid == (4, 4) else grid)
    model, plain = inject(backbone.build(torch.float64), method), backbone.build(torch.float64)
    add_noise(trainable(model).values())
    adapters = {path: layer.adapter for path, layer in adapted_layers(model).items()}
    images = backbone.inputs(torch.float64)
    with torch.no_grad():
        x = plain.norm_pre(plain._pos_embed(plain.patch_embed(images)))
        for index, block in enumerate(plain.blocks):
            for norm, scale, name in ((block.norm1, block.ls1, "attn"), (block.norm2, block.ls2, "mlp")):
                normed = norm(x)
                added = bypass(adapters[f"blocks.{index}.{name}"], normed, prefix, grid)
                x = x + scale(getattr(block, name)(normed) + 0.3 * added)
        torch.testing.assert_close(model(images), plain.forward_head(plain.norm(x)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prefix_tokens", [0, 1])
def test_a_swin_is_refused(prefix_tokens: int) -> None:
    model = swin()
    before = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(NotMergeable, match=r"windows or stages .*plain ViT"):
        inject(model, Convpass(prefix_tokens=prefix_tokens))
    assert {path: type(module) for path, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("options", "arguments", "reason"),
    [
        ({"reg_tokens": 4}, {}, r"5 tokens in front .* set prefix_tokens=5"),
        ({"class_token": False, "global_pool": "avg"}, {}, r"0 tokens in front .* set prefix_tokens=0"),
        ({"img_size": (16, 64)}, {}, r"grid of 2 x 8 .* set grid=\[2, 8\]"),
        ({}, {"grid": (2, 8)}, r"grid of 4 x 4 .* set grid=\[4, 4\]"),
        ({"dynamic_img_size": True}, {}, r"images of any shape"),
        ({"patch_drop_rate": 0.5}, {}, r"9 tokens are not 1 and a square"),  # 8 of 16 patches are left in training
    ],
    ids=["registers", "no class token", "oblong", "other grid", "dynamic", "dropped patches"],
)
def test_another_grid_is_refused(options: dict, arguments: dict, reason: str) -> None:
    model = vit(**options)
    with pytest.raises(NotMergeable, match=reason):
        inject(model, Convpass(**arguments))
    assert not adapted_layers(model)


def test_a_model_that_says_nothing_of_its_tokens_is_judged_by_their_number() -> None:
    model = BACKBONES["toy"].build()
    with pytest.raises(NotMergeable, match=r"4 tokens are not 1 and a square \[blocks.0.attn\]"):
        inject(model, Convpass())
    inject(model, Convpass(prefix_tokens=0))


def test_a_module_of_images_is_refused() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(NotMergeable, match="sees 4 axes"):
        inject(Maps(), Convpass(targets=["inner"]), inputs=(torch.zeros(1, 2, 2, 8),))


def test_a_fresh_bypass_convolves_each_token_with_itself() -> None:
    adapter = adapted_layers(inject(vit().double(), Convpass()))["blocks.0.attn"].adapter
    x = torch.randn(2, 17, 8, dtype=torch.float64)
    assert torch.equal(adapter.conv(x[:, 1:].mT.unflatten(-1, (4, 4))).flatten(2).mT, x[:, 1:])
    assert not adapter.up.weight.any()


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_dim": 0},
        {"scale": math.inf},
        {"dropout": -0.1},
        {"around": ("norm",)},
        {"around": ()},
        {"prefix_tokens": -1},
        {"grid": (4,)},
        {"grid": (4, 0)},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"\[{next(iter(options))}\]"):
        Convpass(**options)


def test_dropout_acts_in_training_alone() -> None:
    model = inject(vit().eval(), Convpass(dropout=0.5))
    add_noise(trainable(model).values())
    layer, x = adapted_layers(model)["blocks.0.mlp"], F.normalize(torch.randn(2, 17, 32))
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
