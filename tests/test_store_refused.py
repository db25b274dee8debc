"""Files that must not be loaded: each is refused by the name of the field, and leaves no trace in the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from files_by_hand import (
    Change,
    add,
    data_start,
    drop_in,
    flip,
    forge,
    lose,
    poison,
    rename,
    replaced,
    set_in,
    tensor,
    without,
)
from safetensors.torch import save_file
from stored_models import METHOD, VIT, build, files_of_a_task, image, outputs, refused, trained
from torch import nn

from lightning_petl import AdapterFileError, BackboneMismatch, PETLError, PluginError, load_adapter
from lightning_petl.store import load_merged
from lightning_petl.testing import BACKBONES, Backbone
from lightning_petl.testing.backbones import Toy, vit


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(files_of_a_task().adapter)
    return path


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    path = tmp_path / "merged.safetensors"
    path.write_bytes(files_of_a_task().merged)
    return path


DOWN = "adapters.blocks.1.attn.qkv.down.weight"


def other_method(**values: object) -> Change:
    return set_in("method", **values)


ARGUMENTS = METHOD.arguments
FORGED: dict[str, tuple[Change, type[PETLError], str]] = {
    "missing tensor": (lose(DOWN), AdapterFileError, DOWN),
    "missing layer": (
        lambda header, tensors: [tensors.pop(name) for name in list(tensors) if "blocks.1.mlp" in name],
        AdapterFileError,
        "adapters.blocks.1.mlp.fc1.down.bias",
    ),
    "extra tensor": (add("adapters.blocks.1.attn.qkv.gain"), AdapterFileError, "adapters.blocks.1.attn.qkv.gain"),
    "extra layer": (add("adapters.blocks.2.attn.qkv.up.bias"), AdapterFileError, "adapters.blocks.2.attn.qkv.up.bias"),
    "extra shared tensor": (add("shared.attn.32.projection"), AdapterFileError, "shared.attn.32.projection"),
    "tensor of no kind": (add("stray"), AdapterFileError, "stray"),
    "renamed tensor": (rename(DOWN, DOWN.replace("down", "dwon")), AdapterFileError, DOWN),
    "misshapen tensor": (tensor(DOWN, lambda t: t[:-1].clone()), AdapterFileError, DOWN),
    "transposed tensor": (tensor(DOWN, lambda t: t.T.contiguous()), AdapterFileError, DOWN),
    "float64 tensor": (tensor(DOWN, lambda t: t.double()), AdapterFileError, DOWN),
    "float16 tensor": (tensor(DOWN, lambda t: t.half()), AdapterFileError, DOWN),
    "integer tensor": (tensor(DOWN, lambda t: t.long()), AdapterFileError, DOWN),
    "NaN": (tensor(DOWN, poison(torch.nan)), AdapterFileError, DOWN),
    "infinity": (tensor(DOWN, poison(-torch.inf)), AdapterFileError, DOWN),
    "NaN in the head": (tensor("extra.head.bias", poison(torch.nan)), AdapterFileError, "extra.head.bias"),
    "misshapen head": (tensor("extra.head.bias", lambda t: t[:-1].clone()), AdapterFileError, "extra.head.bias"),
    "float64 head": (tensor("extra.head.bias", lambda t: t.double()), AdapterFileError, "extra.head.bias"),
    "head of another name": (rename("extra.head.bias", "extra.haed.bias"), AdapterFileError, "extra.haed.bias"),
    "other fingerprint": (set_in("backbone", fingerprint="0" * 64), BackboneMismatch, "backbone.fingerprint"),
    "no fingerprint": (drop_in("backbone", "fingerprint"), BackboneMismatch, "backbone.fingerprint"),
    "no backbone": (without("backbone"), BackboneMismatch, "backbone.fingerprint"),
    "other layers": (lambda header, tensors: header["layers"].pop(), AdapterFileError, "layers"),
    "layers in another order": (lambda header, tensors: header["layers"].reverse(), AdapterFileError, "layers"),
    "no layers": (without("layers"), AdapterFileError, "layers"),
    "another method": (other_method(name="LinearProbe", arguments={}), AdapterFileError, "layers"),
    "unknown method": (other_method(name="RepAdaptr"), PluginError, "method.name"),
    "method by another case": (other_method(name="repadapter"), PluginError, "method.name"),
    "method from anywhere": (other_method(name="os:system"), PluginError, "method.name"),
    "function of no distribution": (other_method(name="os:system", distribution=""), PluginError, "method.name"),
    "class that is no method": (
        other_method(name="torch.nn.modules.linear:Linear", distribution=""), PluginError, "method.name",
    ),
    "class that builds nothing": (
        other_method(name="lightning_petl.adapter:WithoutAdapters", distribution="", arguments={}),
        AdapterFileError,
        "layers",
    ),
    "wrong distribution": (other_method(distribution="petl-other"), PluginError, "method.distribution"),
    "no distribution": (other_method(distribution=""), PluginError, "method.distribution"),
    "no method": (without("method"), AdapterFileError, "method"),
    "method of another type": (replaced("method", "RepAdapter"), AdapterFileError, "method"),
    "method without arguments": (drop_in("method", "arguments"), AdapterFileError, "method"),
    "unknown argument": (other_method(arguments=ARGUMENTS | {"rank": 2}), AdapterFileError, "method.arguments"),
    "arguments of another type": (other_method(arguments=[4, 2]), AdapterFileError, "method.arguments"),
    "invalid argument": (other_method(arguments=ARGUMENTS | {"groups": 3}), AdapterFileError, "method.arguments"),
    "text for a number": (
        other_method(arguments=ARGUMENTS | {"hidden_dim": "4"}), AdapterFileError, "method.arguments",
    ),
    "other size": (
        other_method(arguments=ARGUMENTS | {"hidden_dim": 8}), AdapterFileError, "adapters.blocks.0.attn.qkv.down",
    ),
    "other sites": (other_method(arguments=ARGUMENTS | {"sites": ["attn"]}), AdapterFileError, "layers"),
    "format to come": (replaced("format", "lightning-petl/2"), AdapterFileError, "format"),
    "format of merged files": (replaced("format", "lightning-petl-merged/1"), AdapterFileError, "format"),
    "format of another type": (replaced("format", ["lightning-petl/1"]), AdapterFileError, "format"),
    "missing head": (lose("extra.head.bias"), AdapterFileError, "extra.head.bias"),
    "extra of another layer": (add("extra.norm.weight", (32,)), AdapterFileError, "extra.norm.weight"),
    "extra that is not listed": (lambda header, tensors: header["extra"].pop(), AdapterFileError, "extra"),
    "fraction for a number": (
        other_method(arguments=ARGUMENTS | {"hidden_dim": 4.0}), AdapterFileError, "method.arguments",
    ),
    "unknown site": (other_method(arguments=ARGUMENTS | {"sites": ["atn"]}), AdapterFileError, "method.arguments"),
    "targets that are not there": (
        other_method(arguments=ARGUMENTS | {"targets": ["nope"]}), AdapterFileError, "method.arguments",
    ),
    "size without end": (
        other_method(arguments=ARGUMENTS | {"hidden_dim": 10**13}), AdapterFileError, "method.arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "field"), FORGED.values(), ids=FORGED)
def test_a_forged_adapter_is_refused(change: Change, error: type[PETLError], field: str, adapter: Path) -> None:
    model, whole = build(VIT), adapter.read_bytes()
    refused(load_adapter, forge(adapter, change), error, field, model)
    adapter.write_bytes(whole)
    load_adapter(model, adapter)


def test_forging_alone_does_not_make_a_file_unreadable(adapter: Path) -> None:
    """Else the table above would say nothing."""
    expected = outputs(VIT, load_adapter(build(VIT), adapter))
    forge(adapter, lambda header, tensors: header["task"].update(classes=list("vwxyz")))
    assert torch.equal(outputs(VIT, load_adapter(build(VIT), adapter)), expected)


def other_value(name: str) -> Callable[[], nn.Module]:
    def changed() -> nn.Module:
        model = build(VIT)
        with torch.no_grad():
            value = model.get_parameter(name).view(-1)[-1]
            value.copy_(torch.nextafter(value, value + 1))
        return model

    return changed


class Renamed(nn.Module):
    """The same tensors under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build(VIT)


