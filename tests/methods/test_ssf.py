"""SSF: which operations it follows on each family, where it starts, and that every kind of operation takes it in."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import LayerNorm, LayerNorm2d
from torch import Tensor, nn

from lightning_petl import SSF, NotMergeable, TargetNotFound, adapted_layers, inject, merge, trainable
from lightning_petl.methods.ssf import OPERATIONS
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import convnext, swin, vit

MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit, layer scale, no qkv bias": lambda: vit(init_values=0.1, qkv_bias=False),
    "vit, norms of q and k, mean pooling": lambda: vit(qk_norm=True, global_pool="avg"),
    "vit, norm in front": lambda: vit(pre_norm=True),
    "swin": swin,
    "convnext": convnext,
    "convnext of convolutions": lambda: convnext(conv_mlp=True),
    "convnext, norm before pooling": lambda: convnext(head_norm_first=True),
}
each_model = pytest.mark.parametrize("name", MODELS)
CLASSIFIERS = {"head", "head.fc"}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    add_noise(model.parameters(), std=0.05)
    return model


def operations(model: nn.Module) -> set[str]:
    """Paths of all layers with weights, by type and not by name, without the classifier."""
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    return {path for path, module in model.named_modules() if isinstance(module, kinds)} - CLASSIFIERS


@each_model
def test_every_operation_is_followed(name: str) -> None:
    expected = operations(build(name))
    layers = adapted_layers(inject(build(name), SSF()))
    assert layers.keys() == expected
    for layer in layers.values():
        shapes = {key: tuple(parameter.shape) for key, parameter in layer.adapter.named_parameters()}
        assert shapes == {"scale": (layer.out_features,), "shift": (layer.out_features,)}


def output(model: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        found: Tensor = model(x)
    return found


@each_model
def test_merging_is_exact_and_creates_missing_biases(name: str) -> None:
    plain, model = build(name), inject(build(name), SSF())
    add_noise(trainable(model).values(), std=0.2)
    expected = output(model)
    assert (expected - output(plain)).abs().max() > 1e-3
    certificate = merge(model)
    assert (output(model) - expected).abs().max() < 1e-12 * expected.abs().max()
    assert {type(module) for module in model.modules()} == {type(module) for module in plain.modules()}
    lacking = {f"{path}.bias" for path in operations(plain) if plain.get_submodule(path).bias is None}
    assert set(certificate.created) == lacking
    assert bool(lacking) == (name in {"swin", "vit, layer scale, no qkv bias", "vit, norm in front"})


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_base_patch16_224", 205_824),  # patch embedding, 25 norms, 48 linear layers
        ("vit_small_patch16_224", 102_912),
        ("swin_base_patch4_window7_224", 278_016),
        ("convnext_base", 260_608),
    ],
)
def test_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    rows = sum(len(model.get_submodule(path).weight) for path in operations(model))
    assert sum(parameter.numel() for parameter in trainable(inject(model, SSF())).values()) == 2 * rows == count


def test_it_starts_near_the_identity_as_the_official_code_does() -> None:
    torch.manual_seed(0)
    found = trainable(inject(vit(depth=24), SSF()))
    scale = torch.cat([parameter.detach() for name, parameter in found.items() if name.endswith("scale")])
    shift = torch.cat([parameter.detach() for name, parameter in found.items() if name.endswith("shift")])
    assert len(scale) == len(shift) > 8000
    for values, mean in ((scale, 1.0), (shift, 0.0)):
        assert float(values.mean()) == pytest.approx(mean, abs=1e-3)
        assert float(values.std()) == pytest.approx(0.02, rel=0.03)


IMAGES = (2, 8, 6, 6)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(8, 12), (2, 3, 8)),
    "linear without bias": (nn.Linear(8, 12, bias=False), (2, 3, 8)),
    "layer norm": (nn.LayerNorm(8), (2, 3, 8)),
    "layer norm without bias": (nn.LayerNorm(8, bias=False), (2, 3, 8)),
    "layer norm of timm": (LayerNorm(8), (2, 3, 8)),
    "layer norm of images": (LayerNorm2d(8), IMAGES),
    "convolution": (nn.Conv2d(8, 12, 3, stride=2, padding=1), IMAGES),
    "1x1 convolution": (nn.Conv2d(8, 12, 1, bias=False), IMAGES),
    "grouped convolution": (nn.Conv2d(8, 12, 3, groups=4, padding=1), IMAGES),
    "depthwise convolution": (nn.Conv2d(8, 8, 7, groups=8, padding=3), IMAGES),
    "convolution of time": (nn.Conv1d(8, 12, 3, padding=1), (2, 8, 9)),
    "convolution of video": (nn.Conv3d(8, 12, 2), (2, 8, 3, 4, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_operation_takes_it_in(name: str, dtype: torch.dtype) -> None:
    layer, shape = LAYERS[name]
    model = nn.Sequential(layer).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    add_noise(model.parameters(), std=0.5)
    plain = model(x).detach()
    inject(model, SSF(targets=("0",)), inputs=(x,))
    add_noise(trainable(model).values(), std=0.5)
    scale, shift = (getattr(model[0].adapter, key).detach().to(dtype) for key in ("scale", "shift"))
    axis = 1 if len(shape) > 3 or name == "convolution of time" else -1
    expected = (plain.movedim(axis, -1) * scale + shift).movedim(-1, axis)
    limit = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype] * float(expected.abs().max())
    assert (model(x) - expected).abs().max() <= limit
    merge(model)
    assert (model(x) - expected).abs().max() <= limit
    assert type(model[0]) is type(layer)
    assert model(x).dtype == dtype


def test_a_norm_without_a_weight_for_each_output_is_refused() -> None:
    with pytest.raises(NotMergeable, match=r"BatchNorm2d.*\[1\]"):
        inject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), SSF(targets=(r"[01]",)))


def test_places_without_a_layer_are_passed_over_but_not_alone() -> None:
    assert type(vit().fc_norm) is nn.Identity
    assert "fc_norm" not in adapted_layers(inject(vit(), SSF()))
    with pytest.raises(TargetNotFound, match="places without a layer alone: fc_norm"):
        inject(vit(), SSF(targets=("fc_norm",)))


def test_a_classifier_of_several_layers_is_left_to_the_task() -> None:
    with torch.device("meta"):
        model = timm.create_model("caformer_s18", num_classes=5)
    head = [path for path, _ in model.named_modules() if path.startswith("head.fc.")]
    assert {"head.fc.fc1", "head.fc.norm", "head.fc.fc2"} <= set(head)
    assert not [path for path in head if re.fullmatch(OPERATIONS, path)]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_training_goes_through_the_operation(name: str) -> None:
    backbone = BACKBONES[name]
    model = inject(backbone.build(), SSF()).train()
    model(backbone.inputs()).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable(model).values())
