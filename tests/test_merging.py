"""Folding: exact on every kind of backbone, all layers or none, and plain afterwards."""

from __future__ import annotations

import copy

import liars
import pytest
import torch
from torch import Tensor, nn

from lightning_petl import (
    Affine,
    Method,
    NotMergeable,
    PETLError,
    RepAdapter,
    adapted_layers,
    inject,
    merge,
    merging,
    trainable,
)
from lightning_petl.tensorfile import tensor_digest
from lightning_petl.testing import BACKBONES, Backbone, add_noise
from lightning_petl.testing.backbones import convnext, swin, vit

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
DENSE = RepAdapter(hidden_dim=4, groups=1, scale=5.0)
TOY = BACKBONES["toy"]

CASES: dict[str, tuple[Backbone, Method]] = {
    "vit": (Backbone(vit), RepAdapter()),
    "vit, groups=1": (Backbone(vit), DENSE),
    "vit, attention only": (Backbone(vit), RepAdapter(sites=("attn",))),
    "vit, LayerScale": (Backbone(lambda: vit(init_values=1e-5)), RepAdapter()),
    "vit, no qkv bias": (Backbone(lambda: vit(qkv_bias=False)), RepAdapter()),
    "vit, drop path": (Backbone(lambda: vit(drop_path_rate=0.5)), RepAdapter()),
    "swin": (Backbone(swin), RepAdapter()),
    "swin, padded windows": (Backbone(lambda: swin(img_size=40), (2, 3, 40, 40)), RepAdapter()),
    "convnext": (Backbone(convnext), RepAdapter(scale=10.0)),
    "convnext, convolutions": (Backbone(lambda: convnext(conv_mlp=True)), RepAdapter(scale=10.0)),
    "custom targets": (Backbone(vit), RepAdapter(targets=(r"blocks.*\.(proj|fc2)", "head"))),
    "no biases": (TOY, DENSE),
    "shared modules": (Backbone(vit), liars.Shared()),
}
each_case = pytest.mark.parametrize(("backbone", "method"), CASES.values(), ids=CASES)


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def injected(backbone: Backbone, method: Method, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose adapters are away from where they were initialised."""
    model = inject(backbone.build(dtype), method)
    add_noise(trainable(model).values())
    return model


def run(model: nn.Module, backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return model.eval()(backbone.inputs(next(model.parameters()).dtype))


def image(model: nn.Module) -> dict[str, object]:
    """The whole of a model, to the bit."""
    return {
        "tensors": {name: tensor_digest(tensor) for name, tensor in model.state_dict().items()},
        "modules": [(path, id(module), module.training) for path, module in model.named_modules()],
        "trainable": list(trainable(model)),
    }


@each_case
def test_initialisation_changes_nothing(backbone: Backbone, method: Method) -> None:
    plain = backbone.build(torch.float64)
    expected = run(plain, backbone)
    assert relative(run(inject(plain, method), backbone), expected) <= 1e-13


@each_case
@each_dtype
def test_merged_equals_unmerged(backbone: Backbone, method: Method, dtype: torch.dtype) -> None:
    plain, model = backbone.build(dtype), injected(backbone, method, dtype)
    expected = run(model, backbone)
    assert relative(expected, run(plain, backbone)) > 1e-2, "the adapters must matter for this test to mean anything"
    layers = list(adapted_layers(model))
    certificate = merge(model)
    assert relative(run(model, backbone), expected) <= TOLERANCE[dtype]

    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in certificate.created}
    assert shapes == {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert list(certificate.layers) == layers
    assert certificate.float64_error <= 1e-12
    assert (certificate.deployed_error > 1e-12) == (dtype == torch.float32)
    assert certificate.dtype == str(dtype).removeprefix("torch.")


def test_created_biases_are_listed() -> None:
    backbone = Backbone(lambda: vit(qkv_bias=False))
    model = injected(backbone, RepAdapter())
    assert model.blocks[0].attn.qkv.base.bias is None
    certificate = merge(model)
    assert certificate.created == ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias")
    assert model.blocks[1].attn.qkv.bias.abs().min() > 0


def test_nothing_is_created_where_a_bias_was() -> None:
    assert merge(injected(Backbone(vit), RepAdapter())).created == ()


def test_what_can_train_after_merging_is_what_could_before() -> None:
    model = injected(TOY, RepAdapter())
    model.head.requires_grad_(True)
    merge(model)
    assert list(trainable(model)) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_modes_stay(training: bool) -> None:
    model = injected(TOY, RepAdapter()).train(training)
    merge(model, TOY.inputs())
    assert {module.training for module in model.modules()} == {training}


def test_dropout_and_training_mode_play_no_part() -> None:
    model = injected(TOY, RepAdapter(dropout=0.9), torch.float64)
    expected = run(model, TOY)
    merge(model.train())
    assert relative(run(model, TOY), expected) <= 1e-12


def test_merging_twice_is_an_error() -> None:
    model = injected(TOY, RepAdapter())
    merge(model)
    before = image(model)
    with pytest.raises(PETLError, match="merged already"):
        merge(model)
    assert image(model) == before


def test_shared_modules_are_gone() -> None:
    model = injected(TOY, liars.Shared())
    assert "petl_shared" in dict(model.named_children())
    merge(model)
    assert "petl_shared" not in dict(model.named_children())


class LastFails(liars.Honest):
    """Its adapters fold, but for that of the last layer."""

    class adapter(liars.HonestAdapter):  # noqa: N801
        def __init__(self, target: object) -> None:
            super().__init__(target)
            self.last = target.path == "blocks.1.mlp.fc2"

        def merged(self, base: Affine) -> Affine:
            if self.last:
                raise ZeroDivisionError
            return super().merged(base)


class LastDisagrees(LastFails):
    class adapter(LastFails.adapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale * (1 + 1e-8 * self.last))


class LastIsInfinite(LastFails):
    class adapter(LastFails.adapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale * (torch.inf if self.last else 1.0))


class LastIsLarge(LastFails):
    """Folds, but to weights above the largest that float16 holds."""

    class adapter(LastFails.adapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            return base.scaled(self.scale * (1e6 if self.last else 1.0))

        def forward(self, x: Tensor, base: Affine) -> Tensor:
            return self.merged(base)(x)


class WritesWhenLast(LastFails):
    """Writes to its base before it fails."""

    class adapter(LastFails.adapter):  # noqa: N801
        def merged(self, base: Affine) -> Affine:
            base.weight.zero_()
            return super().merged(base)


class ForwardWrites(LastFails):
    class adapter(LastFails.adapter):  # noqa: N801
        def forward(self, x: Tensor, base: Affine) -> Tensor:
            out = super().forward(x, base)
            base.weight.zero_()
            return out


FAILURES = {
    "raises": (LastFails, ZeroDivisionError, None),
    "disagrees": (
        LastDisagrees,
        NotMergeable,
        r"forward and its merged map differ by .*e-0[89] .*\[blocks\.1\.mlp\.fc2\]",
    ),
    "infinite": (LastIsInfinite, NotMergeable, "not finite"),
    "too large for float16": (LastIsLarge, NotMergeable, r"not finite as torch\.float16 \[blocks\.1\.mlp\.fc2\]"),
    "wrong shape": (liars.ChangesShape, NotMergeable, r"merged weight is \(8, 32\), not \(16, 32\)"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("method", "error", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failing_merge_changes_nothing(
    method: type[Method], error: type[Exception], message: str | None, dtype: torch.dtype
) -> None:
    if method is LastIsLarge and dtype != torch.float16:
        pytest.skip("it fits")
    model = injected(TOY, method(), dtype)
    before = image(model)
    with pytest.raises(error, match=message):
        merge(model)
    assert image(model) == before


def test_a_nan_adapter_is_not_merged() -> None:
    model = injected(TOY, RepAdapter())
    with torch.no_grad():
        list(trainable(model).values())[-1][0] = torch.nan
    before = image(model)
    with pytest.raises(NotMergeable, match=r"not finite as torch\.float32 \[blocks\.1\.mlp\.fc1\]"):
        merge(model)
    assert image(model) == before


@pytest.mark.parametrize("method", [WritesWhenLast, ForwardWrites])
def test_no_method_reaches_the_frozen_weights_of_other_layers(method: type[Method]) -> None:
    """A float64 layer needs no conversion for the arithmetic, and must be copied all the same."""
    model = injected(TOY, method(), torch.float64)
    before = image(model)
    with pytest.raises((NotMergeable, ZeroDivisionError)):
        merge(model)
    assert image(model) == before


def test_inputs_certify_the_whole_model() -> None:
    model = injected(TOY, RepAdapter())
    certificate = merge(model, TOY.inputs())
    assert certificate.model is not None
    assert 0 < certificate.model.deployed < 1e-5
    assert (certificate.model.top1_agreement, certificate.model.inputs, certificate.model.source) == (1.0, 2, "inputs")
    record = certificate.to_dict()
    assert record["float64_error"] == certificate.float64_error
    assert record["model"]["top1_agreement"] == 1.0


class Rounds(nn.Module):
    """A model that is not continuous, so that an error of rounding becomes one of size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x) * 1e9).round() % 2


