"""A task refuses files of another backbone with the same tensors, and tells where its inputs are made otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clips
import pytest
import pytorch_lightning as pl
import segmenters
import torch

from lightning_petl import ConfigError, RepAdapter, merge, save_adapter
from lightning_petl.data import DigitsData, SegmentationFolderData, VideoListData
from lightning_petl.data.notices import DataWarning
from lightning_petl.store import save_merged
from lightning_petl.tasks import ClassificationTask, PETLTask
from lightning_petl.tasks import checkpoint as checkpoints
from lightning_petl.tensorfile import read_header

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CLASSES = tuple("56789")


def images(**changes: Any) -> ClassificationTask:
    torch.manual_seed(7)
    settings: dict[str, Any] = {"backbone_args": VIT, "pretrained": False, "classes": CLASSES, "warmup_epochs": 0}
    return ClassificationTask("vit_tiny_patch16_224", RepAdapter(hidden_dim=4, dropout=0.0), **(settings | changes))


def save(task: PETLTask, folder: Path, form: str) -> str:
    """An adapter file of a task, or the merged file."""
    path = folder / "adapter.safetensors"
    save_adapter(task.backbone, path, task.stored, task.task_record(), task.architecture.record())
    if form == "merged":
        certificate = merge(task.backbone)
        save_merged(task.backbone, folder / "merged.safetensors", read_header(path), certificate.created)
    return str(folder / f"{form}.safetensors")


HUGGING = clips.TRANSFORMERS["videomae"]
VIT_OF_PIXELS = segmenters.BACKBONES["vit"]["backbone_args"]
OTHER: dict[str, tuple[Callable[..., PETLTask], dict[str, Any], str]] = {
    "attention heads": (images, {"backbone_args": VIT | {"num_heads": 4}}, "arguments.num_heads"),
    "a mirrored activation": (images, {"backbone_args": VIT | {"act_layer": "relu"}}, "arguments.act_layer"),
    "heads of VideoMAE": (
        lambda **changes: clips.new_task("videomae", **changes),
        {"backbone_args": HUGGING | {"num_attention_heads": 4}},
        "arguments.num_attention_heads",
    ),
    "frames of VideoMAE": (lambda **changes: clips.new_task("videomae", **changes), {"frames": 8}, "frames"),
    "head over frames": (lambda **changes: clips.new_task(**changes), {"head": "conv"}, "head.name"),
    "layers of a decode head": (
        lambda **changes: segmenters.new_task(**changes),
        {"layers": [2], "method": RepAdapter(hidden_dim=4, dropout=0.0)},
        "head.layers",
    ),
    "attention heads under a decode head": (
        lambda **changes: segmenters.new_task(**changes),
        {"backbone_args": VIT_OF_PIXELS | {"num_heads": 4}},
        "arguments.num_heads",
    ),
}


@pytest.mark.parametrize("form", ["adapter", "merged"])
@pytest.mark.parametrize(("build", "change", "field"), OTHER.values(), ids=OTHER)
def test_another_backbone_with_the_same_tensors_is_refused(
    build: Callable[..., PETLTask], change: dict[str, Any], field: str, form: str, tmp_path: Path
) -> None:
    path = save(build(), tmp_path, form)
    build(weights=path)
    with pytest.raises(ConfigError) as caught:
        build(weights=path, **change)
    assert caught.value.where == f"{path}: backbone.{field}"
    assert "in the file" in caught.value.what


def test_a_checkpoint_of_it_too() -> None:
    found = {checkpoints.RECORD: checkpoints.record(images()), "state_dict": images().state_dict()}
    with pytest.raises(ConfigError, match=r"arguments\.num_heads is 4, and 2 in the checkpoint"):
        checkpoints.check(found, images(backbone_args=VIT | {"num_heads": 4}))


def test_what_acts_in_training_alone_is_free(tmp_path: Path) -> None:
    path = save(images(backbone_args=VIT | {"drop_path_rate": 0.1}), tmp_path, "adapter")
    images(weights=path, backbone_args=VIT | {"proj_drop_rate": 0.3, "dynamic_img_size": True})
    path = save(segmenters.new_task(head_dropout=0.1), tmp_path, "merged")
    segmenters.new_task(head_dropout=0.0, weights=path)


def test_a_file_that_does_not_say_how_its_backbone_was_built(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(images().backbone, path, ("head",))
    with pytest.warns(DataWarning, match="does not record how its backbone was built: its weights alone"):
        images(weights=str(path))


# -- inputs ------------------------------------------------------------------------------------------------------------


def run(folder: Path) -> pl.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", limit_test_batches=1, enable_checkpointing=False, **limits, **quiet
    )


def told(task: PETLTask, folder: Path, data: pl.LightningDataModule, ckpt_path: Path | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(folder).test(task, data, ckpt_path=ckpt_path, verbose=False)
    return [str(warning.message) for warning in caught if issubclass(warning.category, DataWarning)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter file and a checkpoint, of digits in another normalisation than the backbone's."""
    folder, task = tmp_path_factory.mktemp("trained"), images()
    trainer = run(folder)
    trainer.fit(task, DigitsData(normalization="imagenet"))
    trainer.save_checkpoint(folder / "some.ckpt")
    save(task, folder, "adapter")
    return folder


