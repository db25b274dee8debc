"""FacT keeps the contract of methods, has the counts of its paper, and changes each block of each weight as it says."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from petl_fact import FacT
from torch import Tensor, nn

from lightning_petl import ConfigError, NotMergeable, adapted_layers, inject, merge, trainable
from lightning_petl.testing import BACKBONES, MethodContract, add_noise


class TestTensorTrain(MethodContract):
    method = FacT(rank=4, scale=0.5)


class TestTucker(MethodContract):
    method = FacT(form="tk", rank=6, scale=2.0, dropout=0.0)


def counts(name: str, method: FacT) -> dict[str, int]:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    return {key: parameter.numel() for key, parameter in trainable(inject(model, method)).items()}


@pytest.mark.parametrize(("form", "rank", "total"), [("tt", 16, 61_440), ("tk", 32, 86_528)])
def test_counts_on_vit_base(form: str, rank: int, total: int) -> None:
    found = counts("vit_base_patch16_224", FacT(form=form, rank=rank))
    assert sum(found.values()) == total
    shared = {key: size for key, size in found.items() if key.startswith("petl_shared.")}
    names = {"petl_shared.custom.768.u", "petl_shared.custom.768.v"}
    assert shared.keys() == names | ({"petl_shared.custom.768.core"} if form == "tk" else set())


def test_the_named_variants_are_the_papers() -> None:
    sizes = {
        name: sum(counts("vit_base_patch16_224", FacT(**options)).values()) for name, options in FacT.variants.items()
    }
    assert sizes == {"FacT-TT": 61_440, "FacT-TK": 86_528}


def square_blocks(weight: Tensor, width: int) -> list[Tensor]:
    """The stack that a weight stands for: rows of blocks first."""
    return [block for rows in weight.split(width, 0) for block in rows.split(width, 1)]


@pytest.mark.parametrize("form", ["tt", "tk"])
def test_each_matrix_of_the_stack_is_the_papers(form: str) -> None:
    backbone, rank, scale = BACKBONES["vit"], 4, 0.3
    model, plain = (backbone.build(torch.float64) for _ in range(2))
    inject(model, FacT(form=form, rank=rank, scale=scale))
    add_noise(trainable(model).values(), std=1.0)
    factors = {name.rpartition(".")[2]: tensor.detach() for name, tensor in model.petl_shared.named_parameters()}
    own = {
        path: next(iter(layer.adapter.parameters())).detach().clone() for path, layer in adapted_layers(model).items()
    }
    u, v = factors["u"], factors["v"]
    merge(model)
    seen = 0
    for path, parameter in own.items():
        change = model.get_submodule(path).weight - plain.get_submodule(path).weight
        if form == "tt":
            cores = square_blocks(parameter, rank)
        else:
            cores = [sum(factors["core"][:, :, k].T * row[k] for k in range(rank)) for row in parameter]
        blocks = square_blocks(change.detach(), 32)
        assert len(blocks) == len(cores)
        for block, core in zip(blocks, cores, strict=True):
            torch.testing.assert_close(block, scale * v @ core @ u, rtol=1e-9, atol=1e-12)
            seen += 1
        torch.testing.assert_close(model.get_submodule(path).bias, plain.get_submodule(path).bias)
    assert seen == 2 * 12


def test_the_start_is_drawn_as_documented() -> None:
    model = inject(BACKBONES["vit"].build(), FacT(form="tk", rank=8))
    shared, rank, matrices = model.petl_shared.get_submodule("custom.32"), 8, 2 * 12
    assert not shared.v.any()
    bounds = {
        shared.u: 1 / math.sqrt(32),
        shared.core: math.sqrt(3) / rank,
        adapted_layers(model)["blocks.0.mlp.fc1"].adapter.mix: math.sqrt(6 / (rank + matrices)),
    }
    for tensor, bound in bounds.items():
        assert 0.7 * bound < tensor.abs().max() <= bound


def test_a_swin_has_factors_for_each_width() -> None:
    model = inject(BACKBONES["swin"].build(), FacT(rank=2))
    assert set(model.petl_shared["custom"]) == {"32", "64"}


def test_dropout_acts_in_training_alone() -> None:
    model = inject(BACKBONES["vit"].build(), FacT(rank=8, dropout=0.5))
    add_noise(trainable(model).values())
    layer = adapted_layers(model)["blocks.0.attn.qkv"]
    x = torch.randn(2, 3, 32)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("options", [{"form": "cp"}, {"rank": 0}, {"scale": math.inf}, {"dropout": 1.0}], ids=str)
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        FacT(**options)


def test_a_weight_without_square_blocks_is_refused() -> None:
    with pytest.raises(NotMergeable, match=r"12 x 8 weight is not made of square blocks"):
        inject(nn.Sequential(nn.Linear(8, 12)), FacT(targets=["0"]))


def test_a_layer_is_not_built_without_its_factors() -> None:
    target = next(iter(adapted_layers(inject(BACKBONES["vit"].build(), FacT())).values())).target
    with pytest.raises(ConfigError, match=r"needs the factors"):
        FacT().build(target)
