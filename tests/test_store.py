"""Adapter files: the format, exact round trips, and what must not be saved."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import files_by_hand as by_hand
import liars
import pytest
import torch
from files_by_hand import parse
from safetensors.torch import save_file
from stored_models import KINDS, METHOD, METHODS, VIT, Halves, build, head_of, outputs, trained
from torch import Tensor, nn

from lightning_petl import (
    AdapterFileError,
    ConfigError,
    LinearProbe,
    Method,
    PETLError,
    RepAdapter,
    adapted_layers,
    inject,
    load_adapter,
    merge,
    save_adapter,
    trainable,
)
from lightning_petl.store import fingerprint, load_merged, save_merged, tensor_digests, versions
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import BACKBONES, Backbone, add_noise

# -- the format -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "swin, float64", "vit_layer_scale"])
def test_digest_and_fingerprint_are_what_the_format_says(name: str, tmp_path: Path) -> None:
    backbone, path = KINDS[name], tmp_path / "a.safetensors"
    model = trained(backbone)
    head = head_of(model)
    returned = save_adapter(model, path, (head,), task={"classes": ["Ä", "b"], "size": (32, 32)})
    metadata, tensors = parse(path)
    assert returned == by_hand.digest(path) == json.loads(metadata["digest"])
    plain = build(backbone)
    expected = by_hand.fingerprint(plain, f"{head}.")
    assert json.loads(metadata["backbone"])["fingerprint"] == expected
    assert fingerprint(tensor_digests(plain, [f"{head}.weight", f"{head}.bias"])) == expected
    assert {name.partition(".")[0] for name in tensors} == {"adapters", "extra"}

    certificate = merge(model)
    merged = tmp_path / "m.safetensors"
    assert save_merged(model, merged, read_header(path), certificate.created) == by_hand.digest(merged)
    assert json.loads(parse(merged)[0]["adapter"]) == returned


def test_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    task = {"classes": ["cat", "dog"], "mean": [0.5, 0.5, 0.5], "image_size": [32, 32]}
    save_adapter(trained(), path, ("head",), task, {"name": "vit_tiny_patch16_224", "arguments": {"depth": 2}})
    header = by_hand.header(path)
    assert header["format"] == "lightning-petl/1"
    assert header["method"]["name"] == "RepAdapter"
    assert header["method"]["distribution"] == "lightning-petl"
    assert header["method"]["arguments"] == METHOD.arguments
    assert header["backbone"]["name"] == "vit_tiny_patch16_224"
    assert header["backbone"]["arguments"] == {"depth": 2}
    assert header["layers"] == [f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "mlp.fc1")]
    assert header["task"] == task
    assert header["versions"]["torch"] == version("torch")
    assert read_header(path) == header


def test_where_nothing_is_said_the_model_says_what_it_is(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path / "a.safetensors", ("head",))
    assert read_header(tmp_path / "a.safetensors")["backbone"]["name"] == "vit_tiny_patch16_224"
    save_adapter(trained(BACKBONES["toy"]), tmp_path / "a.safetensors", ("head",))
    assert read_header(tmp_path / "a.safetensors")["backbone"]["name"] == "lightning_petl.testing.backbones.Toy"


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("backbone", KINDS.values(), ids=KINDS)
def test_round_trip(backbone: Backbone, method: Method, tmp_path: Path) -> None:
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    if isinstance(method, RepAdapter):
        model = trained(backbone, method)
    else:
        model = trained(backbone, type(method)(targets=(r".*fc[12]",)))
    expected, head = outputs(backbone, model), head_of(model)
    digest = save_adapter(model, path, (head,))
    assert torch.equal(outputs(backbone, model), expected), "saving changes nothing"

    loaded = build(backbone)
    assert not torch.equal(outputs(backbone, loaded), expected)
    assert load_adapter(loaded, path) is loaded
    assert list(adapted_layers(loaded)) == list(adapted_layers(model))
    if isinstance(method, Halves):  # the product is rounded once
        torch.testing.assert_close(outputs(backbone, loaded), expected)
        expected = outputs(backbone, loaded)
    else:
        assert torch.equal(outputs(backbone, loaded), expected)
        assert save_adapter(loaded, again, (head,)) == digest

    first, second = merge(model), merge(loaded)
    assert first.created == second.created
    torch.testing.assert_close(outputs(backbone, loaded), outputs(backbone, model))


def test_shared_modules_are_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = trained(method=liars.Shared(), head=False)
    save_adapter(model, path)
    tensors = parse(path)[1]
    shared = {name: shape for name, (shape, _, _) in tensors.items() if name.startswith("shared.")}
    assert shared == {"shared.w32": [32, 2], "shared.w128": [128, 2]}
    assert len(tensors) == 2 + 6, "two projections, and a rescaling of each of six layers"

    loaded = load_adapter(build(VIT), path)
    module = dict(loaded.named_children())["petl_shared"]
    assert sum(child is module for child in loaded.modules()) == 1
    for layer in adapted_layers(loaded).values():
        assert layer.adapter.projections[0] is module
        assert any(layer.adapter.projection is parameter for parameter in module.parameters())
    assert sum(name.endswith(".w32") for name, _ in loaded.named_parameters(remove_duplicate=False)) == 1


def test_the_stored_form_is_the_small_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(trained(method=Halves(), head=False), path)
    assert set(parse(path)[1]) == {f"adapters.blocks.{i}.mlp.fc2.scale" for i in range(2)}
    loaded = load_adapter(build(VIT), path)
    assert {type(layer.adapter) for layer in adapted_layers(loaded).values()} == {liars.HonestAdapter}
    assert {id(layer.adapter.scale) for layer in adapted_layers(loaded).values()} <= set(map(id, loaded.parameters()))


def test_loaded_adapters_take_the_mode_of_their_layers(tmp_path: Path) -> None:
    save_adapter(trained(method=Halves(), head=False), tmp_path / "a.safetensors")
    for training in (True, False):
        loaded = load_adapter(build(VIT).train(training), tmp_path / "a.safetensors")
        assert {module.training for module in loaded.modules()} == {training}


def test_what_is_trained_in_place_is_stored_without_being_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = trained(method=liars.TrainsInPlace(), head=False)
    names = {name for name in trainable(model) if ".adapter." not in name}
    assert names == {name for name, _ in model.named_parameters() if "norm" in name}
    save_adapter(model, path)
    assert {name for name in parse(path)[1] if name.startswith("extra.")} == {f"extra.{name}" for name in names}
    loaded = load_adapter(build(VIT), path)
    assert torch.equal(loaded.blocks[0].norm1.weight, model.blocks[0].norm1.weight)


class Normed(nn.Module):
    """A backbone with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def test_buffers_that_changed_are_stored_without_being_named(tmp_path: Path) -> None:
    backbone, path = Backbone(Normed), tmp_path / "a.safetensors"
    model = inject(build(backbone), RepAdapter(groups=1, targets=("conv",)))
    save_adapter(model, path)
    assert not any(name.startswith("extra.") for name in parse(path)[1]), "still as they were"
    model.train()(backbone.inputs() + 1)
    save_adapter(model, path)
    buffers = ("norm.num_batches_tracked", "norm.running_mean", "norm.running_var")
    assert read_header(path)["extra"] == list(buffers)
    loaded = load_adapter(build(backbone), path)
    assert torch.equal(outputs(backbone, loaded), outputs(backbone, model))