def test_inputs_made_otherwise_are_told(trained: Path, tmp_path: Path) -> None:
    path = str(trained / "adapter.safetensors")
    assert read_header(path)["task"]["input"]["mean"] == [0.485, 0.456, 0.406]  # type: ignore[index, call-overload]
    assert told(images(weights=path), tmp_path, DigitsData(normalization="imagenet")) == []
    mean, std, resampling = told(images(weights=path), tmp_path, DigitsData(interpolation="bilinear"))
    assert mean.startswith("mean of the model's input is [0.5, 0.5, 0.5], and was [0.485, 0.456, 0.406] when ")
    assert mean.endswith(f"{path} was trained")
    assert std.startswith("std of")
    assert resampling.startswith("interpolation of the model's input is bilinear, and was bicubic")


def test_a_checkpoint_tells_them_too(trained: Path, tmp_path: Path) -> None:
    path = trained / "some.ckpt"
    assert told(images(), tmp_path, DigitsData(normalization="imagenet"), path) == []
    mean, std = told(images(), tmp_path, DigitsData(), path)
    assert mean.endswith("and was [0.485, 0.456, 0.406] when the checkpoint was trained")
    assert std.startswith("std of")


def test_the_frames_that_are_taken_are_part_of_a_videos_input(tmp_path: Path) -> None:
    (tmp_path / "one.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text("one.mp4 0\n")
    lists: dict[str, Any] = {"train_list": str(tmp_path / "list.txt"), "root": str(tmp_path)}
    settings: dict[str, Any] = {"normalization": "imagenet", "image_size": 32, "frames": 8}
    recorded = VideoListData(**lists, **settings, rate=2).inputs_record()
    assert recorded["sampling"] == {
        "kind": "DenseSampling",
        "frames": 8,
        "short": "repeat_last",
        "rate": 2,
        "fps": None,
    }
    assert recorded["input"]["image_size"] == [32, 32]  # type: ignore[index, call-overload]


def test_what_ids_of_masks_mean_is_told(tmp_path: Path) -> None:
    segmenters.write_scenes(tmp_path / "data")
    scenes: dict[str, Any] = {
        "root": str(tmp_path / "data"),
        "train": ["images/train", "masks/train"],
        "val": None,
        "test": ["images/test", "masks/test"],
        "class_names": tuple("abcd"),
        "image_size": 32,
        "short_side": 32,
    }
    task = segmenters.new_task(classes=tuple("abcd"), num_classes=None)
    run(tmp_path).fit(task, SegmentationFolderData(**scenes))
    path = save(task, tmp_path, "adapter")
    served = segmenters.new_task(classes=tuple("abcd"), num_classes=None, weights=path)
    assert [text for text in told(served, tmp_path, SegmentationFolderData(**scenes)) if "trained" in text] == []
    other = SegmentationFolderData(**scenes, reduce_zero_label=True)
    texts = [text for text in told(served, tmp_path, other) if "trained" in text]
    assert texts == [f"reduce_zero_label of the masks is True, and was False when {path} was trained"]
