"""Models as after training, small enough for a test, and what must stay of one when a file is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import liars
import pytest
import torch
from torch import Tensor, nn

from lightning_petl import Method, PETLError, RepAdapter, inject, merge, save_adapter, trainable
from lightning_petl.store import save_merged
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import BACKBONES, Backbone, add_noise
from lightning_petl.testing.backbones import convnext, swin, vit

VIT = BACKBONES["vit"]
METHOD = RepAdapter(hidden_dim=4, scale=0.5, dropout=0.0)
KINDS: dict[str, Backbone] = {
    **BACKBONES,
    "convnext, convolutions": Backbone(lambda: convnext(conv_mlp=True)),
    "vit, no qkv bias": Backbone(lambda: vit(qkv_bias=False)),
    "swin, float64": Backbone(lambda: swin().double()),
}


class Halves(liars.Honest):
    """Trains two factors of one scale, and stores their product."""

    class adapter(liars.HonestAdapter):  # noqa: N801
        def __init__(self, target: object) -> None:
            super().__init__(target)
            self.target = target
            self.other = nn.Parameter(torch.ones_like(self.scale))

        def merged(self, base: object) -> object:
            return base.scaled(self.scale * self.other)

        def forward(self, x: Tensor, base: object) -> Tensor:
            return base(x) * (self.scale * self.other).to(x.dtype)

        def consolidated(self) -> liars.HonestAdapter:
            small = liars.HonestAdapter(self.target)
            with torch.no_grad():
                small.scale.copy_(self.scale * self.other)
            return small


METHODS: dict[str, Method] = {
    "RepAdapter": METHOD,
    "shared": liars.Shared(),
    "norms in place": liars.TrainsInPlace(),
    "smaller when stored": Halves(),
}


def inputs(backbone: Backbone, model: nn.Module) -> Tensor:
    return backbone.inputs(next(model.parameters()).dtype)


def outputs(backbone: Backbone, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs(backbone, model))


@cache
def built(backbone: Backbone) -> nn.Module:
    return backbone.build(next(backbone.new().parameters()).dtype)


def build(backbone: Backbone) -> nn.Module:
    """A plain backbone in the dtype that its builder chose."""
    return copy.deepcopy(built(backbone))


def trained(backbone: Backbone = VIT, method: Method = METHOD, head: bool = True) -> nn.Module:
    """A model as after training: adapters and head are away from where they started."""
    model = inject(build(backbone), method)
    if head:
        classifier(model).requires_grad_(True)
    add_noise(trainable(model).values(), seed=3)
    return model.eval()


def classifier(model: nn.Module) -> nn.Module:
    return model.get_classifier() if hasattr(model, "get_classifier") else model.head


def head_of(model: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is classifier(model))


def image(model: nn.Module) -> dict[str, object]:
    """The whole of a model, to the bit and to the object."""
    return {
        "tensors": {
            name: (id(tensor), tensor.dtype, tensor.requires_grad, tensor.detach().numpy().tobytes())
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "modules": {path: (id(module), type(module), module.training) for path, module in model.named_modules()},
        "attributes": sorted(model.__dict__),
    }


def half_frozen(model: nn.Module) -> nn.Module:
    """A model in a state of its own: parts frozen, parts in evaluation mode."""
    for i, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.requires_grad_(i % 2 == 0)
        module.training = i % 3 == 0
    return model


class TaskFiles(NamedTuple):
    """What an adapter file and the merged file made from it hold."""

    adapter: bytes
    merged: bytes


@cache
def files_of_a_task() -> TaskFiles:
    with TemporaryDirectory() as folder:
        adapter, merged, model = Path(folder) / "a.safetensors", Path(folder) / "m.safetensors", trained()
        save_adapter(model, adapter, ("head",), task={"classes": list("abcde")})
        merge(model)
        save_merged(model, merged, read_header(adapter), ())
        return TaskFiles(adapter.read_bytes(), merged.read_bytes())


def refused(
    load: Callable[[nn.Module, Path], object], path: Path, error: type[PETLError], field: str, model: nn.Module
) -> PETLError:
    """Asserts that a file is refused by an error of one line that names the field, and leaves no trace in the model."""
    half_frozen(model)
    before = image(model)
    with pytest.raises(error) as caught:
        load(model, path)
    assert image(model) == before
    assert field in caught.value.where
    assert "\n" not in str(caught.value)
    return caught.value
