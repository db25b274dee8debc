"""One adapter in front of layers that read one input: separate queries, keys and values, and gated MLPs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from lightning_petl import (
    Adapter,
    Affine,
    Method,
    NotMergeable,
    PluginError,
    RepAdapter,
    Target,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.store import load_merged, plain_state, save_merged
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import add_noise

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}


def _vit(**options: Any) -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **options))


def _dinov2(**options: Any) -> nn.Module:
    sizes = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**sizes, **options))


def _clip() -> nn.Module:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**SMALL, projection_dim=8))


def _videomae(**options: Any) -> nn.Module:
    return transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**SMALL, num_frames=4, **options))


def _vivit() -> nn.Module:
    config = transformers.VivitConfig(**SMALL, num_frames=4, tubelet_size=[2, 8, 8])
    return transformers.VivitForVideoClassification(config)


def _dinov3() -> nn.Module:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL))


def _cait() -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return timm.create_model("cait_xxs24_224", num_classes=5, **sizes)


IMAGES, FRAMES = (2, 3, 32, 32), (2, 4, 3, 32, 32)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vit": (_vit, IMAGES),
    "vit, no biases": (lambda: _vit(qkv_bias=False), IMAGES),
    "dinov2": (_dinov2, IMAGES),
    "dinov2, gated mlp": (lambda: _dinov2(use_swiglu_ffn=True), IMAGES),
    "clip": (_clip, IMAGES),
    "dinov3, rotary": (_dinov3, IMAGES),
    "videomae": (_videomae, FRAMES),
    "videomae, no biases": (lambda: _videomae(qv_bias=False), FRAMES),
    "vivit": (_vivit, FRAMES),
    "cait": (_cait, IMAGES),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().double().eval()
    add_noise(model.parameters(), std=0.05)
    return model


def batch(name: str) -> Tensor:
    return torch.randn(MODELS[name][1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, Tensor) else next(iter(found.values()))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@each_model
def test_shared_adapters_start_as_the_identity_and_fold_exactly(name: str) -> None:
    x, plain = batch(name), build(name)
    model = inject(build(name), RepAdapter())
    assert relative(output(model, x), output(plain, x)) < 1e-12
    add_noise(trainable(model).values())
    before = output(model, x)
    assert relative(before, output(plain, x)) > 1e-3
    certificate = merge(model)
    assert relative(output(model, x), before) < 1e-12
    assert certificate.float64_error < 1e-12
    assert {type(module) for module in model.modules()} == {type(module) for module in plain.modules()}
    assert set(model.state_dict()) - set(plain.state_dict()) == set(certificate.created)


@pytest.mark.parametrize(
    ("name", "created"),
    [
        ("vit", set()),
        ("vit, no biases", {"q_proj", "v_proj"}),  # softmax is blind to the key's
        ("videomae", set()),
        ("videomae, no biases", {"query", "value"}),
        ("dinov3, rotary", {"k_proj"}),  # a rotated key's bias depends on the place, and does not cancel
        ("cait", set()),
    ],
)
def test_a_bias_is_created_where_it_matters(name: str, created: set[str]) -> None:
    model = inject(build(name), RepAdapter(sites=("attn",)))
    add_noise(trainable(model).values())
    names = merge(model).created
    assert {path.split(".")[-2] for path in names} == created


@pytest.mark.parametrize("name", ["vit, no biases", "dinov3, rotary", "videomae", "cait"])
def test_the_merged_file_gives_the_same_outputs_in_a_new_backbone(name: str, tmp_path: Path) -> None:
    x, model = batch(name), inject(build(name), RepAdapter())
    add_noise(trainable(model).values())
    before, adapter = output(model, x), tmp_path / "adapter.safetensors"
    save_adapter(model, adapter)
    loaded = load_adapter(build(name), adapter)
    assert relative(output(loaded, x), before) < 1e-12
    certificate = merge(model)
    save_merged(model, tmp_path / "merged.safetensors", read_header(adapter), certificate.created)
    fresh = MODELS[name][0]().double().eval()
    load_merged(fresh, tmp_path / "merged.safetensors")
    assert relative(output(fresh, x), before) < 1e-12


def test_the_adapter_is_one_and_its_tensors_are_stored_once(tmp_path: Path) -> None:
    model = inject(build("vit"), RepAdapter(hidden_dim=4))
    layer = adapted_layers(model)["vit.layers.0.attention"]
    assert layer.target.layers == tuple(f"vit.layers.0.attention.{part}_proj" for part in "qkv")
    assert (layer.in_features, layer.out_features) == (32, 96)
    assert sum(p.numel() for p in trainable(model).values()) == 4 * (32 * 4 + 4 + 32 * 2 + 32)
    assert plain_state(model).keys() == build("vit").state_dict().keys()


def test_one_dropout_mask_serves_all_three() -> None:
    """What q, k and v read in training is one tensor, in cait too, whose query reads the class token alone."""
    for name, path in (("vit", "vit.layers.0.attention"), ("cait", "blocks_token_only.0.attn")):
        model = inject(build(name), RepAdapter(dropout=0.5)).train()
        add_noise(trainable(model).values())
        seen = read_in_training(model, path, batch(name))
        assert len(seen) == 3
        assert len({part.untyped_storage().data_ptr() for part in seen}) == 1


def read_in_training(model: nn.Module, path: str, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for part in adapted_layers(model)[path].layers().values():
        part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(x)
    return seen


def test_gradients_are_those_of_the_merged_map() -> None:
    model = inject(build("vit"), RepAdapter(dropout=0.0))
    add_noise(trainable(model).values())
    x = batch("vit")
    parameters = list(trainable(model).values())
    fast = torch.autograd.grad(model(x).logits.square().sum(), parameters)
    slow_model = copy.deepcopy(model)
    for layer in adapted_layers(slow_model).values():
        layer.adapter.forward = _through_identity(layer.adapter)  # type: ignore[method-assign]
    slow = torch.autograd.grad(slow_model(x).logits.square().sum(), list(trainable(slow_model).values()))
    for first, second in zip(fast, slow, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def _through_identity(adapter: Adapter) -> Callable[[Tensor, Affine], Tensor]:
    return lambda x, base: base(adapter.merged(Affine.identity(x.shape[-1], x))(x))


class Refuses(RepAdapter):
    separate = "refuse"


class Each(RepAdapter):
    separate = "each"


def test_a_method_may_refuse_or_take_each() -> None:
    with pytest.raises(
        NotMergeable, match=r"read by separate layers k_proj, q_proj, v_proj.*\[vit.layers.0.attention\]"
    ):
        inject(build("vit"), Refuses())
    x, model = batch("vit"), inject(build("vit"), Each(sites=("attn",)))
    assert len(adapted_layers(model)) == 6
    add_noise(trainable(model).values())
    before = output(model, x)
    merge(model)
    assert relative(output(model, x), before) < 1e-12


class OneInput(nn.Module):
    """Attention-like: three layers, and whatever else a test adds."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x), self.k(x), self.v(x))


