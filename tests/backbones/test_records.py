"""Records of backbones: what changes a model's outputs is told, by its name, and what does not is let through."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_petl import ConfigError
from lightning_petl.backbones import FrameClassifier, Segmenter, TimmClassifier, VideoTransformer
from lightning_petl.backbones.records import check_record, differences

NAME = "vit_tiny_patch16_224"


def images(name: str = NAME, **arguments: Any) -> dict[str, Any]:
    return TimmClassifier(name, arguments, 5).record()


SAME = {
    "equal": (images(num_heads=3), images(num_heads=3)),
    "tags of weights": (images(f"{NAME}.augreg_in21k"), images(NAME)),
    "drop rates": (images(drop_path_rate=0.1, proj_drop_rate=0.2), images()),
    "more sizes taken": (images(), images(dynamic_img_size=True)),
    "a tuple in Python and a list in JSON": (images(img_size=(32, 32)), images(img_size=[32, 32])),
    "a whole number": (images(mlp_ratio=4), images(mlp_ratio=4.0)),
    "dropout of a head": (
        Segmenter(NAME, num_classes=5, dropout=0.1).record(), Segmenter(NAME, num_classes=5, dropout=0.0).record(),
    ),
    "a fingerprint": (images() | {"fingerprint": "0" * 64, "structure": {"num_heads": [3]}}, images()),
    "written without a kind": ({"name": NAME, "arguments": {"num_classes": 5}}, images()),
    "written without the number of classes": ({"name": NAME, "arguments": {"depth": 2}}, images(depth=2)),
}  # fmt: skip


@pytest.mark.parametrize(("found", "mine"), SAME.values(), ids=SAME)
def test_what_does_not_matter(found: dict[str, Any], mine: dict[str, Any]) -> None:
    check_record(found, mine, "file", "a.safetensors: backbone")


def frames(frames: int = 8, head: Any = "conv", **arguments: Any) -> dict[str, Any]:
    return FrameClassifier(NAME, {}, 5, frames, head, arguments).record()


def pixels(*head: Any) -> dict[str, Any]:
    return Segmenter(NAME, {}, 5, *head).record()


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "heads": (
        images(num_heads=6),
        images(num_heads=3),
        "arguments.num_heads is 3, and 6 in the file",
        "set model.backbone_args to the file's: {'num_heads': 6}",
    ),
    "heads left out": (
        images(num_heads=6),
        images(),
        "arguments.num_heads is left out, and 6 in the file",
        "'num_heads': 6",
    ),
    "heads given": (
        images(),
        images(num_heads=6),
        "arguments.num_heads is 6, and left out in the file",
        "the file's: {}",
    ),
    "another model": (
        images("deit_tiny_patch16_224"),
        images(),
        "name is vit_tiny_patch16_224, and deit_tiny_patch16_224 in the file",
        "set model.backbone to the file's: deit_tiny_patch16_224",
    ),
    "on the hub": (
        images("hf-hub:a/vit.one"),
        images("hf-hub:a/vit.two"),
        "name is hf-hub:a/vit.two, and hf-hub:a/vit.one in the file",
        "the file's: hf-hub:a/vit.one",
    ),
    "another kind": (frames(), images(), "kind is images, and frames in the file", "set model to the file's: frames"),
    "frames": (frames(), frames(16), "frames is 16, and 8 in the file", "set data.frames to the file's: 8"),
    "head of frames": (frames(), frames(head="mean"), "head.name is mean, and conv in the file", "model.head"),
    "kernel of a head": (
        frames(kernel_size=5),
        frames(),
        "head.arguments.kernel_size is left out, and 5",
        "'kernel_size': 5",
    ),
    "pooling of a transformer": (
        VideoTransformer("videomae", {"use_mean_pooling": False}, 5).record(),
        VideoTransformer("videomae", {}, 5).record(),
        "arguments.use_mean_pooling is left out, and False in the file",
        "model.backbone_args",
    ),
    "head of pixels": (pixels("mla"), pixels("upernet"), "head.kind is upernet, and mla in the file", "model.head"),
    "layers of a head": (
        pixels("linear", None, (5,)),
        pixels("linear"),
        "head.layers is left out, and [5] in the file",
        "model.head",
    ),
}


@pytest.mark.parametrize(("found", "mine", "told", "fix"), OTHER.values(), ids=OTHER)
def test_what_matters(found: dict[str, Any], mine: dict[str, Any], told: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_record(found, mine, "file", "a.safetensors: backbone")
    assert f"the backbone's {told}" in str(caught.value)
    assert fix in caught.value.fix
    assert caught.value.where.startswith("a.safetensors: backbone.")


def test_a_record_without_arguments_is_compared_by_name() -> None:
    check_record({"name": NAME}, images(num_heads=6), "file", "here")
    with pytest.raises(ConfigError, match="name is vit_tiny_patch16_224, and resnet18 in the file"):
        check_record({"name": "resnet18"}, images(), "file", "here")


def test_all_differences_are_listed() -> None:
    assert differences({"a": 1, "b": {"c": (1, 2), "d": 3}}, {"a": 2, "b": {"c": [1, 2], "e": 4}}) == {
        "a": (1, 2),
        "b.e": (None, 4),
        "b.d": (3, None),
    }
