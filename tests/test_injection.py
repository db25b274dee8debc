"""Putting adapters in: what changes, what must not, and every layer that would be adapted in vain."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from liars import Honest, HonestAdapter
from torch import Tensor, nn

import lightning_petl as petl
from lightning_petl import NotMergeable, PETLError, RepAdapter, TargetNotFound, adapted_layers, inject, trainable
from lightning_petl.testing import BACKBONES, add_noise
from lightning_petl.testing.backbones import Toy, vit

TOY = BACKBONES["toy"]


def traces(model: nn.Module) -> dict[str, object]:
    """All that a refused injection must leave as it was."""
    return {
        "tensors": {name: (id(tensor), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()},
        "modules": {path: (id(module), type(module), module.training) for path, module in model.named_modules()},
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "attributes": sorted(model.__dict__),
        "random": torch.get_rng_state().tolist(),
    }


def half_frozen(model: nn.Module) -> nn.Module:
    """A model in a state of its own: parts frozen, parts in evaluation mode."""
    for i, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.requires_grad_(i % 2 == 0)
        module.training = i % 3 == 0
    return model


def test_injection_freezes_all_but_the_adapters_and_returns_the_model() -> None:
    model = Toy()
    assert inject(model, RepAdapter()) is model
    assert list(adapted_layers(model)) == [f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "mlp.fc1")]
    assert all(".adapter." in name for name in trainable(model))
    assert len(trainable(model)) == 16
    assert not model.head.weight.requires_grad
    assert {name.partition(".adapter.")[2] for name in trainable(model)} == {
        "down.weight",
        "down.bias",
        "up.weight",
        "up.bias",
    }


def test_the_frozen_layer_is_the_one_that_was_there() -> None:
    model = Toy()
    qkv = model.blocks[0].attn.qkv
    inject(model, RepAdapter())
    assert adapted_layers(model)["blocks.0.attn.qkv"].base is qkv


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_taken_from_the_layers(training: bool) -> None:
    model = inject(Toy().train(training), RepAdapter())
    assert {module.training for module in model.modules()} == {training}


def test_trainable_names_a_shared_tensor_once() -> None:
    model = inject(Toy(), RepAdapter())
    adapters = [layer.adapter for layer in adapted_layers(model).values()]
    adapters[2].down.weight = adapters[0].down.weight
    assert len(trainable(model)) == 15


@pytest.mark.parametrize("name", ["weight", "bias", "kernel_size"])
def test_an_adapted_layer_has_no_weight_of_its_own(name: str) -> None:
    layer = adapted_layers(inject(Toy(), RepAdapter()))["blocks.0.attn.qkv"]
    with pytest.raises(NotMergeable, match=rf"its {name} is read past the layer's call.*\[blocks\.0\.attn\.qkv\]"):
        getattr(layer, name)
    assert not hasattr(layer, name)
    assert (layer.in_features, layer.out_features) == (16, 48)


class Block(nn.Module):
    """One layer, and what a subclass does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(8, 8), nn.Linear(8, 8)


class ReadsWeight(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fc.weight, self.fc.bias)


class ReadsWeightToo(Block):
    """Calls the layer, and adds a penalty of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.fc.weight.abs().mean()


class ReadsWeightInEvaluation(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if self.training else F.linear(x, self.fc.weight, self.fc.bias)


class ReadsWeightInTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fc.weight, self.fc.bias) if self.training else self.fc(x)


class ReadsDict(Block):
    def forward(self, x: Tensor) -> Tensor:
        weight = dict(self.named_parameters()).get("fc.weight", torch.zeros(8, 8))
        return F.linear(x, weight)


class NeverCalls(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.other(x)


class Folds(Block):
    """Multiplies two layers' weights when it is asked whether they are there."""

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.fc, "weight"):
            return F.linear(x, self.other.weight @ self.fc.weight)
        return self.other(x)


SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
FC = RepAdapter(targets=("fc",))
PAST_THE_CALL: dict[str, tuple[Callable[[], nn.Module], petl.Method, str]] = {
    "reads": (ReadsWeight, FC, "fc"),
    "reads too": (ReadsWeightToo, FC, "fc"),
    "reads in evaluation": (ReadsWeightInEvaluation, FC, "fc"),
    "reads in training": (ReadsWeightInTraining, FC, "fc"),
    "reads a dict": (ReadsDict, FC, "fc"),
    "never calls": (NeverCalls, FC, "fc"),
    "asks": (Folds, FC, "fc"),
    "beit": (lambda: timm.create_model("beit_base_patch16_224", **SMALL), RepAdapter(), "blocks.0.attn.qkv"),
    "eva02": (
        lambda: timm.create_model("eva02_base_patch14_224", **(SMALL | {"qkv_fused": True})),
        RepAdapter(sites=("attn",)),
        "blocks.0.attn.qkv",
    ),
    "swin v2": (
        lambda: timm.create_model(
            "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=32, depths=(1,), num_heads=(2,)
        ),
        RepAdapter(),
        "layers.0.blocks.0.attn.qkv",
    ),
    "MultiheadAttention": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        RepAdapter(targets=(r"self_attn\.out_proj",)),
        "self_attn.out_proj",
    ),
    "TransformerEncoderLayer, fast path": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        RepAdapter(targets=("linear1",)),
        "linear1",
    ),
}


@pytest.mark.parametrize(("build", "method", "layer"), PAST_THE_CALL.values(), ids=PAST_THE_CALL)
def test_a_weight_read_past_the_call_is_refused_and_leaves_no_trace(
    build: Callable[[], nn.Module], method: petl.Method, layer: str
) -> None:
    model = half_frozen(build())
    before = traces(model)
    with torch.random.fork_rng(), pytest.raises(NotMergeable, match=r"past the layer's call") as caught:
        inject(model, method)
    assert caught.value.where == layer
    assert traces(model) == before


def test_a_transformer_layer_without_a_fast_path_is_adapted() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=False, dropout=0.0).double().eval()
    inject(model, RepAdapter(targets=("linear1",)))
    add_noise(trainable(model).values())
    x = torch.randn(4, 2, 16, dtype=torch.float64)
    expected = model(x)
    petl.merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


class FailsInBuild(Honest):
    def build(self, target: petl.Target, shared: nn.Module | None = None) -> petl.Adapter:
        if target.path.startswith("blocks.1"):
            raise RuntimeError("out of luck")
        return super().build(target, shared)


class BuildsNoAdapter(Honest):
    def build(self, target: petl.Target, shared: nn.Module | None = None) -> petl.Adapter:
        return nn.Linear(4, 4)  # type: ignore[return-value]


class TrainsNothingThatExists(Honest):
    def trained(self, model: nn.Module) -> list[str]:
        return ["blocks.7.norm1.weight"]


class WrongShape(Honest):
    class adapter(HonestAdapter):  # noqa: N801
        def forward(self, x: Tensor, base: petl.Affine) -> Tensor:
            return base(x)[..., :3]


REFUSED = {
    "not found": (RepAdapter(targets=("nope",)), TargetNotFound, "nope"),
    "one of two patterns": (RepAdapter(targets=("head", "nope")), TargetNotFound, "nope"),
    "not mergeable": (RepAdapter(targets=("head", r"blocks\.1")), NotMergeable, r"\[blocks\.1\]"),
    "groups": (RepAdapter(hidden_dim=3, groups=3), NotMergeable, "3 groups do not divide"),
    "build fails": (FailsInBuild(), RuntimeError, "out of luck"),
    "no adapter": (BuildsNoAdapter(), petl.PluginError, "returned Linear, no Adapter"),
    "no such parameter": (TrainsNothingThatExists(), petl.PluginError, r"lacks: blocks\.7\.norm1\.weight"),
    "output shape": (WrongShape(), RuntimeError, "broadcast"),
    "no method": (RepAdapter, petl.ConfigError, "no instance of a Method"),
}