class Residual(OneInput):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class NormsKeys(OneInput):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x), self.k(x.tanh()), self.v(x))


class ReadsWeight(OneInput):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x), self.k(x), nn.functional.linear(x, self.v.weight, self.v.bias))


class DropsBias(OneInput):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.q(x) - self.q.bias, self.k(x), self.v(x))


class Holder(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.first, self.attn, self.img_size = nn.Linear(16, 16), attn, 32

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attn(self.first(x))
        return out


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (Residual, r"its input is not read by attn\.q, attn\.k, attn\.v alone.*\[attn\]"),
        (NormsKeys, r"it does not read the input of attn.*\[attn\.k\]"),
        (ReadsWeight, r"never calls it.*\[attn\.v\]"),
        (DropsBias, r"or their biases are read past their call"),
    ],
)
def test_an_attention_that_does_more_with_its_input_is_refused(attention: type[OneInput], reason: str) -> None:
    model = Holder(attention())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NotMergeable, match=reason):
        inject(model, RepAdapter(sites=("attn",)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(model.attn) is attention


def test_an_honest_attention_is_adapted() -> None:
    model = inject(Holder(OneInput()), RepAdapter(sites=("attn",)))
    assert list(adapted_layers(model)) == ["attn"]


def test_without_inputs_sharing_is_refused() -> None:
    class Strange(Holder):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + y

    with pytest.raises(NotMergeable, match=r"can only be seen by running.*pass inputs="):
        inject(Strange(OneInput()), RepAdapter(sites=("attn",)))
    x = torch.zeros(2, 3, 16)
    assert list(adapted_layers(inject(Strange(OneInput()), RepAdapter(sites=("attn",)), inputs=(x, x)))) == ["attn"]


def test_parameters_are_counted_without_memory() -> None:
    with torch.device("meta"):
        model = inject(_vit(), RepAdapter())
    assert sum(p.numel() for p in trainable(model).values()) == 4 * (32 * 8 + 8 + 32 * 4 + 32)


def test_a_failed_merge_leaves_shared_adapters_as_they_were() -> None:
    model = inject(build("vit"), RepAdapter())
    add_noise(trainable(model).values())
    x = batch("vit")
    before, state = output(model, x), {k: v.clone() for k, v in model.state_dict().items()}
    last = list(adapted_layers(model).values())[-1]
    last.adapter.down.weight.data[0, 0] = float("nan")
    with pytest.raises(NotMergeable):
        merge(model, x)
    last.adapter.down.weight.data.copy_(state[f"{last.path}.adapter.down.weight"])
    assert torch.equal(output(model, x), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class NotAnInput(Method):
    """Says that it may be shared, but adds beside the layer."""

    separate = "share"

    def __init__(self) -> None:
        super().__init__(sites=("attn",))

    def build(self, target: Target, shared: nn.Module | None = None) -> Adapter:
        return Beside(target)


class Beside(Adapter):
    def __init__(self, target: Target) -> None:
        super().__init__()
        shape = (target.out_features, target.in_features)
        self.delta = nn.Parameter(torch.zeros(shape, device=target.device, dtype=target.dtype))

    def merged(self, base: Affine) -> Affine:
        return base + Affine(self.delta)

    def forward(self, x: Tensor, base: Affine) -> Tensor:
        return base(x) + Affine(self.delta)(x)


def test_a_method_that_cannot_be_shared_fails_at_injection() -> None:
    with pytest.raises(PluginError, match=r"Beside does not act on the input alone.*\[vit\.layers\.0\.attention\]"):
        inject(build("vit"), NotAnInput())
