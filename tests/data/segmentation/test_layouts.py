"""Layouts of data sets: which files belong together, and each way in which a tree can mislead."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scenery
import torch
from PIL import Image
from torchvision.datasets import Cityscapes, VOCSegmentation

from lightning_petl.data import (
    ADE20KData,
    CityscapesData,
    DataWarning,
    ImageLimits,
    PascalVOCData,
    SegmentationDataModule,
    SegmentationFolderData,
)
from lightning_petl.data.segmentation.palettes import voc_palette
from lightning_petl.errors import ConfigError, DataError

EASY = {"image_size": 16, "normalization": "inception", "eval_transform": "original"}


def masks(data: SegmentationDataModule, split: str) -> list[np.ndarray]:
    source = data.source(split)
    assert source is not None
    return [source.sample(index)[1] for index in range(len(source))]


def names(data: SegmentationDataModule, split: str) -> list[str]:
    source = data.source(split)
    assert source is not None
    return [source.name(index) for index in range(len(source))]


def test_ade20k(tmp_path: Path) -> None:
    data = ADE20KData(str(scenery.ade20k(tmp_path)))
    assert data.num_classes == len(data.classes) == len(set(data.classes)) == 150
    # The places of some classes in the benchmark's list.
    assert [data.classes[i] for i in (0, 2, 12, 20, 43, 149)] == ["wall", "sky", "person", "car", "signboard", "flag"]
    assert data.palette.shape == (150, 3)
    assert data.palette[[0, 12, 149]].tolist() == [[120, 120, 120], [150, 5, 61], [92, 0, 255]]
    assert [data.n_expected(split) for split in ("fit", "validate", "test", "predict")] == [6, 3, 3, 3]
    assert names(data, "train")[:2] == [f"images/training/ADE_train_0000000{n}.jpg" for n in (1, 2)]
    assert names(data, "test") == names(data, "val")
    for number, mask in enumerate(masks(data, "train"), start=1):
        stored = scenery.ids((20 + 3 * number, 50 - 4 * number), list(range(151)), number)
        np.testing.assert_array_equal(mask, np.where(stored == 0, 255, stored - 1))


def test_ade20k_layout_with_other_classes(tmp_path: Path) -> None:
    root = scenery.ade20k(tmp_path)
    (root / "classes.txt").write_text("".join(f"kind {i}\n" for i in range(151)))
    data = ADE20KData(str(root), class_names="classes.txt", reduce_zero_label=False, test=None)
    assert (data.num_classes, data.classes[150]) == (151, "kind 150")
    np.testing.assert_array_equal(masks(data, "val")[0], scenery.ids((23, 46), list(range(151)), 1))
    np.testing.assert_array_equal(data.palette, voc_palette(151))
    assert data.source("test") is None


def test_ade20k_without_reducing_names_file_ids_and_setting(tmp_path: Path) -> None:
    """150 classes and masks of 1 to 150: the commonest mistake with this data set."""
    data = ADE20KData(str(scenery.ade20k(tmp_path)), reduce_zero_label=False, batch_size=2, **EASY)
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader())
    text = str(caught.value)
    assert "ids without a class: 150; allowed are 0..149, 255" in text
    assert f"{tmp_path}/annotations/validation/ADE_val_00000001.png, sample 0 of val" in text
    assert "data.reduce_zero_label, now false" in text


def test_folders(tmp_path: Path) -> None:
    root = scenery.folders(tmp_path)
    scenery.picture(root / "more/deep/x.jpeg", (9, 9))
    data = SegmentationFolderData(str(root), class_names=("a", "b", "c", "d"), predict="more")
    assert data.classes == ("a", "b", "c", "d")
    assert data.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert data.predict_names == ("deep/x.jpeg",)
    for number, mask in enumerate(masks(data, "val")):
        np.testing.assert_array_equal(mask, scenery.ids((24, 32), [0, 1, 2, 3, 255], number))
    assert SegmentationFolderData(str(root), num_classes=4).classes == ("0", "1", "2", "3")
    red = SegmentationFolderData(str(root), num_classes=4, palette=[(9, 8, i) for i in range(4)])
    assert red.palette.tolist() == [[9, 8, i] for i in range(4)]


def test_images_alone_can_be_predicted(tmp_path: Path) -> None:
    scenery.picture(tmp_path / "photos/x.jpg", (9, 9))
    none = {"train": None, "val": None, "test": None, **EASY}
    for data in (
        SegmentationFolderData(str(tmp_path), num_classes=3, predict="photos", **none),
        ADE20KData(str(tmp_path), predict="photos/x.jpg", **none),
        PascalVOCData(str(tmp_path), predict="photos", **none),
        CityscapesData(str(tmp_path), predict="photos", **none),
    ):
        assert data.predict_names == ("x.jpg",)
        data.setup("predict")
        [(images, indices, sizes)] = data.predict_dataloader()
        assert (len(images), indices.tolist(), sizes) == (1, [0], [(9, 9)])
        with pytest.raises(DataError, match=r"no train split \[data.train\]"):
            data.setup("fit")
    with pytest.raises(DataError, match=r"no split has a folder \[data.train\] - set .* or data.predict"):
        SegmentationFolderData(str(tmp_path), num_classes=3, **none)


def test_names_with_a_suffix(tmp_path: Path) -> None:
    for name in ("a", "sub/b"):
        scenery.picture(tmp_path / f"i/{name}.jpg", (8, 8))
        scenery.write(tmp_path / f"m/{name}_mask.png", scenery.ids((8, 8), [0, 1]))
    folders = {"train": ("i", "m"), "val": None, "num_classes": 2, "mask_suffix": "_mask"}
    data = SegmentationFolderData(str(tmp_path), **folders)
    assert names(data, "train") == ["i/a.jpg", "i/sub/b.jpg"]
    shutil.move(tmp_path / "m/a_mask.png", tmp_path / "m/a.png")
    with pytest.raises(DataError, match=r"1 images without a mask: .*i/a.jpg; 1 masks without an image: .*m/a.png"):
        SegmentationFolderData(str(tmp_path), **folders)


def lose_masks(root: Path) -> None:
    for name in ("1", "3"):
        (root / f"masks/train/{name}.png").unlink()
    scenery.write(root / "masks/train/7.png", scenery.ids((8, 8), [0]))


def double_image(root: Path) -> None:
    scenery.picture(root / "images/train/2.jpg", (24, 32))


def lose_folder(root: Path) -> None:
    shutil.rmtree(root / "masks/val")


def empty_folder(root: Path) -> None:
    shutil.rmtree(root / "images/val")
    (root / "images/val").mkdir()


def shared_image(root: Path) -> None:
    (root / "images/val/0.png").unlink()
    (root / "images/val/0.png").symlink_to(root / "images/train/0.png")


@pytest.mark.parametrize(
    ("spoil", "field", "message"),
    [
        (
            lose_masks,
            "data.train",
            "2 images without a mask: .*train/1.png, .*train/3.png; 1 masks without an image: .*7.png",
        ),
        (double_image, "data.train", "train/2.jpg and .*train/2.png have the same name"),
        (lose_folder, "data.val", "masks/val does not exist"),
        (empty_folder, "data.val", "images/val has no image"),
        (shared_image, "data.val", "1 images are in the training split too: .*train/0.png"),
    ],
)
def test_spoilt_folders(tmp_path: Path, spoil: Callable[[Path], None], field: str, message: str) -> None:
    root = scenery.folders(tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        SegmentationFolderData(str(root), num_classes=4)
    assert caught.value.where == field


def test_masks_of_another_kind_are_refused_with_the_reason(tmp_path: Path) -> None:
    root = scenery.folders(tmp_path)
    with Image.open(root / "masks/val/0.png") as file:
        file.save(root / "masks/val/0.jpg")
    (root / "masks/val/0.png").unlink()
    data = SegmentationFolderData(str(root), num_classes=4, **EASY)
    with pytest.raises(DataError, match=r"JPEG file, whose compression may change ids .*val/0.jpg, sample 0 of val"):
        list(data.val_dataloader())


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({}, ConfigError, "num_classes"),
        ({"num_classes": 0}, ConfigError, "class_names"),
        ({"num_classes": 3, "class_names": ("a", "b")}, ConfigError, "num_classes"),
        ({"class_names": ("a", "a")}, ConfigError, "class_names"),
        ({"class_names": "gone.txt"}, DataError, "class_names"),
        ({"num_classes": 4, "palette": [(1, 2, 3)]}, ConfigError, "palette"),
        ({"num_classes": 1, "palette": [(1, 2, 300)]}, ConfigError, "palette"),
        ({"num_classes": 4, "train": None, "val": None}, DataError, "train"),
        ({"num_classes": 4, "scale": (2.0, 0.5)}, ConfigError, "scale"),
        ({"num_classes": 4, "flip": 1.5}, ConfigError, "flip"),
        ({"num_classes": 4, "cat_max_ratio": 0.0}, ConfigError, "cat_max_ratio"),
        ({"num_classes": 4, "short_side": 0}, ConfigError, "short_side"),
        ({"num_classes": 4, "eval_transform": "crop"}, ConfigError, "eval_transform"),
        ({"num_classes": 4, "batch_size": 0}, ConfigError, "batch_size"),
        ({"num_classes": 4, "root": "gone"}, DataError, "root"),
    ],
)
def test_options(tmp_path: Path, options: dict[str, object], error: type[Exception], field: str) -> None:
    root = scenery.folders(tmp_path)
    with pytest.raises(error, match=rf"\[data.{field}\]"):
        SegmentationFolderData(**{"root": str(root), **options})  # type: ignore[arg-type]


def test_short_side_below_the_crop(tmp_path: Path) -> None:
    data = SegmentationFolderData(
        str(scenery.folders(tmp_path)), num_classes=4, image_size=16, short_side=8, normalization="imagenet"
    )
    with pytest.raises(ConfigError, match="short_side is 8, and the crop 16"):
        data.setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_sizes_are_compared(tmp_path: Path, workers: int, loader: str) -> None:
    root = scenery.folders(tmp_path)
    split = loader[: loader.index("_")]
    scenery.write(root / f"masks/{split}/2.png", scenery.ids((32, 24), [0]))
    data = SegmentationFolderData(str(root), num_classes=4, num_workers=workers, batch_size=2, **EASY)
    with pytest.raises(DataError) as caught:
        list(getattr(data, loader)())
    assert type(caught.value) is DataError
    assert "mask is 24x32 pixels and its image 32x24 (it is the image turned" in str(caught.value)
    assert f"masks/{split}/2.png" in caught.value.where
    assert f"images/{split}/2.png, sample 2 of {split}" in caught.value.where


def test_exif_orientation_turns_image_and_mask(tmp_path: Path) -> None:
    """The image stored turned with an orientation, the mask upright without one, and both turned."""
    upright, drawn = scenery.ids((6, 9), list(range(256)), 1), scenery.ids((6, 9), [0, 1, 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif}
    scenery.write(tmp_path / "i/a.png", np.ascontiguousarray(np.rot90(np.dstack([upright] * 3))), **turned)
    scenery.write(tmp_path / "i/b.png", np.ascontiguousarray(np.rot90(np.dstack([upright] * 3))), **turned)
    scenery.write(tmp_path / "m/a.png", drawn)
    scenery.write(tmp_path / "m/b.png", np.ascontiguousarray(np.rot90(drawn)), **turned)
    options = {"train": None, "val": ("i", "m"), "num_classes": 3}
    source = SegmentationFolderData(str(tmp_path), **options).source("val")
    assert source is not None
    for index in range(2):
        image, mask = source.sample(index)
        np.testing.assert_array_equal(np.asarray(image)[..., 0], upright)
        np.testing.assert_array_equal(mask, drawn)
    scenery.write(tmp_path / "m/a.png", np.ascontiguousarray(np.rot90(drawn)))
    with pytest.raises(DataError, match="an EXIF orientation is applied to each"):
        source.sample(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_name_file_and_index(tmp_path: Path, workers: int) -> None:
    root = scenery.folders(tmp_path)
    path = root / "images/val/3.png"
    path.write_bytes(path.read_bytes()[:-500])
    data = SegmentationFolderData(str(root), num_classes=4, num_workers=workers, batch_size=1, **EASY)
    with pytest.raises(DataError, match="image cannot be decoded") as caught:
        list(data.val_dataloader())
    assert caught.value.where == f"{path}, sample 3 of val"


def test_limits_hold_for_images_and_masks(tmp_path: Path) -> None:
    data = SegmentationFolderData(str(scenery.folders(tmp_path)), num_classes=4, limits=ImageLimits(max_pixels=100))
    source = data.source("val")
    assert source is not None
    with pytest.raises(DataError, match=r"max_pixels=100 .*images/val/0.png"):
        source.sample(0)


def test_frames_are_counted_once(tmp_path: Path) -> None:
    root = scenery.folders(tmp_path)
    frames = [Image.fromarray(scenery.ids((24, 32), list(range(256)), seed)) for seed in range(3)]
    frames[0].save(root / "images/val/1.png", save_all=True, append_images=frames[1:])
    data = SegmentationFolderData(str(root), num_classes=4, **EASY)
    list(data.val_dataloader())
    with pytest.warns(DataWarning, match="1 images of val have several frames.*images/val/1.png"):
        data.teardown("validate")
    data.teardown("validate")


def test_pascal_voc(tmp_path: Path) -> None:
    root = scenery.voc(tmp_path)
    data = PascalVOCData(str(root))
    assert data.num_classes == 21
    assert names(data, "train") == [f"VOCdevkit/VOC2012/JPEGImages/2007_0000{n}.jpg" for n in (32, 39)]
    assert names(data, "predict") == names(data, "test") == names(data, "val")
    for number, mask in enumerate(masks(data, "train")):
        np.testing.assert_array_equal(mask, scenery.ids((24, 30), [*range(21), 255], number))
    other = VOCSegmentation(str(root), image_set="val")
    np.testing.assert_array_equal(masks(data, "val")[0], np.asarray(other[0][1]))
    # The colours of aeroplane, bicycle, person and tvmonitor in the masks of the development kit.
    assert data.palette[[1, 2, 15, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128]]


def test_voc_palette_is_the_development_kits() -> None:
    """By the loop that the kit's colour map function is, over all 256 colours."""
    expected = []
    for number in range(256):
        rest, color = number, [0, 0, 0]
        for shift in range(7, -1, -1):
            for channel in range(3):
                color[channel] |= (rest >> channel & 1) << shift
            rest >>= 3
        expected.append(color)
    assert voc_palette(256).tolist() == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2007_999999", "2 files are missing: .*2007_999999.jpg, .*2007_999999.png"),
        ("../../../../outside", "outside.jpg lead out of"),
        ("/etc/passwd", "passwd.jpg lead out of"),
        ("\ufeff2007_000032", "2 files are missing"),
    ],
)
def test_voc_lists(tmp_path: Path, line: str, message: str) -> None:
    root = scenery.voc(tmp_path / "data")
    scenery.picture(tmp_path / "outside.jpg", (24, 30))
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        PascalVOCData(str(root))
    assert caught.value.where == "data.val"


