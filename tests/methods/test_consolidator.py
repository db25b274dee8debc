"""Consolidator against the numbers of its official implementation, and its arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from consolidator_layers import CPU, affine, layer, tokens
from golden_files import GOLDEN, close, golden
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_petl import (
    Affine,
    ConfigError,
    Consolidator,
    NotMergeable,
    Target,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.methods.consolidator import ConsolidatorLayer
from lightning_petl.testing import BACKBONES, add_noise

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))

CASES = json.loads((GOLDEN / "g_consolidator_reference.json").read_text(encoding="utf-8"))


def fill(adapter: ConsolidatorLayer, tensors: dict[str, Tensor], prefix: str) -> None:
    for name, parameter in adapter.named_parameters():
        with torch.no_grad():
            parameter.copy_(tensors[f"{prefix}.{name.replace('branches.', 'branch')}"])


@each_dtype
@pytest.mark.parametrize("case", CASES)
def test_golden_reference(case: str, dtype: torch.dtype) -> None:
    config, tensors = CASES[case], load_file(GOLDEN / "g_consolidator_reference.safetensors")
    adapter = layer(
        config["in_features"],
        config["out_features"],
        tuple(config["groups"]),
        config["channel_shuffle"],
        dtype,
        bias=config["branch_bias"],
    )
    fill(adapter, tensors, case)
    assert sum(weight.numel() for weight in adapter._weights()) == config["tuned_weights"]
    bias = tensors[f"{case}.base.bias"].to(dtype) if config["base_bias"] else None
    base, x, atol = Affine(tensors[f"{case}.base.weight"].to(dtype), bias), tensors[f"{case}.input"], TOLERANCE[dtype]

    small = adapter.consolidated()
    assert small.values.shape == (config["stored_weights"],)
    for form in (adapter, small):
        close(form(x.to(dtype), base), tensors[f"{case}.output"], atol)
        merged = form.merged(base)
        close(merged.weight, tensors[f"{case}.merged.weight"], atol)
        stored = tensors[f"{case}.merged.bias"]  # zeros stand for none
        close(merged.bias if merged.bias is not None else torch.zeros_like(stored), stored, atol)


@each_dtype
@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("variant", ["none", "shuf_in"])
def test_golden_grouped(variant: str, groups: int, dtype: torch.dtype) -> None:
    # The file's other variants permute the outputs too, which this method never does, and its sum is one of those.
    tensors, config = golden("e_consolidator_grouped")
    adapter = layer(config["inp"], config["out"], (groups,), variant == "shuf_in", dtype, bias=False)
    with torch.no_grad():
        adapter.branches[0].weight.copy_(tensors[f"g{groups}.weight"].flatten(0, 1))
    base = Affine(tensors["linear.weight"], tensors["linear.bias"]).to(dtype)
    x = tensors["x"].to(dtype)
    for found in (adapter(x, base), adapter.merged(base)(x), adapter.consolidated()(x, base)):
        close(found, tensors[f"g{groups}.{variant}.out"], TOLERANCE[dtype])
    order = tensors[f"g{groups}.{variant}.perm_in"]
    probe = adapter.merged(Affine(torch.zeros_like(base.weight))).weight[:, order]  # columns by their position
    block = torch.block_diag(*(torch.ones(config["out"] // groups, config["inp"] // groups) for _ in range(groups)))
    assert torch.equal(probe != 0, block.bool())


# -- what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("i", "o", "groups", "shuffle", "tuned", "stored"),
    [
        (768, 768, (384,), False, 1_536, 1_536),
        (768, 768, (384, 384), False, 3_072, 1_536),
        (768, 768, (384, 192), False, 4_608, 3_072),  # nested blocks
        (768, 768, (384, 192), True, 4_608, 4_600),  # almost disjoint
        (768, 3072, (256, 384), True, 15_360, 15_328),
        (3072, 768, (384,), True, 6_144, 6_144),
    ],
)
def test_sizes_of_the_consolidated_form(
    i: int, o: int, groups: tuple[int, ...], shuffle: bool, tuned: int, stored: int
) -> None:
    adapter, base = layer(i, o, groups, shuffle), affine(i, o)
    small = adapter.consolidated()
    assert sum(weight.numel() for weight in adapter._weights()) == tuned
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == {"values": (stored,), "bias": (o,)}
    expected = adapter.merged(base)
    torch.testing.assert_close(small.merged(base).weight, expected.weight, rtol=0, atol=1e-14)
    torch.testing.assert_close(small.merged(base).bias, expected.bias, rtol=0, atol=1e-14)
    change = (expected.weight - base.weight)[small.merged(Affine(torch.zeros(o, i))).weight != 0]
    torch.testing.assert_close(small.values.detach(), change.detach(), rtol=0, atol=1e-14)  # row by row
    assert small.consolidated() is small


@pytest.mark.parametrize("groups", [(4,), (4, 2)], ids=str)
def test_consolidated_form_shares_no_memory(groups: tuple[int, ...]) -> None:
    adapter = layer(16, 16, groups)
    before, small = adapter.merged(affine(16, 16)).weight.clone(), adapter.consolidated()
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.zero_()
    small.to(torch.float32)
    assert torch.equal(adapter.merged(affine(16, 16)).weight, before)
    assert all(parameter.abs().max() > 0 for parameter in adapter.parameters())


def test_without_any_bias_none_is_stored() -> None:
    small = layer(16, 16, (4, 2), bias=False).consolidated()
    assert list(small.state_dict()) == ["values"]
    assert small.merged(Affine(torch.ones(16, 16))).bias is None


def test_pattern_survives_empty_storage() -> None:
    adapter, base, x = layer(16, 32, (4, 8), True), affine(16, 32), tokens(16, 3, 5)
    again = layer(16, 32, (4, 8), True).to("meta").to_empty(device="cpu")
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again(x, base), adapter(x, base))


# -- counts ------------------------------------------------------------------------------------------------------------


def sizes(name: str, method: Consolidator) -> tuple[nn.Module, dict[str, int]]:
    """A backbone with a method, without memory, and the size of each parameter that trains."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    inject(model, method)
    return model, {name: parameter.numel() for name, parameter in trainable(model).items()}


