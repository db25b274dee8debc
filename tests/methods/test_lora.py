"""LoRA against PEFT's numbers and PEFT itself; its parts, counts and arguments."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from golden_files import close, golden, golden_vit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lightning_petl import (
    Affine,
    ConfigError,
    LoRA,
    NotMergeable,
    Target,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.methods.lora import LoRALayer
from lightning_petl.testing import BACKBONES, add_noise

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


def golden_model(dtype: torch.dtype) -> nn.Module:
    """The ViT of the golden vectors with the adapters that PEFT made for it."""
    tensors, config = golden("f_lora_vit")
    model = inject(golden_vit(dtype), LoRA(config["r"], config["lora_alpha"]))
    with torch.no_grad():
        for path, layer in adapted_layers(model).items():
            layer.adapter.down.weight.copy_(tensors[f"lora.{path}.lora_A"])
            layer.adapter.up.weight.copy_(tensors[f"lora.{path}.lora_B"])
    return model


def images(dtype: torch.dtype) -> Tensor:
    return golden("b_repadapter_vit")[0]["images"].to(dtype)


@each_dtype
def test_golden_vit(dtype: torch.dtype) -> None:
    tensors, _ = golden("f_lora_vit")
    atol = TOLERANCE[dtype]
    close(golden_vit(dtype)(images(dtype)), tensors["base.logits"], atol)
    model = golden_model(dtype)
    assert len(adapted_layers(model)) == 3
    close(model(images(dtype)), tensors["logits"], atol)
    merge(model)
    close(model(images(dtype)), tensors["logits_merged"], atol)
    probe = golden("b_repadapter_vit")[0]["probe.x"].to(dtype)
    for i in range(3):
        weight = model.get_submodule(f"blocks.{i}.attn.qkv").weight
        close(weight @ probe, tensors[f"merged.blocks.{i}.attn.qkv.weight_probe"], atol)


def test_gradients_are_those_of_peft() -> None:
    ours = golden_model(torch.float64)
    theirs = get_peft_model(golden_vit(), LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"]))
    with torch.no_grad():
        for path, layer in adapted_layers(ours).items():
            other = theirs.get_submodule(f"base_model.model.{path}")
            other.lora_A["default"].weight.copy_(layer.adapter.down.weight)
            other.lora_B["default"].weight.copy_(layer.adapter.up.weight)
    for model in (ours, theirs):
        model.train()(images(torch.float64)).square().sum().backward()
    for path, layer in adapted_layers(ours).items():
        other = theirs.get_submodule(f"base_model.model.{path}")
        close(layer.adapter.down.weight.grad, other.lora_A["default"].weight.grad, 1e-9)
        close(layer.adapter.up.weight.grad, other.lora_B["default"].weight.grad, 1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_initialisation_is_that_of_peft(bias: bool) -> None:
    ours = inject(golden_vit(), LoRA(rank=64, bias=bias))
    config = LoraConfig(r=64, target_modules=["qkv"], lora_bias=bias)
    theirs = get_peft_model(golden_vit(), config, autocast_adapter_dtype=False)
    for path, layer in adapted_layers(ours).items():
        other = theirs.get_submodule(f"base_model.model.{path}")
        found, expected = layer.adapter.down.weight.detach(), other.lora_A["default"].weight.detach()
        assert found.shape == expected.shape
        bound = found.shape[1] ** -0.5  # of kaiming_uniform_ with a = sqrt(5)
        for weight in (found, expected):
            assert 0.97 * bound < float(weight.abs().max()) <= bound
            assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.adapter.up.weight.any()
        assert (layer.adapter.up.bias is not None) == bias
        assert not bias or not layer.adapter.up.bias.any()


def target(name: str = "qkv", width: int = 8, out: int = 24, site: str = "attn") -> Target:
    return Target(f"blocks.0.attn.{name}", site, width, out, True, torch.device("cpu"), torch.float64)


def trained_layer(method: LoRA, place: Target) -> LoRALayer:
    adapter = method.build(place).eval()
    add_noise(adapter.parameters(), std=1.0)
    return adapter


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("parts", [("q", "v"), ("v", "q"), ("k",), ("q", "k", "v")], ids="".join)
def test_each_part_has_a_pair_of_its_own(parts: Sequence[str], bias: bool) -> None:
    adapter = trained_layer(LoRA(rank=2, alpha=6, parts=parts, bias=bias), target())
    ordered = [part for part in ("q", "k", "v") if part in parts]
    assert adapter.down.weight.shape == (2 * len(parts), 8)
    assert adapter.up.weight.shape == (8 * len(parts), 2)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    base = Affine(torch.randn(24, 8, dtype=torch.float64), torch.randn(24, dtype=torch.float64))
    expected = base(x)
    for i, part in enumerate(ordered):
        rows, start = slice(8 * i, 8 * (i + 1)), 8 * "qkv".index(part)
        down, up = adapter.down.weight[2 * i : 2 * i + 2], adapter.up.weight[rows]
        added = 3 * (x @ down.T @ up.T + (adapter.up.bias[rows] if bias else 0))
        expected[..., start : start + 8] += added
    close(adapter(x, base), expected, 1e-12)
    merged = adapter.merged(base)
    close(merged(x), expected, 1e-12)
    for part in {"q", "k", "v"} - set(parts):
        rows = slice(8 * "qkv".index(part), 8 * "qkv".index(part) + 8)
        assert torch.equal(merged.weight[rows], base.weight[rows])
        assert torch.equal(merged.bias[rows], base.bias[rows])


def test_a_layer_of_keys_and_values_holds_two_parts() -> None:
    adapter = trained_layer(LoRA(rank=2, parts=("q", "v")), target("kv", out=16))
    base = Affine(torch.zeros(16, 8, dtype=torch.float64))
    changed = adapter.merged(base).weight
    assert not changed[:8].any()
    assert changed[8:].abs().min() > 0


def test_parts_choose_among_separate_layers(tmp_path) -> None:
    backbone = BACKBONES["separate_qkv"]
    model = inject(backbone.build(torch.float64), LoRA(rank=2, parts=("q", "v")))
    names = {name.split(".adapter.")[0].rpartition(".")[2] for name in trainable(model)}
    assert names == {"q", "v"}
    add_noise(trainable(model).values(), std=0.5)
    plain, inputs = backbone.build(torch.float64), backbone.inputs(torch.float64)
    expected = model(inputs)
    save_adapter(model, tmp_path / "parts.safetensors")
    loaded = load_adapter(backbone.build(torch.float64), tmp_path / "parts.safetensors")
    close(loaded(inputs), expected, 1e-12)
    merge(model)
    close(model(inputs), expected, 1e-12)
    for path, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            same = torch.equal(layer.weight, model.get_submodule(path).weight)
            assert same == (path.rpartition(".")[2] not in {"q", "v"}), path


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (target("qkv", out=32), "8 inputs and 32 outputs"),
        (target("kv", out=24), "does not hold k, v"),
        (target("proj", out=8), "does not hold q, k, v"),
    ],
    ids=lambda value: value.path if isinstance(value, Target) else "",
)
def test_parts_of_another_layer_are_refused(place: Target, reason: str) -> None:
    with pytest.raises(NotMergeable, match=rf"{reason}.*\[{place.path}\]"):
        LoRA(parts=("q", "v")).build(place)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (LoRA(), 294_912),
        (LoRA(parts=("q", "v")), 294_912),
        (LoRA(parts=("q",)), 147_456),
        (LoRA(rank=16), 589_824),
        (LoRA(bias=True), 294_912 + 12 * 2304),
        (LoRA(sites=("attn", "mlp")), 294_912 + 12 * 8 * (768 + 3072)),
    ],
    ids=repr,
)
def test_counts_on_vit_base(method: LoRA, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert sum(parameter.numel() for parameter in trainable(inject(model, method)).values()) == count


def test_dropout_acts_on_the_branch_in_training_only() -> None:
    adapter = trained_layer(LoRA(rank=2, alpha=4, dropout=0.5), target())
    base = Affine(torch.randn(24, 8, dtype=torch.float64))
    x = torch.randn(200, 8, dtype=torch.float64)
    expected = adapter(x, base)
    close(adapter(x, base), expected, 0.0)
    adapter.train()
    found = torch.stack([adapter(x, base) for _ in range(300)])
    assert found.std(0).min() > 0
    assert ((found.mean(0) - expected).abs() / found.std(0)).mean() < 0.1  # 300 draws have the mean, to their error


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"parts": "qv"}, "parts"),
        ({"parts": ()}, "parts"),
        ({"parts": ("q", "q")}, "parts"),
        ({"parts": ("query",)}, "parts"),
        ({"parts": ("q",), "sites": ("attn", "mlp")}, "parts"),
        ({"sites": "attn"}, "sites"),
    ],
    ids=str,
)
def test_bad_arguments_name_their_field(arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{field}\]"):
        LoRA(**arguments)
