"""RepAdapter against the numbers of its official implementation, and its arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from golden_files import base_state, close, fill, golden, golden_vit, reference_name, with_adapters
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from lightning_petl import (
    Affine,
    ConfigError,
    NotMergeable,
    RepAdapter,
    Target,
    adapted_layers,
    inject,
    merge,
    trainable,
)
from lightning_petl.methods.repadapter import RepAdapterLayer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))

LINEAR_CASES = golden("a_repadapter_linear")[1]["cases"]
PLACES = {"attn.qkv": "attn", "mlp.fc1": "mlp"}
VARIANTS = {"repattn": ("attn",), "repblock": ("attn", "mlp")}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def linear_case(case: dict, dtype: torch.dtype) -> tuple[RepAdapterLayer, Affine, dict[str, Tensor]]:
    """The adapter, the layer that follows it, and the tensors of one case."""
    tensors, config = golden("a_repadapter_linear")
    width, out = config["dim"], case["linear_out"]
    target = Target("fc", "custom", width, out, True, torch.device("cpu"), dtype)
    method = RepAdapter(case["hidden"], case["groups"], case["scale"], dropout=0.1)
    adapter = method.build(target).eval()
    fill(adapter, tensors, case["name"])
    layer = Affine(tensors[f"linear{out}.weight"], tensors[f"linear{out}.bias"]).to(dtype)
    prefix = f"{case['name']}."
    return adapter, layer, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


@each_dtype
@pytest.mark.parametrize("case", LINEAR_CASES, ids=[case["name"] for case in LINEAR_CASES])
def test_golden_linear(case: dict, dtype: torch.dtype) -> None:
    adapter, layer, expected = linear_case(case, dtype)
    tensors, config = golden("a_repadapter_linear")
    atol = TOLERANCE[dtype]
    identity = Affine.identity(config["dim"], layer.weight)
    x = tensors["x" if expected["out"].shape[1] == 17 else "x_small"].to(dtype)
    close(adapter(x, identity), expected["out"], atol)

    merged = adapter.merged(layer)
    close(merged.weight, expected["merged.weight"], atol)
    close(merged.bias, expected["merged.bias"], atol)
    small = tensors["x_small"].to(dtype)
    close(merged(small), expected["merged.out"], atol)
    close(adapter(small, layer), expected["merged.out"], atol)
    if "dense.weight" in expected:
        dense = adapter.merged(identity)
        close(dense.weight, expected["dense.weight"], atol)
        close(dense.bias, expected["dense.bias"], atol)


def vit(dtype: torch.dtype = torch.float64, variant: str = "") -> nn.Module:
    """The ViT of the golden vectors, plain or with the adapters of a variant."""
    model = golden_vit(dtype)
    return with_adapters(model, "b_repadapter_vit", VARIANTS[variant], PLACES) if variant else model


def test_golden_vit_without_adapters() -> None:
    close(vit()(golden("b_repadapter_vit")[0]["images"]), golden("vit_base")[0]["check.logits"], 1e-9)


@each_dtype
@each_variant
def test_golden_vit_forward(variant: str, dtype: torch.dtype) -> None:
    model, (tensors, _) = vit(dtype, variant), golden("b_repadapter_vit")
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2][:, 0]))
    close(model(tensors["images"].to(dtype)), tensors[f"{variant}.logits"], TOLERANCE[dtype])
    for i, cls in enumerate(seen):
        close(cls, tensors[f"{variant}.cls_after_block.{i}"], TOLERANCE[dtype])
    assert len(seen) == 3


@each_dtype
@each_variant
def test_golden_vit_merged(variant: str, dtype: torch.dtype) -> None:
    model, (tensors, _) = vit(dtype, variant), golden("b_repadapter_vit")
    adapted = list(adapted_layers(model))
    merge(model)
    atol, compared = TOLERANCE[dtype], 0
    close(model(tensors["images"].to(dtype)), tensors[f"{variant}.logits_merged"], atol)
    for path in adapted:
        layer = model.get_submodule(path)
        close(layer.bias, tensors[f"merged.{path}.bias"], atol)
        close(layer.weight @ tensors["probe.x"].to(dtype), tensors[f"merged.{path}.weight_probe"], atol)
        if f"merged.{path}.weight" in tensors:
            close(layer.weight, tensors[f"merged.{path}.weight"], atol)
            compared += 1
    assert (len(adapted), compared) == ({"repattn": 3, "repblock": 6}[variant], 1)


def golden_name(parameter: str) -> str:
    """Name in the golden file of a trainable parameter of the injected ViT."""
    path, adapter, name = parameter.partition(".adapter.")
    if not adapter:
        return parameter
    end = next(end for end in PLACES if path.endswith(end))
    return f"adapter.{path.removesuffix(end)}{PLACES[end]}.{reference_name(name)}"


@each_variant
def test_golden_vit_gradients_and_adamw_step(variant: str) -> None:
    model, (tensors, config) = vit(variant=variant), golden("b_repadapter_vit")
    model.head.requires_grad_(True)
    model.train()
    loss = F.cross_entropy(model(tensors["images"]), tensors["labels"])
    close(loss, tensors[f"{variant}.step.loss"], 1e-9)
    loss.backward()
    parameters = trainable(model)
    expected = {key.removeprefix(f"{variant}.step.grad.") for key in tensors if key.startswith(f"{variant}.step.grad.")}
    assert {golden_name(name) for name in parameters} == expected
    for name, parameter in parameters.items():
        close(parameter.grad, tensors[f"{variant}.step.grad.{golden_name(name)}"], 1e-9)

    options = {key: value for key, value in config["optimizer"].items() if key != "name"}
    torch.optim.AdamW(parameters.values(), **options).step()
    for name, parameter in parameters.items():
        close(parameter, tensors[f"{variant}.step.updated.{golden_name(name)}"], 1e-8)
    close(F.cross_entropy(model(tensors["images"]), tensors["labels"]), tensors[f"{variant}.step.loss_after"], 1e-8)


def swin(dtype: torch.dtype, image: int = 32) -> nn.Module:
    _, config = golden("c_repadapter_swin")
    model = SwinTransformer(
        img_size=image,
        patch_size=config["patch"],
        embed_dim=config["embed"],
        depths=config["depths"],
        num_heads=config["heads"],
        window_size=config["window"],
        mlp_ratio=config["mlp_ratio"],
        num_classes=config["classes"],
        drop_path_rate=0.0,
    )
    missing, unexpected = model.load_state_dict(base_state("c_repadapter_swin"), strict=False)
    # The mask of shifted windows depends on the image size and is no weight.
    assert not unexpected
    assert all(name.endswith(("attn_mask", "relative_position_index")) for name in missing)
    return model.to(dtype).eval()


@each_dtype
@each_variant
def test_golden_swin(variant: str, dtype: torch.dtype) -> None:
    tensors, _ = golden("c_repadapter_swin")
    images, atol = tensors["images"].to(dtype), TOLERANCE[dtype]
    plain = swin(dtype)
    close(plain(images), tensors["base.check.logits"], atol)
    model = with_adapters(plain, "c_repadapter_swin", VARIANTS[variant], PLACES)
    close(model(images), tensors[f"{variant}.logits"], atol)
    merge(model)
    close(model(images), tensors[f"{variant}.logits_merged"], atol)
    shifted = model.layers[0].blocks[1].attn.qkv
    close(shifted.weight, tensors["merged.layers.0.blocks.1.attn.qkv.weight"], atol)
    close(shifted.bias, tensors["merged.layers.0.blocks.1.attn.qkv.bias"], atol)


@each_dtype
def test_golden_swin_with_window_padding(dtype: torch.dtype) -> None:
    tensors, config = golden("c_repadapter_swin")
    images, atol = tensors["pad.images"].to(dtype), TOLERANCE[dtype]
    model = with_adapters(swin(dtype, config["pad_img"]), "c_repadapter_swin", VARIANTS["repblock"], PLACES)
    found = model(images)
    close(found, tensors["pad.repblock.logits_adapter_at_qkv"], atol)
    # The reference's place, after norm1 and before the padding, is another function: its merge would not be exact.
    assert (found - tensors["pad.repblock.logits_adapter_after_norm1"]).abs().max() > 0.01
    merge(model)
    close(model(images), tensors["pad.repblock.logits_merged"], atol)


def convnext(dtype: torch.dtype, conv_mlp: bool = False) -> nn.Module:
    _, config = golden("c_repadapter_convnext")
    model = ConvNeXt(depths=config["depths"], dims=config["dims"], num_classes=config["classes"], conv_mlp=conv_mlp)
    state = base_state("c_repadapter_convnext")
    if conv_mlp:
        mlp = {key for key in state if ".mlp." in key and key.endswith("weight")}
        state |= {key: state[key][..., None, None] for key in mlp}
    model.load_state_dict(state)
    return model.to(dtype).eval()


def add_attention_adapters(model: nn.Module, dtype: torch.dtype) -> None:
    """The reference's adapters before the depthwise convolutions, which cannot be folded, as live modules."""
    tensors, config = golden("c_repadapter_convnext")
    for path, module in model.named_modules():
        if not path.endswith("conv_dw"):
            continue
        target = Target(path, "attn", module.in_channels, module.in_channels, True, torch.device("cpu"), dtype)
        adapter = RepAdapter(config["hidden"], config["groups"], config["scale"]).build(target).eval()
        fill(adapter, tensors, f"adapter.{path.removesuffix('conv_dw')}attn")
        dense = adapter.merged(Affine.identity(module.in_channels, adapter.down.weight))
        module.register_forward_pre_hook(lambda _, args, dense=dense: dense(args[0].movedim(1, -1)).movedim(-1, 1))