VIT = "vit_base_patch16_224"


@pytest.mark.parametrize(
    ("name", "groups", "weights", "biases"),
    [
        ("vit_small_patch16_224", (384,), 55_296, 41_472),
        (VIT, (384,), 221_184, 82_944),
        ("vit_small_patch16_224", None, 110_592, 41_472),
        (VIT, None, 221_184, 82_944),
        ("vit_large_patch16_224", None, 589_824, 221_184),
        ("vit_huge_patch14_224", None, 983_040, 368_640),
        ("swin_base_patch4_window7_224", None, 288_768, 108_288),
        ("convnext_base", None, 288_768, 90_240),
    ],
)
def test_counts(name: str, groups: tuple[int, ...] | None, weights: int, biases: int) -> None:
    _, found = sizes(name, Consolidator(groups))
    assert sum(size for key, size in found.items() if key.endswith(".weight")) == weights
    assert sum(size for key, size in found.items() if key.endswith(".bias")) == biases
    assert sum(found.values()) == weights + biases


def test_counts_with_norms_and_biases() -> None:
    model, found = sizes(VIT, Consolidator(train_norms_and_biases=True))
    assert sum(found.values()) == 425_472
    assert sum(size for key, size in found.items() if ".adapter." not in key) == 38_400
    assert sum(size for key, size in found.items() if key.endswith("base_bias")) == 82_944
    stored = sum(
        tensor.numel()
        for layer in adapted_layers(model).values()
        for tensor in layer.adapter.consolidated().state_dict().values()
    )
    assert stored + 38_400 == 342_528


@pytest.mark.parametrize("name", ["vit_large_patch16_224", "swin_base_patch4_window7_224", "convnext_base"])
def test_paper_groups_do_not_fit_other_widths(name: str) -> None:
    with pytest.raises(NotMergeable, match="384 groups do not divide both"):
        sizes(name, Consolidator(groups=(384,)))


