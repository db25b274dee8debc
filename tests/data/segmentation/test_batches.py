"""What the loaders of segmentation data give, for any number of workers and processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scenery
import torch
from torch import Tensor

from lightning_petl.data import ADE20KData, InputConfig, SegmentationFolderData
from lightning_petl.data.samplers import EpochSampler
from lightning_petl.errors import ConfigError, DataError

BACKBONE = InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (16, 16), "bicubic", 0.9)


def ade(root: Path, **options: object) -> ADE20KData:
    data = ADE20KData(str(root), batch_size=2, **options)  # type: ignore[arg-type]
    data.input_config = BACKBONE
    return data


def epoch(data: ADE20KData, number: int) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(number)
    return list(loader)


def test_training_batches(tmp_path: Path) -> None:
    data = ade(scenery.ade20k(tmp_path))
    data.setup("fit")
    batches = epoch(data, 0)
    assert [(tuple(images.shape), tuple(masks.shape)) for images, masks in batches] == [
        ((2, 3, 16, 16), (2, 16, 16))
    ] * 3
    for images, masks in batches:
        assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
        assert set(masks.unique().tolist()) <= {*range(150), 255}
    assert data.ignore_index == 255


def test_evaluation_batches_have_masks_of_the_files_size(tmp_path: Path) -> None:
    root = scenery.ade20k(tmp_path)
    for loader in (ade(root).val_dataloader(), ade(root).test_dataloader()):
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [2, 1]
        sizes = [tuple(mask.shape) for _, masks in batches for mask in masks]
        assert sizes == [(23, 46), (26, 42), (29, 38)]
        shapes = [tuple(image.shape) for images, _ in batches for image in images]
        assert shapes == [(3, 16, 32), (3, 16, 26), (3, 16, 21)]
        stored = scenery.ids((23, 46), list(range(151)), 1)
        np.testing.assert_array_equal(batches[0][1][0].numpy(), np.where(stored == 0, 255, stored - 1))


def test_prediction_needs_no_masks(tmp_path: Path) -> None:
    root = scenery.ade20k(tmp_path)
    scenery.picture(root / "new/b.jpg", (20, 30))
    scenery.picture(root / "new/a/c.png", (40, 25))
    data = ade(root, predict="new")
    assert data.predict_names == ("a/c.png", "b.jpg")
    [(images, indices, sizes)] = list(data.predict_dataloader())
    assert [tuple(image.shape) for image in images] == [(3, 26, 16), (3, 16, 24)]
    assert indices.tolist() == [0, 1]
    assert sizes == [(40, 25), (20, 30)]


def test_prediction_of_one_image(tmp_path: Path) -> None:
    root = scenery.ade20k(tmp_path)
    scenery.picture(root / "new/b.jpg", (20, 30))
    scenery.picture(root / "new/c.jpg", (20, 30))
    data = ade(root, predict="new/b.jpg")
    assert data.predict_names == ("b.jpg",)
    [(images, indices, sizes)] = list(data.predict_dataloader())
    assert [tuple(image.shape) for image in images] == [(3, 16, 24)]
    assert (indices.tolist(), sizes) == ([0], [(20, 30)])
    (root / "new/list.txt").write_text("b.jpg\n")
    with pytest.raises(DataError, match=r"list.txt is neither a folder nor an image by its name \[data.predict\]"):
        ade(root, predict="new/list.txt")


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "predict_dataloader"])
def test_workers_change_nothing(tmp_path: Path, loader: str) -> None:
    root = scenery.ade20k(tmp_path)
    kept = []
    for workers in (0, 2):
        flat: list[Tensor] = []
        for images, other, *_ in getattr(ade(root, num_workers=workers), loader)():
            flat += [*images, *other]
        kept.append(flat)
    assert len(kept[0]) == len(kept[1]) > 4
    assert all(torch.equal(one, two) for one, two in zip(*kept, strict=True))


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    root = scenery.ade20k(tmp_path)

    def content(data: ADE20KData, number: int) -> list[float]:
        return sorted(float(image.sum()) for images, _ in epoch(data, number) for image in images)

    first, again, next_epoch = (content(ade(root), number) for number in (0, 0, 1))
    assert first == again
    assert not set(first) & set(next_epoch)
    assert not set(first) & set(content(ade(root, seed=1), 0))


def test_the_number_of_other_draws_changes_nothing(tmp_path: Path) -> None:
    """A sample's crop depends on seed, epoch and index, not on what was read before."""
    dataset = ade(scenery.ade20k(tmp_path)).train_dataset()
    alone = dataset[3]
    torch.rand(7)
    _ = dataset[0], dataset[5]
    assert all(torch.equal(one, two) for one, two in zip(alone, dataset[3], strict=True))


def test_crops_without_any_class(tmp_path: Path) -> None:
    root = tmp_path
    for number in range(2):
        scenery.picture(root / f"images/train/{number}.png", (24, 24), number)
        scenery.write(root / f"masks/train/{number}.png", np.full((24, 24), 255, dtype=np.uint8))
    data = SegmentationFolderData(str(root), val=None, num_classes=3, batch_size=2)
    data.input_config = BACKBONE
    [(_, masks)] = list(data.train_dataloader())
    assert (masks == 255).all()


def test_input_settings(tmp_path: Path) -> None:
    data = ade(scenery.ade20k(tmp_path))
    assert data.input_config == InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (16, 16), "bilinear", 1.0, "short")
    data = ade(tmp_path, image_size=24, short_side=30, normalization="imagenet", eval_transform="original")
    assert data.input_config == InputConfig(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (24, 24), "bilinear", 0.8, "original"
    )
    unknown = ADE20KData(str(tmp_path), image_size=24)
    with pytest.raises(ConfigError, match="normalization is left to the backbone"):
        unknown.setup("fit")