@each_dtype
def test_golden_convnext_attention_adapters(dtype: torch.dtype) -> None:
    tensors, _ = golden("c_repadapter_convnext")
    model = convnext(dtype)
    close(model(tensors["images"].to(dtype)), tensors["base.check.logits"], TOLERANCE[dtype])
    add_attention_adapters(model, dtype)
    close(model(tensors["images"].to(dtype)), tensors["repattn.logits"], TOLERANCE[dtype])


@each_dtype
@pytest.mark.parametrize("conv_mlp", [False, True], ids=["linear", "conv"])
def test_golden_convnext_mlp(conv_mlp: bool, dtype: torch.dtype) -> None:
    tensors, _ = golden("c_repadapter_convnext")
    images, atol = tensors["images"].to(dtype), TOLERANCE[dtype]
    model = convnext(dtype, conv_mlp)
    add_attention_adapters(model, dtype)
    with_adapters(model, "c_repadapter_convnext", ("mlp",), PLACES)
    close(model(images), tensors["repblock.logits"], atol)
    merge(model)
    close(model(images), tensors["repblock.logits_mlp_merged"], atol)
    biases = [key for key in tensors if key.startswith("merged.") and key.endswith("fc1.bias")]
    for key in biases:
        close(model.get_parameter(key.removeprefix("merged.")), tensors[key], atol)
    assert len(biases) == 5
    close(model.stages[0].blocks[0].mlp.fc1.weight, tensors["merged.stages.0.blocks.0.mlp.fc1.weight"], atol)