# -- where it goes -----------------------------------------------------------------------------------------------------


def places(model: nn.Module) -> set[str]:
    return {re.sub(r"(?<=[._])\d+\.", "#.", path) for path in adapted_layers(model)}


BLOCK = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}


@pytest.mark.parametrize(
    ("name", "blocks", "layers"),
    [
        ("vit_tiny_patch16_224", "blocks.#", BLOCK),
        ("deit_tiny_distilled_patch16_224", "blocks.#", BLOCK),
        ("swin_tiny_patch4_window7_224", "layers.#.blocks.#", BLOCK),
        ("convnext_tiny", "stages.#.blocks.#", {"mlp.fc1", "mlp.fc2"}),
        ("mixer_s16_224", "blocks.#", {"mlp_channels.fc1", "mlp_channels.fc2"}),
        ("vit_base_patch16_siglip_224", "blocks.#", BLOCK),  # its attention pool belongs to the head
    ],
)
def test_default_layers(name: str, blocks: str, layers: set[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert places(inject(model, Consolidator())) == {f"{blocks}.{layer}" for layer in layers}


def test_separate_queries_keys_and_values_have_a_branch_each() -> None:
    with torch.device("meta"):
        model = timm.create_model("cait_xxs24_224")
    apart = {"attn.q", "attn.k", "attn.v", *BLOCK} - {"attn.qkv"}
    expected = {f"blocks.#.{layer}" for layer in BLOCK} | {f"blocks_token_only.#.{layer}" for layer in apart}
    assert places(inject(model, Consolidator())) == expected


def test_default_layers_of_torchvision() -> None:
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    inject(model, Consolidator())  # its attention reads its weights itself, and takes no adapter
    assert places(model) == {f"encoder.layers.encoder_layer_#.mlp.{k}" for k in (0, 3)}
    assert len(adapted_layers(model)) == 24


@pytest.mark.parametrize(
    ("backbone", "block", "inside", "final"),
    [
        ("vit", "blocks.#", {"norm1", "norm2"}, "norm"),
        ("swin", "layers.#.blocks.#", {"norm1", "norm2"}, "norm"),
        ("convnext", "stages.#.blocks.#", {"norm"}, "head.norm"),
    ],
)
def test_norms_and_biases_that_train(backbone: str, block: str, inside: set[str], final: str) -> None:
    model = inject(BACKBONES[backbone].build(), Consolidator(train_norms_and_biases=True))
    found = {re.sub(r"(?<=[._])\d+\.", "#.", name) for name in trainable(model) if ".adapter." not in name}
    norms = {f"{block}.{norm}" for norm in inside} | {final}
    expected = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    # The depthwise convolution in a ConvNeXt's block takes no adapter, and its bias trains in place.
    assert found == expected | ({f"{block}.conv_dw.bias"} if backbone == "convnext" else set())
    biases = [layer.adapter.base_bias for layer in adapted_layers(model).values()]
    assert all(torch.equal(bias, torch.zeros_like(bias)) for bias in biases)


def test_without_the_option_nothing_of_the_backbone_trains() -> None:
    model = inject(BACKBONES["vit"].build(), Consolidator())
    assert all(".adapter.branches." in name for name in trainable(model))
    assert {layer.adapter.base_bias for layer in adapted_layers(model).values()} == {None}


def test_base_bias_is_only_for_layers_that_have_one() -> None:
    model = inject(BACKBONES["vit_layer_scale"].build(), Consolidator(bias=False, train_norms_and_biases=True))
    found = {path for path, layer in adapted_layers(model).items() if layer.adapter.base_bias is None}
    assert found == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    assert merge(model).created == ()


def test_training_the_bias_beside_it_is_training_it_in_place() -> None:
    """AdamW without weight decay takes the same steps on the change of a bias as on the bias itself."""
    base, x = affine(8, 8), tokens(8, 5)
    target = Target("fc", "custom", 8, 8, True, CPU, torch.float64)
    adapter = Consolidator((4,), bias=False, train_norms_and_biases=True).build(target)
    weight, bias = adapter.merged(base).weight.detach(), nn.Parameter(base.bias.clone())
    for values, output in (
        (bias, lambda: nn.functional.linear(x, weight, bias)),
        (adapter.base_bias, lambda: adapter(x, base)),
    ):
        optimizer = torch.optim.AdamW([values], lr=0.1, weight_decay=0)
        for _ in range(3):
            optimizer.zero_grad()
            output().square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(base.bias + adapter.base_bias.detach(), bias.detach(), rtol=0, atol=1e-12)


def test_file_holds_norms_and_the_consolidated_form(tmp_path: Path) -> None:
    backbone = BACKBONES["swin"]
    model = inject(backbone.build(torch.float64), Consolidator((4, 8), True, 0.5, train_norms_and_biases=True))
    add_noise(trainable(model).values())
    save_adapter(model.eval(), tmp_path / "swin.safetensors")
    held = load_file(tmp_path / "swin.safetensors")
    ends = {re.sub(r"(layers|blocks)\.\d+", r"\1.#", name) for name in held}
    assert {"adapters.layers.#.blocks.#.attn.qkv.values", "adapters.layers.#.blocks.#.attn.qkv.bias"} <= ends
    assert {"extra.layers.#.blocks.#.norm1.weight", "extra.norm.bias"} <= ends
    assert not any("branches" in name for name in ends)
    loaded = load_adapter(backbone.build(torch.float64), tmp_path / "swin.safetensors")
    x = backbone.inputs(torch.float64)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-12)
    expected = model(x)
    merge(loaded)
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-12)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"groups": ()}, "groups"),
        ({"groups": (0,)}, "groups"),
        ({"groups": (-4,)}, "groups"),
        ({"groups": (4.0,)}, "groups"),
        ({"groups": (True,)}, "groups"),
        ({"groups": 384}, "groups"),
        ({"groups": "384"}, "groups"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"drop_path": float("nan")}, "drop_path"),
        ({"targets": ".*"}, "targets"),
    ],
    ids=str,
)
def test_bad_arguments_name_their_field(arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{field}\]"):
        Consolidator(**arguments)