def test_tied_tensors_are_written_under_each_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 16)
            self.twin = nn.Linear(16, 16)
            self.twin.weight = self.head.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.twin(self.head(self.fc(x)))

    torch.manual_seed(1)
    model = inject(Tied(), RepAdapter(targets=("fc",)))
    torch.manual_seed(1)
    plain = Tied()
    path, x = tmp_path / "a.safetensors", torch.randn(2, 16)
    model.head.requires_grad_(True)
    save_adapter(model, path, ("head", "twin"))
    assert torch.equal(load_adapter(plain, path).eval()(x), model.eval()(x))
    merge(model)
    save_merged(model, path, {}, ())
    torch.manual_seed(2)
    other = Tied()
    load_merged(other, path)
    assert torch.equal(other(x), model(x))


SMALL = """
import torch
import lightning_petl as petl

def small():
    torch.manual_seed(11)
    return torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 5)).eval()
"""


def test_files_load_in_a_fresh_process_with_torch_alone(tmp_path: Path) -> None:
    names: dict[str, Callable[[], nn.Module]] = {}
    exec(SMALL, names)
    model, x = inject(names["small"](), RepAdapter(targets=("0",))), torch.randn(3, 16)
    add_noise(trainable(model).values())
    save_adapter(model, tmp_path / "a.safetensors")
    expected = {"x": x, "adapter": model.eval()(x).detach()}
    certificate = merge(model)
    assert certificate.created == ("0.bias",)
    save_merged(model, tmp_path / "m.safetensors", read_header(tmp_path / "a.safetensors"), certificate.created)
    save_file(expected | {"merged": model(x).detach()}, tmp_path / "expected.safetensors")
    code = f"""{SMALL}
import sys
from pathlib import Path
from safetensors.torch import load_file
from lightning_petl.store import load_merged
folder = Path({str(tmp_path)!r})
expected = load_file(folder / "expected.safetensors")
torch.set_num_threads(1)
adapted = petl.load_adapter(small(), folder / "a.safetensors")
load_merged(merged := small(), folder / "m.safetensors")
assert torch.equal(adapted(expected["x"]), expected["adapter"])
assert torch.equal(merged(expected["x"]), expected["merged"])
assert not {{"timm", "pytorch_lightning", "liars"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- what must not be saved --------------------------------------------------------------------------------------------


def test_what_trains_and_is_not_saved_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = trained()
    model.norm.bias.requires_grad_(True)
    with pytest.raises(
        PETLError, match=r"3 trained parameters would not be saved, norm\.bias first.*'norm',"
    ) as caught:
        save_adapter(model, path)
    assert caught.value.where == "extra"
    with pytest.raises(PETLError, match=r"1 trained parameters would not be saved, norm\.bias first"):
        save_adapter(model, path, ("head",))
    with pytest.raises(PETLError, match=r"1 trained parameters would not be saved, head\.weight first"):
        save_adapter(model, path, ("head.bias", "norm"))
    assert not path.exists()
    save_adapter(model, path, ("head", "norm.bias"))
    assert [name for name in parse(path)[1] if "norm" in name] == ["extra.norm.bias"]


def test_a_frozen_layer_that_was_set_to_train_is_not_lost(tmp_path: Path) -> None:
    model = trained(head=False)
    adapted_layers(model)["blocks.0.mlp.fc1"].base.weight.requires_grad_(True)
    with pytest.raises(PETLError, match="would not be saved"):
        save_adapter(model, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("extra", "error", "told"),
    [
        (("haed",), ConfigError, "no module 'haed'"),
        (("head.weigh",), ConfigError, r"no module 'head\.weigh'"),
        (("blocks.0.mlp",), PETLError, r"blocks\.0\.mlp\.fc1\.(weight|bias) is adapted"),
    ],
)
def test_extras_that_cannot_be(extra: tuple[str, ...], error: type[PETLError], told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told):
        save_adapter(trained(head=False), tmp_path / "a.safetensors", extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.adapter.up.bias", "head.bias"])
def test_what_is_not_finite_is_not_saved_and_the_old_file_stays(value: float, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = trained()
    save_adapter(model, path, ("head",))
    before = path.read_bytes()
    with torch.no_grad():
        trainable(model)[name][1] = value
    stored = name.replace(".adapter", "")
    with pytest.raises(AdapterFileError, match=rf"{stored} holds values that are not finite"):
        save_adapter(model, path, ("head",))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_plain_or_merged_model_has_nothing_to_save(tmp_path: Path) -> None:
    model = trained(head=False)
    merge(model)
    for each in (model, build(VIT)):
        with pytest.raises(PETLError, match="has no adapters"):
            save_adapter(each, tmp_path / "a.safetensors")


def test_linear_probe_round_trip(tmp_path: Path) -> None:
    """No layer is adapted: the file holds the head alone."""
    path = tmp_path / "a.safetensors"
    model = trained(method=LinearProbe())
    save_adapter(model, path, ("head",))
    assert set(parse(path)[1]) == {"extra.head.weight", "extra.head.bias"}
    loaded = load_adapter(build(VIT), path)
    assert torch.equal(outputs(VIT, loaded), outputs(VIT, model))
    merge(loaded)
    assert torch.equal(outputs(VIT, loaded), outputs(VIT, model))


NEEDED = {"lightning-petl", "torch", "timm", "pytorch-lightning"}


def test_versions_of_what_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is always needed, and of what is optional that which is there."""
    there = {"torch": "1", "transformers": "2"}

    def installed(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr("lightning_petl.store.version", installed)
    assert versions() == {**dict.fromkeys(NEEDED), "torch": "1", "transformers": "2"}
    there["torchvision"] = "3"
    assert versions()["torchvision"] == "3"
    del there["transformers"]
    assert set(versions()) == NEEDED | {"torchvision"}


def test_versions_are_told_without_importing_anything() -> None:
    pytest.importorskip("transformers")
    code = """
import sys
from lightning_petl.store import versions
before = set(sys.modules)
found = versions()
assert found["transformers"], found
assert not {"transformers", "av", "decord"} & set(sys.modules)
assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in ("torchvision", "transformers")}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