BACKBONE = (BackboneMismatch, "backbone.fingerprint")
OTHER_BACKBONES: dict[str, tuple[Callable[[], nn.Module], type[PETLError], str]] = {
    "one frozen value": (other_value("norm.weight"), *BACKBONE),
    "one value of an adapted layer": (other_value("blocks.1.mlp.fc1.weight"), *BACKBONE),
    "deeper": (lambda: Backbone(lambda: vit(depth=3)).build(), *BACKBONE),
    "wider": (lambda: Backbone(lambda: vit(embed_dim=64)).build(), AdapterFileError, "extra.head.weight"),
    "another family": (lambda: build(BACKBONES["swin"]), AdapterFileError, "extra.head"),
    "another family whose head fits": (lambda: Backbone(lambda: Toy(width=32)).build(), *BACKBONE),
    "more classes": (lambda: Backbone(lambda: vit(num_classes=7)).build(), AdapterFileError, "extra.head"),
    "float64": (lambda: VIT.build(torch.float64), AdapterFileError, "extra.head"),
    "other names": (Renamed, AdapterFileError, "extra.head"),
}


@pytest.mark.parametrize(("other", "error", "field"), OTHER_BACKBONES.values(), ids=OTHER_BACKBONES)
def test_another_backbone_is_refused(
    other: Callable[[], nn.Module], error: type[PETLError], field: str, adapter: Path
) -> None:
    refused(load_adapter, adapter, error, field, other())