def test_a_whole_model_that_differs_is_put_back() -> None:
    model = inject(Rounds(), RepAdapter(targets=("fc",)))
    add_noise(trainable(model).values())
    before = image(model)
    with pytest.raises(NotMergeable, match=r"outputs differ by .* \[inputs\]"):
        merge(model, torch.randn(64, 8))
    assert image(model) == before
    merge(model)


def test_inputs_that_give_nan_are_no_proof() -> None:
    model = injected(TOY, RepAdapter())
    before = image(model)
    with pytest.raises(NotMergeable, match="differ by nan"):
        merge(model, torch.full((2, 4, 16), torch.nan))
    assert image(model) == before


def test_an_error_after_the_swap_puts_the_adapters_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = injected(TOY, RepAdapter())
    before = image(model)

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "compare", fail)
    with pytest.raises(KeyboardInterrupt):
        merge(model, TOY.inputs())
    assert image(model) == before


class Structured(nn.Module):
    """Returns what transformers models do: a mapping of a sequence of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = TOY.build()

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, ...]]:
        out = self.toy(x)
        return {"features": (out[:, None], out), "scores": (out,)}


def test_structured_outputs_are_compared() -> None:
    model = inject(Structured(), RepAdapter())
    certificate = merge(model, (TOY.inputs(),))
    assert certificate.model is not None
    assert certificate.model.top1_agreement is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_backbones_merge_to_their_own_dtype(dtype: torch.dtype) -> None:
    model = injected(TOY, RepAdapter(), dtype)
    assert {layer.adapter.up.weight.dtype for layer in adapted_layers(model).values()} == {torch.float32}
    expected = run(copy.deepcopy(model).double(), TOY)
    certificate = merge(model)
    assert model.blocks[0].attn.qkv.weight.dtype == dtype
    assert certificate.float64_error <= 1e-12
    assert relative(run(copy.deepcopy(model).double(), TOY), expected) <= 8 * torch.finfo(dtype).eps


def test_moved_to_float64_and_back() -> None:
    model = injected(TOY, RepAdapter())
    expected = run(model, TOY)
    assert relative(run(model.double(), TOY), expected.double()) <= 1e-5
    merge(model)
    assert relative(run(model, TOY), expected.double()) <= 1e-5


def test_a_layer_called_twice_is_merged_once() -> None:
    class Twice(Rounds):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).tanh())

    model = inject(Twice().double(), RepAdapter(targets=("fc",)))
    add_noise(trainable(model).values())
    x = torch.randn(4, 8, dtype=torch.float64)
    expected = model.eval()(x)
    merge(model)
    assert relative(model(x), expected) <= 1e-12


def test_the_random_state_stays() -> None:
    model = injected(TOY, RepAdapter())
    state = torch.get_rng_state()
    merge(model, TOY.inputs())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_merged_models_compile() -> None:
    model = injected(Backbone(vit), RepAdapter())
    expected = run(model, Backbone(vit))
    merge(model)
    with torch.no_grad():
        found = torch.compile(model)(Backbone(vit).inputs())
    assert relative(found, expected) <= 1e-4


def test_memory_of_a_plain_layer_is_not_the_adapters() -> None:
    model = injected(TOY, RepAdapter(), torch.float64)
    twin = copy.deepcopy(model)
    expected = run(twin, TOY)
    merge(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(twin, TOY), expected)
