"""A file is not put onto a backbone that has its tensors and computes something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_petl import (
    ARC,
    BackboneMismatch,
    Consolidator,
    LoRA,
    Method,
    RepAdapter,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lightning_petl.store import load_merged, plain_structure, save_merged
from lightning_petl.structure import structure, unlike
from lightning_petl.tensorfile import read_header
from lightning_petl.wrappers import adapted_layers

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_classes": 5}


def vit(num_heads: int = 2, **arguments: Any) -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("vit_tiny_patch16_224", num_heads=num_heads, **(SIZES | arguments)).eval()


class Small(nn.Module):
    """A network of one's own, with everything that its tensors do not tell."""

    def __init__(self, stride: int = 1, eps: float = 1e-5, slope: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 8, 3, stride=stride, padding=1)
        self.norm, self.act = nn.GroupNorm(2, 8, eps=eps), nn.LeakyReLU(slope)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        features: torch.Tensor = self.act(self.norm(self.conv(x))).mean((2, 3))
        out: torch.Tensor = self.second(self.first(features))
        return out


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "heads": (vit, lambda: vit(4), "num_heads"),
    "epsilon": (vit, lambda: vit(norm_layer=nn.LayerNorm), "eps"),
    "activation": (vit, lambda: vit(act_layer=nn.ReLU), "activation"),
    "pooling": (lambda: vit(fc_norm=False), lambda: vit(fc_norm=False, global_pool="avg"), "global_pool"),
    "stride": (Small, lambda: Small(stride=2), "stride"),
    "epsilon of groups": (Small, lambda: Small(eps=1e-3), "eps"),
    "slope": (Small, lambda: Small(slope=0.2), "negative_slope"),
}


def saved(model: nn.Module, folder: Path, method: Method) -> Path:
    inject(model, method)
    save_adapter(model, folder / "adapter.safetensors")
    header = read_header(folder / "adapter.safetensors")
    save_merged(model, folder / "merged.safetensors", header, merge(model).created)
    return folder


@pytest.mark.parametrize(("build", "other", "name"), OTHERS.values(), ids=OTHERS)
def test_the_same_tensors_in_another_backbone(
    build: Callable[[], nn.Module], other: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(build()(x), other()(x)), "it computes something else"
    method = RepAdapter(hidden_dim=4, targets=(r".*(qkv|fc1|first)",))
    folder = saved(build(), tmp_path, method)
    load_adapter(build(), folder / "adapter.safetensors")
    load_merged(build(), folder / "merged.safetensors")
    for load, file in ((load_adapter, "adapter.safetensors"), (load_merged, "merged.safetensors")):
        model = other()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(BackboneMismatch, match=rf"^{name} in this backbone is ") as caught:
            load(model, folder / file)
        assert caught.value.where == f"{folder / file}: backbone.structure.{name}"
        assert not adapted_layers(model)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("method", [RepAdapter(hidden_dim=4), ARC(), Consolidator(groups=[8]), LoRA()])
def test_what_a_method_adds_is_no_part_of_it(method: Method) -> None:
    model, plain = vit(), plain_structure(vit())
    inject(model, method)
    assert plain_structure(model) == plain
    merge(model)
    assert plain_structure(model) == plain


def test_what_is_read() -> None:
    found = structure(Small().modules())
    assert found["num_groups"] == [2]
    assert found["activation"] == ["LeakyReLU"]
    assert found["padding"] == [[1, 1]]
    assert "calls" not in found
    assert unlike(found, structure(Small(stride=2).modules())) == {"stride": ([[1, 1]], [[2, 2]])}
    assert unlike(found, {"stride": [[1, 1]]}) == {}, "what one of them lacks is not compared"
