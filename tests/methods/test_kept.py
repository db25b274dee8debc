"""What training keeps of activations, and that its gradients are plain autograd's, inside whole backbones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kept import floor, kept_bytes, plain_autograd
from torch import Tensor, nn

from lightning_petl import ARC, Consolidator, LoRA, Method, RepAdapter, inject, trainable
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import Toy, swin, vit

METHODS: dict[str, Callable[[], Method]] = {
    "repadapter": RepAdapter,
    "repadapter_attn": lambda: RepAdapter(sites=["attn"], groups=1, scale=0.5, dropout=0),
    "arc": lambda: ARC(rank=8),
    "lora": lambda: LoRA(sites=["attn", "mlp"]),
    "lora_dropout": lambda: LoRA(dropout=0.1),
    "lora_parts": lambda: LoRA(parts=["q", "v"], bias=True),
    "consolidator": lambda: Consolidator((4, 8)),
}
# Of ViT-S, in its own proportions of width to rank; the floor keeps something in front of the blocks too.
GOALS = {
    "repadapter": (RepAdapter, 1.02),
    "arc": (ARC, 1.04),
    "lora": (LoRA, 1.0),
    "lora_dropout": (lambda: LoRA(dropout=0.1), 1.02),
    "consolidator": (Consolidator, 1.02),
}


def wide_vit() -> nn.Module:
    return vit(img_size=64, embed_dim=384, num_heads=6, depth=3)


def wide_swin() -> nn.Module:
    return swin(embed_dim=96, num_heads=(3, 6))


def learning(build: Callable[[], nn.Module], method: Method) -> nn.Module:
    model = inject(build(), method).train()
    model.head.requires_grad_(True)
    return model


@pytest.mark.parametrize("name", GOALS)
def test_a_vit_keeps_what_the_frozen_one_keeps(name: str) -> None:
    method, goal = GOALS[name]
    x = torch.randn(16, 3, 64, 64)
    assert kept_bytes(learning(wide_vit, method()), x) <= goal * kept_bytes(floor(wide_vit), x)


@pytest.mark.parametrize(
    ("name", "sites", "copy"), [("repadapter", 6, 0), ("arc", 6, 384 * 50), ("lora", 3, 3 * 384 * 8)]
)
def test_plain_autograd_keeps_one_activation_more_at_each_place(name: str, sites: int, copy: int) -> None:
    """But the first, whose input has no history; for it, there is a number a place, and the up weight laid out anew."""
    x, model = torch.randn(4, 3, 64, 64), learning(wide_vit, GOALS[name][0]())
    with plain_autograd():
        plain = kept_bytes(model, x)
    activation = 4 * (64 + 1) * 384
    assert plain - kept_bytes(model, x) == 4 * ((sites - 1) * (activation - 1) - sites * copy)


@pytest.mark.parametrize(("name", "goal"), [("repadapter", 1.06), ("lora", 1.06)])
def test_a_swin_keeps_its_windows_and_nothing_else(name: str, goal: float) -> None:
    """Attention's input there is no LayerNorm's output, but its cut into windows; it is kept."""
    x, method = torch.randn(4, 3, 32, 32), GOALS[name][0]
    assert kept_bytes(learning(wide_swin, method()), x) <= goal * kept_bytes(floor(wide_swin), x)


def test_one_adapter_in_front_of_separate_layers_keeps_nothing() -> None:
    x = torch.randn(4, 50, 96, requires_grad=True)
    frozen = Toy(96, separate=True).requires_grad_(False).train()
    frozen.head.requires_grad_(True)
    for method in (RepAdapter(), LoRA()):
        model = learning(lambda: Toy(96, separate=True), method)
        extra = kept_bytes(model, x) - kept_bytes(frozen, x)
        assert extra < x.nbytes  # the units of all adapters together, and no input of any


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.autograd.grad(model(x).square().mean(), list(trainable(model).values()))


def assert_close(model: nn.Module, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, one, other in zip(trainable(model), found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp_min(tolerance), name


SITES = {"convnext": {"targets": [r".*\.mlp\.fc[12]"]}, "separate_qkv": {"sites": ["mlp"]}}
SETTINGS = [
    *((name, backbone, METHODS[name]) for name in METHODS for backbone in ("vit", "vit_layer_scale", "swin")),
    *(
        (method.__name__.lower(), backbone, partial(method, **where))
        for method in (RepAdapter, ARC, LoRA)
        for backbone, where in SITES.items()
    ),
    *((name, "separate_qkv", METHODS[name]) for name in ("repadapter", "lora", "lora_parts", "consolidator")),
    ("consolidator", "convnext", METHODS["consolidator"]),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "backbone", "method"), SETTINGS)
def test_gradients_are_those_of_plain_autograd(
    name: str, backbone: str, method: Callable[[], Method], training: bool
) -> None:
    model = inject(BACKBONES[backbone].build(torch.float64), method()).train(training)
    add_noise(trainable(model).values())
    x = BACKBONES[backbone].inputs(torch.float64)
    with plain_autograd():
        expected = gradients(model, x)
    assert_close(model, gradients(model, x), expected, 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_in_single_precision_and_under_autocast(name: str) -> None:
    model, x = inject(BACKBONES["vit"].build(), METHODS[name]()).train(), BACKBONES["vit"].inputs()
    add_noise(trainable(model).values())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with plain_autograd():
                expected = gradients(model, x)
            assert_close(model, gradients(model, x), expected, tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing(name: str) -> None:
    model, x = inject(BACKBONES["vit"].build(torch.float64), METHODS[name]()).train(), BACKBONES["vit"].inputs()
    add_noise(trainable(model).values())
    with plain_autograd():
        expected = gradients(model, x.double())
    model.set_grad_checkpointing(True)
    assert_close(model, gradients(model, x.double()), expected, 1e-12)