@pytest.mark.parametrize(
    ("i", "o", "groups", "message"),
    [
        (12, 16, (8,), "8 groups do not divide both 12 input and 16 output"),
        (16, 12, (4, 8), "8 groups do not divide both 16 input and 12 output"),
        (10, 16, None, "5 groups do not divide both 10 input and 16 output"),
    ],
)
def test_groups_that_do_not_divide_a_width_are_refused(
    i: int, o: int, groups: tuple[int, ...] | None, message: str
) -> None:
    model = nn.Sequential(nn.Linear(i, o))
    with pytest.raises(NotMergeable, match=rf"{message} features \[0\]"):
        inject(model, Consolidator(groups, targets=("0",)))
    assert type(model[0]) is nn.Linear


def test_variants_are_settings_of_the_method() -> None:
    count, trained = (Consolidator(**arguments) for arguments in Consolidator.variants.values())
    assert (count.groups, count.train_norms_and_biases) == ((384,), False)
    assert (trained.groups, trained.train_norms_and_biases) == (None, True)


def test_every_layer_of_transformers_blocks_is_adapted() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    model = inject(transformers.ViTForImageClassification(config), Consolidator())
    names = {path.removeprefix("vit.layers.0.") for path in adapted_layers(model)}
    assert names == {f"attention.{part}_proj" for part in "qkvo"} | {"mlp.fc1", "mlp.fc2"}


def test_an_activation_in_place_may_follow() -> None:
    layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16))
    model = inject(layers, Consolidator(groups=(8,), targets=("0",)), inputs=(torch.randn(2, 3, 16),)).train()
    model(torch.randn(2, 3, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