def test_convnext_depthwise_convolution_is_refused() -> None:
    with pytest.raises(NotMergeable, match=r"depthwise convolution.*\[stages\.0\.blocks\.0\.conv_dw\]"):
        inject(convnext(torch.float32), RepAdapter(targets=(r".*conv_dw",)))


def test_forward_is_two_matrix_products_before_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: (calls.append("linear"), real(*args))[1])
    monkeypatch.setattr(F, "conv1d", lambda *args: calls.append("conv1d"))
    adapter, layer, _ = linear_case(LINEAR_CASES[0], torch.float32)
    adapter(torch.zeros(2, 17, 64), layer)
    assert calls == ["linear"] * 3


def test_dropout_acts_on_hidden_units_in_training_only() -> None:
    adapter, layer, _ = linear_case(LINEAR_CASES[0], torch.float64)
    x = torch.randn(200, 64, dtype=torch.float64)
    expected = adapter(x, layer)
    torch.testing.assert_close(adapter(x, layer), expected, rtol=0, atol=0)
    adapter.train()
    found = torch.stack([adapter(x, layer) for _ in range(300)])
    assert found.std(0).min() > 0
    # Dropout keeps the mean: the standard error of 300 draws is far below the spread of one.
    assert ((found.mean(0) - expected).abs() / found.std(0)).mean() < 0.1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"hidden_dim": 0}, "groups"),
        ({"hidden_dim": 6, "groups": 4}, "groups"),
        ({"groups": 0}, "groups"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"sites": "attn"}, "sites"),
        ({"targets": ".*"}, "targets"),
    ],
    ids=str,
)
def test_bad_arguments_name_their_field(arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[{field}\]"):
        RepAdapter(**arguments)


def test_groups_that_do_not_divide_a_width_are_refused() -> None:
    model = nn.Sequential(nn.Linear(10, 4))
    with pytest.raises(NotMergeable, match=r"4 groups do not divide the 10 input features \[0\]"):
        inject(model, RepAdapter(groups=4, targets=("0",)))
    assert type(model[0]) is nn.Linear
