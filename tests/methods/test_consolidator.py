"""Consolidator against the numbers of its official implementation, and its arguments."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
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
from lightning_petl.methods import consolidator
from lightning_petl.methods.consolidator import INIT, ConsolidatorLayer
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import vit

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))

CASES = json.loads((GOLDEN / "g_consolidator_reference.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")


def layer(
    i: int, o: int, groups: tuple[int, ...] | None, shuffle: bool = False, dtype: torch.dtype = torch.float64, **more
) -> ConsolidatorLayer:
    """An adapter by itself, with branches that are large enough to see."""
    torch.manual_seed(0)
    target = Target("fc", "custom", i, o, True, CPU, dtype)
    adapter = Consolidator(groups, channel_shuffle=shuffle, **more).build(target).eval()
    add_noise(adapter.parameters())
    return adapter


def affine(i: int, o: int, dtype: torch.dtype = torch.float64) -> Affine:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(o, i, generator=generator, dtype=torch.float64)
    return Affine(weight, torch.randn(o, generator=generator, dtype=torch.float64)).to(dtype)


def tokens(i: int, *shape: int) -> Tensor:
    return torch.randn(*shape, i, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


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


# -- training ----------------------------------------------------------------------------------------------------------


def test_initialisation_is_uniform_and_small() -> None:
    torch.manual_seed(0)
    model = inject(timm.create_model("vit_tiny_patch16_224", depth=1), Consolidator())
    values = torch.cat([parameter.detach().flatten() for parameter in trainable(model).values()])
    assert len(values) == 12 * 192 + 9 * 192 + 9 * 192 - 12 * 192 + 15 * 192  # weights 24 d, biases 9 d
    assert values.abs().max() <= INIT
    assert values.abs().max() > 0.99 * INIT
    assert abs(float(values.std()) - INIT / 3**0.5) < 0.02 * INIT


def reference_output(adapter: ConsolidatorLayer, x: Tensor, base: Affine, factors: Tensor) -> Tensor:
    """The definition, branch by branch: factors ``(batch, branches)`` stand for drop-path."""
    out = base(x)
    for k, branch in enumerate(adapter.branches):
        one = layer(base.in_features, base.out_features, (adapter.pattern.groups[k],), adapter.pattern.shuffle)
        with torch.no_grad():
            one.branches[0].bias.zero_()
        one.branches[0].weight = branch.weight
        dense = one.merged(Affine(torch.zeros_like(base.weight))).weight
        out = out + factors[:, k].view(-1, 1, 1) * (x @ dense.T + branch.bias)
    return out


@pytest.mark.parametrize("shuffle", [False, True], ids=["plain", "shuffled"])
@pytest.mark.parametrize("groups", [(8,), (4, 8), (8, 4, 2)], ids=str)
def test_drop_path_is_the_sum_of_what_is_kept(groups: tuple[int, ...], shuffle: bool) -> None:
    adapter, base = layer(16, 48, groups, shuffle, drop_path=0.4).train(), affine(16, 48)
    x = tokens(16, 7, 5).requires_grad_()
    torch.manual_seed(11)
    found = adapter(x, base)
    torch.manual_seed(11)
    factors = torch.zeros(7, len(groups), dtype=torch.float64)
    for part in consolidator._parts(7, len(groups), 0.4, CPU):
        factors[part.samples] = torch.tensor(part.factors, dtype=torch.float64)
    assert set(factors.flatten().tolist()) == {0.0, 1 / 0.6}
    expected = reference_output(adapter, x, base, factors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    learned = [x, *(p for branch in adapter.branches for p in (branch.weight, branch.bias))]
    direction = torch.randn(found.shape, dtype=torch.float64)
    for of_fast, of_slow in zip(*(torch.autograd.grad(y, learned, direction) for y in (found, expected)), strict=True):
        torch.testing.assert_close(of_fast, of_slow, rtol=0, atol=1e-12)


def test_drop_path_is_by_sample_and_by_branch() -> None:
    """The share that is kept, its scale, and that one branch and one sample say nothing of another."""
    adapter, samples, drop = layer(16, 16, (4, 8), drop_path=0.3).train(), 4000, 0.3
    with torch.no_grad():
        for k, branch in enumerate(adapter.branches):  # each branch shows in an output of its own, by its bias alone
            branch.weight.zero_()
            branch.bias.copy_(torch.eye(16, dtype=torch.float64)[k])
    base = Affine(torch.eye(16, dtype=torch.float64))
    torch.manual_seed(0)
    x = tokens(16, samples, 2)
    added = adapter(x, base) - x
    torch.testing.assert_close(added[:, 0], added[:, 1], rtol=0, atol=1e-12)  # a sample as a whole
    assert added[..., 2:].abs().max() == 0  # the frozen layer's own output is never dropped
    kept = added[:, 0, :2]
    assert torch.equal(kept.round(decimals=6).unique(), torch.tensor([0, 1 / 0.7]).double().round(decimals=6))
    assert (kept.mean(0) - 1).abs().max() < 5 * (drop / (1 - drop) / samples) ** 0.5  # the mean is kept
    assert torch.corrcoef(kept.T)[0, 1].abs() < 5 / samples**0.5  # branches
    assert torch.corrcoef(torch.stack([kept[:-1, 0], kept[1:, 0]]))[0, 1].abs() < 5 / samples**0.5  # samples


def test_drop_path_acts_in_training_only() -> None:
    adapter, base, x = layer(16, 16, (4,), drop_path=0.8), affine(16, 16), tokens(16, 9, 3)
    expected = adapter.merged(base)(x)
    torch.testing.assert_close(adapter(x, base), expected, rtol=0, atol=1e-12)
    torch.manual_seed(0)
    assert (adapter.train()(x, base) - expected).abs().max() > 1e-3


def test_branches_dropped_for_all_samples_get_a_gradient_of_zero() -> None:
    adapter, base, x = layer(16, 16, (4,), drop_path=0.99).train(), affine(16, 16), tokens(16, 1, 3)
    torch.manual_seed(0)
    adapter(x, base).sum().backward()
    for parameter in adapter.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_inputs_of_any_rank(shape: tuple[int, ...], drop: float) -> None:
    adapter, base, x = layer(16, 32, (4,), drop_path=drop), affine(16, 32), tokens(16, *shape).requires_grad_()
    found = adapter(x, base)
    torch.testing.assert_close(found, adapter.merged(base)(x), rtol=0, atol=1e-12)
    assert adapter.train()(x, base).shape == (*shape, 32)
    found.sum().backward()
    assert x.grad.shape == x.shape


def test_a_base_that_trains_gets_its_gradient() -> None:
    adapter, x = layer(16, 32, (4,)), tokens(16, 2, 3)
    base = Affine(affine(16, 32).weight.requires_grad_(), affine(16, 32).bias.requires_grad_())
    found, expected = (
        torch.autograd.grad(out.square().sum(), (base.weight, base.bias))
        for out in (adapter(x, base), adapter.merged(base)(x))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", ["vit", "vit_layer_scale", "swin", "convnext"])
def test_gradients_inside_a_backbone(backbone: str) -> None:
    """Behind its own LayerNorms and GELUs, where inputs are made again rather than kept."""
    model = inject(BACKBONES[backbone].build(torch.float64), Consolidator((4, 8), True, train_norms_and_biases=True))
    parameters = trainable(model)
    add_noise(parameters.values())

    def gradients() -> tuple[Tensor, ...]:
        loss = model(BACKBONES[backbone].inputs(torch.float64)).square().mean()
        return torch.autograd.grad(loss, list(parameters.values()))

    found = gradients()
    for adapted in adapted_layers(model).values():
        adapted.adapter.forward = lambda x, base, adapter=adapted.adapter: adapter.merged(base)(x)
    for name, one, other in zip(parameters, found, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters and buffers; each storage counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum()
    return sum(kept.values())


def test_training_keeps_no_more_than_the_frozen_backbone() -> None:
    x = torch.randn(32, 3, 32, 32)
    floor = vit(depth=4).requires_grad_(False).train()
    floor.patch_embed.proj.bias.requires_grad_(True)
    floor.head.requires_grad_(True)
    model = inject(vit(depth=4), Consolidator()).train()
    model.head.requires_grad_(True)
    assert kept_bytes(model, x) <= 1.02 * kept_bytes(floor, x)


def test_no_dense_gradient_is_formed() -> None:
    shapes: set[tuple[int, ...]] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and func is not torch.ops.aten.t.default:
                shapes.add(tuple(out.shape))
            return out

    adapter, base = layer(768, 768, None), affine(768, 768)
    out = adapter(tokens(768, 2, 3), base)
    with Watch():
        torch.autograd.grad(out.sum(), list(adapter.parameters()))
    assert (384 // 8, 16, 16) in shapes  # the products of several groups together
    assert (768, 768) not in shapes


def test_bfloat16_rounds_the_merged_weight_once() -> None:
    adapter, base = layer(16, 32, (4, 8), True, torch.float32), affine(16, 32, torch.bfloat16)
    x = tokens(16, 3, 5).to(torch.bfloat16)
    assert torch.equal(adapter(x, base), adapter.merged(base)(x))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_autocast(drop: float) -> None:
    adapter, base = layer(16, 32, (4, 8), True, torch.float32, drop_path=drop).train(), affine(16, 32, torch.float32)
    x = tokens(16, 16, 5).float().requires_grad_()
    found = []
    for automatic in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            out = adapter(x, base)
        assert out.dtype == (torch.bfloat16 if automatic else torch.float32)
        found.append(torch.autograd.grad(out.float().square().mean(), [x, *adapter.parameters()]))
    for half, full in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).abs().max() <= 0.03 * full.abs().max()


@pytest.mark.slow
def test_compiled_and_exported_without_a_graph_break() -> None:
    model, x = inject(BACKBONES["vit"].build(), Consolidator()).train(), BACKBONES["vit"].inputs()
    assert torch._dynamo.explain(model)(x).graph_break_count == 0
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


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
    for arguments in Consolidator.variants.values():
        assert Consolidator(**arguments).groups == (384,)