@pytest.mark.parametrize(("method", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_a_refused_injection_leaves_no_trace(method: petl.Method, error: type[Exception], message: str) -> None:
    model = half_frozen(Toy())
    before = traces(model)
    with torch.random.fork_rng(), pytest.raises(error, match=message):
        inject(model, method)
    assert traces(model) == before
    inject(model, RepAdapter())


def test_a_sequential_takes_no_shared_modules() -> None:
    model = half_frozen(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))
    before, x = traces(model), torch.randn(2, 16)
    with (
        torch.random.fork_rng(),
        pytest.raises(PETLError, match="a Sequential would run what the adapters of ARC share"),
    ):
        inject(model, petl.ARC(rank=2, targets=("0",)), (x,))
    after = traces(model)  # random numbers are drawn for what is shared before the refusal
    assert {**after, "random": None} == {**before, "random": None}
    inject(model, RepAdapter(targets=("0",)), (x,))


def test_inputs_that_do_not_fit_leave_no_trace() -> None:
    model = half_frozen(Toy())
    before = traces(model)
    with torch.random.fork_rng(), pytest.raises(RuntimeError):
        inject(model, RepAdapter(), inputs=(torch.ones(2, 4, 15),))
    assert traces(model) == before


def test_given_inputs_reach_layers_that_guesses_do_not() -> None:
    class Two(Block):
        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            return self.fc(x) if which.shape[0] > 1 else self.other(x)

    x = torch.ones(2, 8)
    assert adapted_layers(inject(Two(), FC, inputs=(x, torch.ones(2))))
    with pytest.raises(NotMergeable, match="never calls it"):
        inject(Two(), FC, inputs=(x, torch.ones(1)))


def test_injecting_twice_is_an_error_and_keeps_the_first() -> None:
    model = inject(Toy(), RepAdapter())
    before = traces(model)
    for again in (RepAdapter(), petl.LinearProbe()):
        with pytest.raises(PETLError, match="has adapters already"):
            inject(model, again)
    assert traces(model) == before


@pytest.mark.parametrize("wrap", [lambda model: nn.Sequential(model), lambda model: nn.ModuleDict({"m": model})])
def test_a_model_that_holds_adapters_is_not_injected_again(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(PETLError, match="has adapters already"):
        inject(wrap(inject(Toy(), RepAdapter())), RepAdapter(targets=(r".*head",)))


def test_injection_after_merging_starts_anew() -> None:
    model = inject(TOY.build(), RepAdapter())
    add_noise(trainable(model).values())
    petl.merge(model)
    expected = model(TOY.inputs())
    inject(model, RepAdapter(sites=("attn",)))
    assert torch.equal(model(TOY.inputs()), expected)


def test_no_adapters_is_an_error_for_what_needs_them(tmp_path: object) -> None:
    for action in (petl.merge, lambda model: petl.save_adapter(model, f"{tmp_path}/a.safetensors")):
        with pytest.raises(PETLError, match="has no adapters"):
            action(Toy())


def test_a_deep_copy_trains_merges_and_ejects_by_itself() -> None:
    model = inject(TOY.build(), RepAdapter(dropout=0.0))
    twin = copy.deepcopy(model)
    expected = model(TOY.inputs())
    twin(TOY.inputs()).sum().backward()
    torch.optim.SGD(trainable(twin).values(), lr=1.0).step()
    petl.merge(twin)
    assert torch.equal(model(TOY.inputs()), expected)
    assert not torch.allclose(twin(TOY.inputs()), expected)
    assert len(adapted_layers(model)) == 4


def test_state_dict_round_trip_is_exact() -> None:
    model, other = inject(TOY.build(), RepAdapter()), inject(TOY.build(), RepAdapter())
    add_noise(trainable(model).values())
    assert not torch.equal(model(TOY.inputs()), other(TOY.inputs()))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(TOY.inputs()), other(TOY.inputs()))


def test_frozen_batch_norm_of_a_probe_run_does_not_drift() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))
    model(torch.ones(2, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inject(model, RepAdapter(groups=1, targets=("0",)), inputs=(torch.randn(2, 3, 8, 8),))
    found = model.state_dict()
    assert all(torch.equal(tensor, found[name.replace("0.", "0.base.", 1) if name.startswith("0.") else name])
               for name, tensor in before.items())  # fmt: skip


def test_autocast_and_narrow_backbones() -> None:
    model = inject(TOY.build(), RepAdapter())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(TOY.inputs()).dtype == torch.bfloat16
    narrow = inject(TOY.build(torch.bfloat16), RepAdapter())
    assert narrow(TOY.inputs(torch.bfloat16)).dtype == torch.bfloat16


def test_an_error_crosses_processes() -> None:
    layer = adapted_layers(inject(Toy(), RepAdapter()))["blocks.0.mlp.fc1"]
    with pytest.raises(NotMergeable) as caught:
        _ = layer.weight
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.where) == (type(caught.value), str(caught.value), "blocks.0.mlp.fc1")


def test_a_vit_on_the_meta_device_is_injected_and_ejected() -> None:
    with torch.device("meta"):
        model = vit()
    inject(model, RepAdapter())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_module_in_two_places_keeps_its_values() -> None:
    model = vit()
    model.blocks[1].norm1 = model.blocks[0].norm1
    x = torch.randn(2, 3, 32, 32)
    before = model.eval()(x)
    assert torch.equal(inject(model, RepAdapter()).eval()(x), before)
