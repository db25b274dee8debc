"""Class-folder trees: what is scanned, and each way in which a tree can mislead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import photo

from lightning_petl.data import DataWarning, ImageFolderData, ImageLimits, InputConfig
from lightning_petl.errors import DataError


def test_classes_and_labels_follow_the_sorted_names(tree: Path) -> None:
    data = ImageFolderData(str(tree))
    assert data.classes == ("bee", "cat", "dog")
    assert data.num_classes == 3
    train = data.source("train")
    assert train is not None
    assert train.labels == [0] * 3 + [1] * 4 + [2] * 5
    assert [train.name(i) for i in (0, 3, 11)] == ["bee/0.png", "cat/0.png", "dog/4.png"]
    assert [data.n_expected(stage) for stage in ("fit", "train", "validate", "val", "test", "predict")] == [
        12,
        12,
        6,
        6,
        6,
        6,
    ]


def test_nested_folders_and_any_spelling_of_a_suffix(tree: Path) -> None:
    (tree / "train/bee/deep/er").mkdir(parents=True)
    photo().save(tree / "train/bee/deep/er/x.JPEG")
    (tree / "train/.cache").mkdir()
    (tree / "train/bee/.hidden.png").write_bytes(b"")
    source = ImageFolderData(str(tree)).source("train")
    assert source is not None
    assert [source.name(i) for i in range(4)] == ["bee/0.png", "bee/1.png", "bee/2.png", "bee/deep/er/x.JPEG"]
    assert len(source) == 13


def remove_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def train_is_a_file(root: Path) -> None:
    remove_train(root)
    (root / "train").write_text("")


def no_classes(root: Path) -> None:
    remove_train(root)
    (root / "train").mkdir()
    photo().save(root / "train/loose.png")


def empty_classes(root: Path) -> None:
    for name in ("ant", "emu"):
        for split in ("train", "val", "test"):
            (root / split / name).mkdir()


def case_twins(root: Path) -> None:
    (root / "train/Cat").mkdir()


def renamed_in_val(root: Path) -> None:
    (root / "val/cat").rename(root / "val/cow")


def lacking_in_test(root: Path) -> None:
    shutil.rmtree(root / "test/bee")


def link_loop(root: Path) -> None:
    (root / "train/bee/again").symlink_to(root / "train/bee", target_is_directory=True)


def val_is_train(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "val").symlink_to(root / "train", target_is_directory=True)


@pytest.mark.parametrize(
    ("spoil", "field", "message"),
    [
        (remove_train, "data.train", "train does not exist"),
        (train_is_a_file, "data.train", "train is not a folder"),
        (no_classes, "data.train", "no class folders"),
        (empty_classes, "data.train", "2 class folders of .*train have no image: ant, emu"),
        (case_twins, "data.train", "'Cat' and 'cat'"),
        (renamed_in_val, "data.val", "only in .*train: cat; only in .*val: cow"),
        (lacking_in_test, "data.test", "only in .*train: bee"),
        (link_loop, "again", "already read"),
        (val_is_train, "data.val", "is the training folder"),
    ],
)
def test_spoilt_trees(tree: Path, spoil: Callable[[Path], None], field: str, message: str) -> None:
    spoil(tree)
    with pytest.raises(DataError, match=message) as caught:
        ImageFolderData(str(tree))
    assert caught.value.where.endswith(field)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_as_a_user(tree: Path) -> None:
    (tree / "train/cat").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        ImageFolderData(str(tree))


def test_unreadable_folder_is_no_empty_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("cat/deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[arg-type]

    (tree / "train/cat/deep").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Permission denied \[.*cat/deep\]"):
        ImageFolderData(str(tree))


def test_files_left_out_are_counted(tree: Path) -> None:
    (tree / "train/cat/anim.gif").write_bytes(b"GIF89a")
    (tree / "train/dog/Thumbs.db").write_bytes(b"")
    photo().save(tree / "train/loose.png")
    with pytest.warns(DataWarning, match="3 files of .*train are left out.*anim.gif.*Thumbs.db.*loose.png"):
        assert ImageFolderData(str(tree)).n_expected("train") == 12


def test_a_class_of_gifs_is_empty(tree: Path) -> None:
    for path in (tree / "train/cat").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.warns(DataWarning, match="4 files"), pytest.raises(DataError, match="have no image: cat"):
        ImageFolderData(str(tree))


def test_splits_can_be_left_out(tree: Path, config: InputConfig) -> None:
    data = ImageFolderData(str(tree), train=None, val=None)
    data.input_config = config
    assert data.classes == ("bee", "cat", "dog")
    data.setup("test")
    with pytest.raises(DataError, match=r"no val split \[data.val\]"):
        data.val_dataloader()
    with pytest.raises(DataError, match=r"no train split \[data.train\]"):
        data.setup("fit")
    for predict in (None, "train/cat"):
        with pytest.raises(DataError, match=r"no split has a folder, and the class folders .*\[data.train\] - set"):
            ImageFolderData(str(tree), train=None, val=None, test=None, predict=predict)


def test_prediction_of_any_tree(tree: Path, config: InputConfig) -> None:
    (tree / "new/sub").mkdir(parents=True)
    photo(1).save(tree / "new/sub/b.png")
    photo(2).save(tree / "new/z.png")
    data = ImageFolderData(str(tree), predict="new", image_size=8)
    data.input_config = config
    assert data.predict_names == ("sub/b.png", "z.png")
    [(images, indices)] = data.predict_dataloader()
    assert images.shape == (2, 3, 8, 8)
    assert indices.tolist() == [0, 1]


def test_prediction_of_one_image(tree: Path, config: InputConfig) -> None:
    (tree / "new/sub").mkdir(parents=True)
    photo(1).save(tree / "new/sub/b.PNG", "PNG")
    photo(2).save(tree / "new/sub/z.png")
    for given in ("new/sub/b.PNG", str(tree / "new/sub/b.PNG")):
        data = ImageFolderData(str(tree), predict=given, image_size=8)
        data.input_config = config
        assert data.predict_names == ("b.PNG",)
        [(images, indices)] = data.predict_dataloader()
        assert images.shape == (1, 3, 8, 8)
        assert indices.tolist() == [0]


@pytest.mark.parametrize("name", ["new.txt", "new.csv", "new", "video.mp4"])
def test_prediction_of_other_files(tree: Path, name: str) -> None:
    (tree / name).write_text("train/bee/0.png\n")
    told = r"is neither a folder nor an image by its name \[data.predict\] - .*one image.*\.png.*no list of files"
    with pytest.raises(DataError, match=rf"^{tree / name} {told}") as caught:
        ImageFolderData(str(tree), predict=name)
    assert "\n" not in str(caught.value)


def test_prediction_without_images_or_folder(tree: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist \[data.predict\]"):
        ImageFolderData(str(tree), predict="new")
    (tree / "new").mkdir()
    with pytest.raises(DataError, match=r"has no image \[data.predict\]"):
        ImageFolderData(str(tree), predict="new")
    with pytest.raises(DataError, match=r"no predict split \[data.predict\]"):
        ImageFolderData(str(tree), test=None, normalization="imagenet", image_size=32).setup("predict")


def test_limits_reach_the_decoder(tree: Path) -> None:
    source = ImageFolderData(str(tree), limits=ImageLimits(max_pixels=10)).source("val")
    assert source is not None
    with pytest.raises(DataError, match=r"max_pixels=10 \[.*val/bee/0.png, sample 0 of val\]"):
        source.image(0)