def test_voc_lists_that_repeat_or_overlap(tmp_path: Path) -> None:
    root = scenery.voc(tmp_path)
    file = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    file.write_text("2007_000033\n2007_000033\n")
    with pytest.warns(DataWarning, match="data.val: 1 images are listed more than once"):
        assert PascalVOCData(str(root), test=None).n_expected("val") == 2
    file.write_text("2007_000033\r\n2007_000039\r\n")
    with pytest.raises(DataError, match=r"1 images are in the training split too: .*2007_000039.jpg \[data.val\]"):
        PascalVOCData(str(root), test=None)


def test_voc_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no Pascal VOC 2012 \[data.root\] - give the folder that holds VOCdevk"):
        PascalVOCData(str(tmp_path))
    root = scenery.voc(tmp_path)
    with pytest.raises(DataError, match=r"trainval.txt is missing"):
        PascalVOCData(str(root), train="trainval")
    with pytest.raises(ConfigError, match=r"'2013' for argument year.*\[data.train\]"):
        PascalVOCData(str(root), year="2013")
    with pytest.raises(ConfigError, match=r"'test' for argument image_set.*\[data.test\]"):
        PascalVOCData(str(root), test="test")


def test_cityscapes(tmp_path: Path) -> None:
    root = scenery.cityscapes(tmp_path)
    (root / "leftImg8bit/train/aachen/.DS_Store").write_text("")
    data = CityscapesData(str(root))
    assert data.num_classes == 19
    assert (data.classes[0], data.classes[18]) == ("road", "bicycle")
    assert data.palette[[0, 18]].tolist() == [[128, 64, 128], [119, 11, 32]]
    stem = "leftImg8bit/train/{0}/{0}_{1:06d}_000019_leftImg8bit.png"
    assert names(data, "train") == [stem.format(*place) for place in (("aachen", 0), ("aachen", 1), ("bochum", 0))]
    train_id = {c.id: c.train_id for c in Cityscapes.classes}
    for number, mask in enumerate(masks(data, "train")[:2]):
        stored = scenery.ids((16, 32), list(range(34)), number)
        np.testing.assert_array_equal(mask, np.vectorize(train_id.get)(stored))
    assert set(np.unique(masks(data, "val")[0])) <= {*range(19), 255}


def test_cityscapes_with_faults(tmp_path: Path) -> None:
    root = scenery.cityscapes(tmp_path)
    (root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(
        DataError, match=r"1 files are missing: .*lindau_000000_000019_gtFine_labelIds.png \[data.val\]"
    ):
        CityscapesData(str(root))
    shutil.rmtree(root / "gtFine/val")
    (root / "leftImg8bit_trainvaltest.zip").write_bytes(b"")
    (root / "gtFine_trainvaltest.zip").write_bytes(b"")  # torchvision would unpack these
    with pytest.raises(DataError, match=r"gtFine/val does not exist \[data.val\]"):
        CityscapesData(str(root))


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    data = SegmentationFolderData(str(scenery.folders(tmp_path)), num_classes=4, **EASY)
    data.setup("fit")
    with pytest.raises(DataError, match=r"no test split \[data.test\]"):
        data.setup("test")
    assert torch.is_tensor(next(iter(data.train_dataloader()))[0])
