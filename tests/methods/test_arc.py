"""ARC against the numbers of its official implementation; its shared projections, counts and arguments."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from golden_files import close, golden, golden_vit
from safetensors.torch import load_file
from sizes import parameters
from torch import Tensor, nn

from lightning_petl import (
    ARC,
    Affine,
    ConfigError,
    Target,
    TargetNotFound,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.methods.arc import ARCLayer
from lightning_petl.testing import BACKBONES

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))

VARIANTS = {"ARC": {}, "ARC_att": ARC.variants["ARC_att"]}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
GOLDEN_SITES = {"attn": "att", "mlp": "mlp"}


def target(site: str = "attn", width: int = 64, dtype: torch.dtype = torch.float64) -> Target:
    return Target("layer", site, width, 32, True, torch.device("cpu"), dtype)


def layer(site: str = "attn", width: int = 64, dtype: torch.dtype = torch.float64, **arguments: object) -> ARCLayer:
    """The adapter of a single layer, and with it its projection."""
    method, place = ARC(**arguments), target(site, width, dtype)
    return method.build(place, method.shared([place]))


def golden_layer(dtype: torch.dtype = torch.float64, dropout: float = 0.1) -> ARCLayer:
    tensors, _ = golden("d_arc")
    adapter = layer(dtype=dtype, rank=10, dropout=dropout).eval()
    with torch.no_grad():
        adapter.projection.copy_(tensors["module.down_projection"])
        adapter.rescale.copy_(tensors["module.rescale"].squeeze(0))
        adapter.bias.copy_(tensors["module.bias"])
    return adapter


@each_dtype
def test_golden_module(dtype: torch.dtype) -> None:
    tensors, _ = golden("d_arc")
    adapter, x = golden_layer(dtype), tensors["module.x"].to(dtype)
    identity = Affine.identity(64, x)
    close(adapter(x, identity), tensors["module.out"], TOLERANCE[dtype])
    close(adapter.merged(identity)(x), tensors["module.out"], TOLERANCE[dtype])


def golden_name(parameter: str) -> str:
    """Name in the golden file of a trainable parameter of the injected ViT."""
    if parameter.startswith("petl_shared."):
        _, site, width, name = parameter.split(".")
        assert (width, name) == ("64", "projection")
        return f"adapter.{GOLDEN_SITES[site]}_down_projection"
    path, adapter, name = parameter.partition(".adapter.")
    return f"adapter.{path.rpartition('.')[0]}.{name}" if adapter else parameter


def vit(variant: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The ViT of the golden vectors with a variant's adapters."""
    tensors, config = golden("d_arc")
    method = ARC(config["adapter_dim"], config["adapter_dropout"], **VARIANTS[variant])
    model = inject(golden_vit(dtype), method)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[golden_name(name)].reshape(parameter.shape))
    return model


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return golden("b_repadapter_vit")[0]["images"].to(dtype)


def test_golden_vit_without_adapters() -> None:
    close(golden_vit()(images()), golden("d_arc")[0]["none.logits"], 1e-9)


@each_dtype
@each_variant
def test_golden_vit_forward(variant: str, dtype: torch.dtype) -> None:
    close(vit(variant, dtype)(images(dtype)), golden("d_arc")[0][f"{variant}.logits"], TOLERANCE[dtype])


def effective_layers(model: nn.Module, variant: str) -> dict[str, Affine]:
    """The merged maps under the names of the golden file, which holds the fused projection as q, k and v."""
    found = {}
    for i, block in enumerate(model.blocks):
        qkv = Affine(block.attn.qkv.weight, block.attn.qkv.bias)
        found |= {f"blocks.{i}.attn.{name}": qkv.rows(64 * j, 64 * (j + 1)) for j, name in enumerate("qkv")}
        if variant == "ARC":
            found[f"blocks.{i}.mlp.fc1"] = Affine(block.mlp.fc1.weight, block.mlp.fc1.bias)
    return found


