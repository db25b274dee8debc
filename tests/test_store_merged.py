"""Merged files: the plain backbone's own, with the biases that merging created."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from files_by_hand import Change, add, forge, lose, poison, rename, replaced, tensor
from safetensors.torch import load_file
from stored_models import KINDS, METHOD, VIT, build, files_of_a_task, image, outputs, refused, trained

from lightning_petl import AdapterFileError, PETLError, inject, merge, save_adapter
from lightning_petl.store import load_merged, save_merged
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import BACKBONES, Backbone
from lightning_petl.testing.backbones import vit


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    path = tmp_path / "merged.safetensors"
    path.write_bytes(files_of_a_task().merged)
    return path


def test_a_merged_file_is_the_plain_backbones(merged: Path) -> None:
    plain, loaded = build(VIT), build(VIT)
    assert set(load_file(merged)) == set(plain.state_dict())
    plain.load_state_dict(load_file(merged), strict=True)
    header = load_merged(loaded, merged)
    assert header["created"] == []
    assert torch.equal(outputs(VIT, loaded), outputs(VIT, plain))


def test_created_biases_come_back(tmp_path: Path) -> None:
    backbone, path = KINDS["vit, no qkv bias"], tmp_path / "m.safetensors"
    model = trained(backbone)
    save_adapter(model, tmp_path / "a.safetensors", ("head",))
    certificate = merge(model)
    assert certificate.created == ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias")
    save_merged(model, path, read_header(tmp_path / "a.safetensors"), certificate.created)
    assert set(load_file(path)) - set(build(backbone).state_dict()) == set(certificate.created)

    loaded = build(backbone)
    header = load_merged(loaded, path)
    assert tuple(header["created"]) == certificate.created
    assert loaded.blocks[0].attn.qkv.bias.abs().min() > 0
    assert torch.equal(outputs(backbone, loaded), outputs(backbone, model))
    assert [type(module) for module in loaded.modules()] == [type(module) for module in build(backbone).modules()]
    inject(loaded, METHOD)  # a plain backbone in every respect


CREATED = "blocks.1.attn.qkv.bias"
FORGED_MERGED: dict[str, tuple[Change, str]] = {
    "missing tensor": (lose("blocks.0.attn.qkv.weight"), "blocks.0.attn.qkv.weight"),
    "extra tensor": (add("blocks.0.attn.qkv.gain"), "blocks.0.attn.qkv.gain"),
    "renamed tensor": (rename("norm.weight", "norm.wieght"), "norm.w"),
    "misshapen tensor": (tensor("norm.weight", lambda t: t[:-1].clone()), "norm.weight"),
    "other dtype": (tensor("norm.weight", lambda t: t.double()), "norm.weight"),
    "NaN": (tensor("norm.weight", poison(torch.nan)), "norm.weight"),
    "created tensor that is not listed": (lambda header, tensors: header["created"].pop(), CREATED),
    "created tensor that is there": (lambda header, tensors: header["created"].append("norm.weight"), "norm.weight"),
    "format": (replaced("format", "lightning-petl-merged/2"), "format"),
}  # fmt: skip


def created(name: str, shape: tuple[int, ...] = (4,)) -> Change:
    """Lists one more created tensor, and holds it."""
    return lambda header, tensors: (header["created"].append(name), tensors.update({name: torch.ones(shape)}))


FORGED_CREATED: dict[str, tuple[Change, str]] = {
    "missing created tensor": (lose(CREATED), CREATED),
    "misshapen created tensor": (tensor(CREATED, lambda t: t[:-1].clone()), CREATED),
    "created tensor of other dtype": (tensor(CREATED, lambda t: t.double()), CREATED),
    "created in no module": (created("blocks.9.attn.qkv.bias"), "blocks.9.attn.qkv.bias"),
    "created in a module that has no such thing": (created("norm.gain", (32,)), "norm.gain"),
    "created in the model itself": (created("gain"), "gain"),
    "created in a module without tensors": (created("pos_drop.bias"), "pos_drop.bias"),
    "created over a function": (created("norm.forward"), "norm.forward"),
    "no list of created tensors": (replaced("created", None), "created"),
}


@pytest.mark.parametrize(("change", "field"), FORGED_MERGED.values(), ids=FORGED_MERGED)
def test_a_forged_merged_file_is_refused(change: Change, field: str, tmp_path: Path) -> None:
    backbone, path = KINDS["vit, no qkv bias"], tmp_path / "m.safetensors"
    model = trained(backbone, head=False)
    save_merged(model, path, {}, merge(model).created)
    whole, plain = path.read_bytes(), build(backbone)
    refused(load_merged, forge(path, change), AdapterFileError, field, plain)
    path.write_bytes(whole)
    load_merged(plain, path)
    assert torch.equal(outputs(backbone, plain), outputs(backbone, model))


@pytest.mark.parametrize(("change", "field"), FORGED_CREATED.values(), ids=FORGED_CREATED)
def test_a_forged_list_of_created_tensors_is_refused(change: Change, field: str, tmp_path: Path) -> None:
    backbone, path = KINDS["vit, no qkv bias"], tmp_path / "m.safetensors"
    model = trained(backbone, head=False)
    save_merged(model, path, {}, merge(model).created)
    refused(load_merged, forge(path, change), AdapterFileError, field, build(backbone))


def test_a_merged_file_is_not_loaded_under_adapters(merged: Path) -> None:
    model = trained(head=False)
    before = image(model)
    with pytest.raises(PETLError, match="adapters"):
        load_merged(model, merged)
    assert image(model) == before


def test_a_merged_file_of_another_architecture_is_refused(merged: Path) -> None:
    for other in (BACKBONES["swin"].build(), Backbone(lambda: vit(depth=3)).build(), BACKBONES["toy"].build()):
        refused(load_merged, merged, AdapterFileError, str(merged), other)


def test_timm_takes_a_merged_file_by_itself(tmp_path: Path) -> None:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = trained()
    merge(model)
    save_merged(model, tmp_path / "m.safetensors", {}, ())
    path = str(tmp_path / "m.safetensors")
    loaded = timm.create_model("vit_tiny_patch16_224", checkpoint_path=path, **options)
    assert torch.equal(outputs(VIT, loaded), outputs(VIT, model))


def test_saving_merged_leaves_the_model(tmp_path: Path) -> None:
    model = trained()
    merge(model)
    before = image(model)
    save_merged(model, tmp_path / "m.safetensors", {}, ())
    assert image(model) == before
    twin = copy.deepcopy(model)
    load_merged(twin, tmp_path / "m.safetensors")
    assert image(model) == before