def test_the_head_is_no_part_of_the_backbone(adapter: Path) -> None:
    model = other_value("head.weight")()
    assert torch.equal(outputs(VIT, load_adapter(model, adapter)), outputs(VIT, load_adapter(build(VIT), adapter)))


def test_a_model_with_adapters_is_refused(adapter: Path) -> None:
    model = trained(head=False)
    before = image(model)
    with pytest.raises(PETLError):
        load_adapter(model, adapter)
    assert image(model) == before
    loaded = load_adapter(build(VIT), adapter)
    before = image(loaded)
    with pytest.raises(PETLError):
        load_adapter(loaded, adapter)
    assert image(loaded) == before


def plain_safetensors(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path)


def other_safetensors(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": "pt"})


def pickled(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path)


def no_json(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": "lightning-petl/1", "digest": '"0"'})


def nan_in_header(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": '"lightning-petl/1"', "task": "NaN", "digest": '"0"'})


def infinity_in_header(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": '"lightning-petl/1"', "task": "1e999", "digest": '"0"'})


def bottomless_header(path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": '"lightning-petl/1"', "task": "[" * 10**5, "digest": '"0"'})


def truncated(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


NO_FILES: dict[str, Callable[[Path], object]] = {
    "does not exist": Path.unlink,
    "folder": folder,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("adapter"),
    "pickle": pickled,
    "safetensors without a header": plain_safetensors,
    "safetensors of somebody else": other_safetensors,
    "header that is no JSON": no_json,
    "NaN in the header": nan_in_header,
    "infinity in the header": infinity_in_header,
    "header without end": bottomless_header,
    "cut in the length": truncated(5),
    "cut in the header": truncated(300),
    "cut in the data": truncated(-1),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte more": longer,
}


@pytest.mark.parametrize("load", [load_adapter, load_merged])
@pytest.mark.parametrize("spoil", NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_file_of_ours(
    spoil: Callable[[Path], object], load: Callable[[nn.Module, Path], object], adapter: Path, merged: Path
) -> None:
    path = adapter if load is load_adapter else merged
    spoil(path)
    refused(load, path, AdapterFileError, str(path), build(VIT))


def test_a_file_that_is_not_there_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"no such file \[.*nowhere"):
        load_adapter(build(VIT), tmp_path / "nowhere.safetensors")


def test_each_file_is_refused_by_the_other_loader(adapter: Path, merged: Path) -> None:
    refused(load_adapter, merged, AdapterFileError, "format", build(VIT))
    refused(load_merged, adapter, AdapterFileError, "format", build(VIT))


@pytest.mark.parametrize("load", [load_adapter, load_merged])
def test_a_flipped_byte_is_found(load: Callable[[nn.Module, Path], object], adapter: Path, merged: Path) -> None:
    path = adapter if load is load_adapter else merged
    content = path.read_bytes()
    start = data_start(content)
    model = build(VIT)
    for position in (start, (start + len(content)) // 2, len(content) - 1):
        flip(path, content, position)
        refused(load, path, AdapterFileError, "digest", model)
    for field in (b"fingerprint", b"RepAdapter", b"blocks.0", b"hidden_dim", b"adapter"):
        flip(path, content, content.index(field) + 2)
        refused(load, path, AdapterFileError, str(path), model)