@each_dtype
@each_variant
def test_golden_vit_merged(variant: str, dtype: torch.dtype) -> None:
    model, (tensors, _), atol = vit(variant, dtype), golden("d_arc"), TOLERANCE[dtype]
    certificate = merge(model)
    assert 0 < certificate.float64_error < 1e-13
    assert not hasattr(model, "petl_shared")
    close(model(images(dtype)), tensors[f"{variant}.logits_merged"], atol)
    probe = golden("b_repadapter_vit")[0]["probe.x"].to(dtype)
    layers = effective_layers(model, variant)
    for name, merged in layers.items():
        close(merged.bias, tensors[f"merged.{name}.bias"], atol)
        close(merged.weight @ probe, tensors[f"merged.{name}.weight_probe"], atol)
    whole = [name for name in layers if f"merged.{name}.weight" in tensors]
    for name in whole:
        close(layers[name].weight, tensors[f"merged.{name}.weight"], atol)
    assert (len(layers), len(whole)) == ({"ARC": 12, "ARC_att": 9}[variant], 1)


@each_variant
def test_golden_vit_gradients_and_adamw_step(variant: str) -> None:
    model, (tensors, config) = vit(variant), golden("d_arc")
    labels = golden("b_repadapter_vit")[0]["labels"]
    model.head.requires_grad_(True)
    model.train()
    loss = F.cross_entropy(model(images()), labels)
    close(loss, tensors[f"{variant}.step.loss"], 1e-9)
    loss.backward()
    parameters, prefix = trainable(model), f"{variant}.step.grad."
    expected = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    assert {golden_name(name) for name in parameters} == expected
    assert len(parameters) == len(expected)
    for name, parameter in parameters.items():
        close(parameter.grad, tensors[prefix + golden_name(name)].reshape(parameter.shape), 1e-9)

    assert config["optimizer"]["grad_clip"] is None
    options = {key: value for key, value in config["optimizer"].items() if key not in ("name", "grad_clip")}
    torch.optim.AdamW(parameters.values(), **options).step()
    for name, parameter in parameters.items():
        close(parameter, tensors[f"{variant}.step.updated.{golden_name(name)}"].reshape(parameter.shape), 1e-8)
    close(F.cross_entropy(model(images()), labels), tensors[f"{variant}.step.loss_after"], 1e-8)


class SeparateAttention(nn.Module):
    """timm's attention with the query, key and value in layers of their own, as the reference has them."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.heads, self.proj = fused.num_heads, fused.proj
        for j, name in enumerate(("query", "key", "value")):
            part = nn.Linear(64, 64, dtype=fused.qkv.weight.dtype)
            rows = Affine(fused.qkv.weight, fused.qkv.bias).rows(64 * j, 64 * (j + 1))
            part.load_state_dict({"weight": rows.weight, "bias": rows.bias})
            setattr(self, name, part)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        heads = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def test_golden_vit_with_separate_projections() -> None:
    tensors, config = golden("d_arc")
    model = golden_vit()
    for block in model.blocks:
        block.attn = SeparateAttention(block.attn)
    close(model(images()), tensors["none.logits"], 1e-9)
    inject(model, ARC(config["adapter_dim"], config["adapter_dropout"]))
    # One adapter for the three layers: a model with a fused projection has the same parameters.
    assert [p.shape for p in trainable(model).values()] == [p.shape for p in trainable(vit("ARC")).values()]
    with torch.no_grad():
        for (name, parameter), fused in zip(trainable(model).items(), trainable(vit("ARC")).values(), strict=True):
            assert name.endswith(("rescale", "bias", "projection"))
            parameter.copy_(fused)
    close(model(images()), tensors["ARC.logits"], 1e-9)
    merge(model)
    close(model(images()), tensors["ARC.logits_merged"], 1e-9)
    probe = golden("b_repadapter_vit")[0]["probe.x"]
    for i, block in enumerate(model.blocks):
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            part = block.attn.get_submodule(name)
            close(part.weight @ probe, tensors[f"merged.blocks.{i}.attn.{short}.weight_probe"], 1e-9)
            close(part.bias, tensors[f"merged.blocks.{i}.attn.{short}.bias"], 1e-9)


def test_the_projection_is_one_parameter_of_the_model() -> None:
    model = inject(golden_vit(), ARC(rank=3))
    for site in ("attn", "mlp"):
        projection = model.get_parameter(f"petl_shared.{site}.64.projection")
        adapters = [a.adapter for path, a in adapted_layers(model).items() if f".{site}." in path]
        assert len(adapters) == 3
        assert all(adapter.projection is projection for adapter in adapters)
        assert sum(parameter is projection for parameter in model.parameters()) == 1
        assert sum(parameter is projection for _, parameter in model.named_parameters(remove_duplicate=False)) == 1
        assert [name for name, p in trainable(model).items() if p is projection] == [
            f"petl_shared.{site}.64.projection"
        ]
    assert [key for key in model.state_dict() if "projection" in key] == [
        "petl_shared.attn.64.projection",
        "petl_shared.mlp.64.projection",
    ]
    assert {name for name, _ in adapters[0].named_parameters()} == {"rescale", "bias"}


def test_whatever_swaps_the_models_tensors_reaches_every_layer() -> None:
    model = vit("ARC")
    swapped = {f"petl_shared.{site}.64.projection": torch.zeros(64, 10).double() for site in ("attn", "mlp")}
    found = torch.func.functional_call(model, swapped, (images(),))
    with torch.no_grad():
        for site in ("attn", "mlp"):
            model.get_parameter(f"petl_shared.{site}.64.projection").zero_()
    assert torch.equal(found, model(images()))
    assert not torch.equal(found, vit("ARC")(images()))


def test_file_names(tmp_path: Path) -> None:
    model = vit("ARC")
    save_adapter(model, tmp_path / "arc.safetensors")
    expected = {f"shared.{site}.64.projection" for site in ("attn", "mlp")}
    for path in adapted_layers(model):
        expected |= {f"adapters.{path}.rescale", f"adapters.{path}.bias"}
    tensors = load_file(tmp_path / "arc.safetensors")
    assert tensors.keys() == expected
    assert tensors["shared.mlp.64.projection"].shape == (64, 10)
    loaded = load_adapter(golden_vit(), tmp_path / "arc.safetensors")
    assert torch.equal(loaded(images()), model(images()))


def test_one_projection_for_each_site_and_width() -> None:
    swin = inject(BACKBONES["swin"].build(), ARC(rank=4))
    assert {name: tuple(parameter.shape) for name, parameter in swin.petl_shared.named_parameters()} == {
        "attn.32.projection": (32, 4),
        "mlp.32.projection": (32, 4),
        "attn.64.projection": (64, 4),
        "mlp.64.projection": (64, 4),
    }
    convnext = inject(BACKBONES["convnext"].build(), ARC(rank=4))  # three of its four stages are 16 wide
    assert [name for name, _ in convnext.petl_shared.named_parameters()] == ["mlp.16.projection", "mlp.32.projection"]
    assert len(adapted_layers(convnext)) == 4


def test_initialisation_is_the_references_in_a_fixed_order() -> None:
    plain = golden_vit(torch.float32)
    torch.manual_seed(7)
    model = inject(plain, ARC())
    torch.manual_seed(7)
    for site in ("attn", "mlp"):
        drawn = nn.init.xavier_uniform_(torch.empty(64, 50))
        assert torch.equal(model.get_parameter(f"petl_shared.{site}.64.projection"), drawn)
        assert sqrt(6 / 114) * 0.99 < drawn.abs().max() <= sqrt(6 / 114)
    for path, adapted in adapted_layers(model).items():
        drawn = nn.init.xavier_uniform_(torch.empty(1, 50))[0] if ".mlp." in path else torch.zeros(50)
        assert torch.equal(adapted.adapter.rescale, drawn)
        assert drawn.abs().max() <= sqrt(6 / 51)
        assert not adapted.adapter.bias.any()


def test_layers_named_by_targets_start_at_the_identity() -> None:
    model = inject(golden_vit(), ARC(targets=(r".*qkv", r".*fc1", r".*fc2")))
    assert [name for name, _ in model.petl_shared.named_parameters()] == [
        "custom.64.projection",
        "custom.128.projection",
    ]
    assert len(adapted_layers(model)) == 9
    assert torch.equal(model(images()), golden_vit()(images()))


def test_dropout_acts_on_the_rank_units_in_training_only() -> None:
    adapter, p = golden_layer(dropout=0.25), 0.25
    x = torch.randn(400, 64, dtype=torch.float64)
    identity = Affine.identity(64, x)
    expected = adapter(x, identity)
    assert torch.equal(adapter(x, identity), expected)
    adapter.train()
    found = adapter(x, identity)
    # U has full column rank, so the units between the projections can be read off the output.
    up, whole = adapter.projection.detach(), (x @ adapter.projection * adapter.rescale).detach()
    units = torch.linalg.lstsq(up, (found - x - adapter.bias).detach().T).solution.T
    close(units @ up.T, (found - x - adapter.bias).detach(), 1e-12)
    dropped = units.abs() < 1e-9
    close(units[~dropped], whole[~dropped] / (1 - p), 1e-9)
    share = dropped.double().mean(0)
    assert (share - p).abs().max() < 5 * sqrt(p * (1 - p) / 400)
    assert torch.equal(golden_layer(dropout=0.0).train()(x, identity), expected)


def test_merging_a_float32_adapter_computes_in_the_bases_float64() -> None:
    adapter = golden_layer(torch.float32)
    base = Affine(torch.randn(32, 64, dtype=torch.float64), torch.randn(32, dtype=torch.float64))
    up, scale, bias = adapter.projection.double(), adapter.rescale.double(), adapter.bias.double()
    merged = adapter.merged(base)
    close(merged.weight, (base.weight @ (torch.eye(64).double() + up @ scale.diag() @ up.T)).detach(), 1e-12)
    close(merged.bias, (base.bias + base.weight @ bias).detach(), 1e-12)
    # A cast of the adapter alone leaves the projection, which is the model's, as it is.
    cast = golden_layer(torch.float32).double()
    assert cast.projection.dtype == torch.float32
    close(cast.merged(base).weight, merged.weight.detach(), 1e-12)
    narrow = cast.merged(base.to(torch.float32))
    assert (narrow.weight.dtype, narrow.bias.dtype) == (torch.float64, torch.float64)


def test_forward_is_two_matrix_products_before_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: (shapes.append(tuple(x.shape)), real(x, *rest))[1])
    golden_layer()(torch.zeros(2, 17, 64).double(), Affine(torch.zeros(32, 64).double()))
    assert shapes == [(2, 17, 64), (2, 17, 10), (2, 17, 64)]


@pytest.mark.parametrize(
    ("name", "both", "attention", "projections"),
    [
        ("vit_small_patch16_224", 48_816, 24_408, 38_400),
        ("vit_base_patch16_224", 96_432, 48_216, 76_800),
        ("vit_large_patch16_224", 153_952, 76_976, 102_400),
        ("vit_huge_patch14_224", 213_120, 106_560, 128_000),
        ("swin_base_patch4_window7_224", 218_464, 109_232, 192_000),  # a projection for each of four stages
        ("convnext_base", 115_848, None, 96_000),  # the MLP site alone: the other does not fold
    ],
)
def test_counts(name: str, both: int, attention: int | None, projections: int) -> None:
    found = parameters(name, ARC())
    assert sum(found.values()) == both
    assert sum(size for key, size in found.items() if key.endswith("projection")) == projections
    if attention is None:
        with pytest.raises(TargetNotFound, match="none of the sites attn"):
            parameters(name, ARC(sites=("attn",)))
    else:
        assert sum(parameters(name, ARC(**ARC.variants["ARC_att"])).values()) == attention


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"sites": "attn"}, "sites"),
        ({"targets": ".*"}, "targets"),
    ],
    ids=str,
)
def test_bad_arguments_name_their_field(arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{field}\]"):
        ARC(**arguments)


def test_a_layer_without_its_projection_is_refused() -> None:
    method = ARC(rank=2)
    others = method.shared([target("mlp"), target("attn", width=32)])
    for shared in (None, others, nn.Linear(1, 1)):
        with pytest.raises(ConfigError, match=r"projection of its site and width \[layer\]"):
            method.build(target(), shared)
