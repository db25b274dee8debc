"""Images in class folders, one tree a split."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import class_names, require_same_classes, scan_classes, to_predict
from lightning_petl.data.image_module import ImageDataModule, ImageOptions
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.sources import FileSource
from lightning_petl.errors import DataError


class ImageFolderData(ImageDataModule):
    """Images in folders ``<root>/<split>/<class name>/``; labels count the sorted class names.

    Everything but the pixels is checked here: missing and empty folders, classes that differ between splits.

    Args:
        root: Folder of the data set.
        train: Folder of the training split below ``root``, or null.
        val: Folder of the validation split, or null if there is none.
        test: Folder of the test split, or null.
        predict: Folder of images to predict, any tree without class folders, or one image, below ``root`` unless
            absolute; null predicts the test split.
        limits: Image sizes to refuse before decoding.
        **options: See `ImageOptions`.

    Raises:
        DataError: A folder is missing, empty or unreadable, class folders are empty, or splits differ in their classes.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "test",
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        trees = {
            split: base / name for split, name in (("train", train), ("val", val), ("test", test)) if name is not None
        }
        self._classes = _shared_classes(trees)
        self._sources = {
            split: FileSource(split, scan_classes(tree, self._classes, f"data.{split}"), tree, limits)
            for split, tree in trees.items()
        }
        if predict is not None:
            self._sources["predict"] = FileSource("predict", *to_predict(base / predict), limits)
        elif "test" in self._sources:
            self._sources["predict"] = self._sources["test"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return self._classes

    def source(self, split: str) -> FileSource | None:
        """The files of a split."""
        return self._sources.get(split)


def _shared_classes(trees: dict[str, Path]) -> tuple[str, ...]:
    if not trees:
        raise DataError(
            "no split has a folder, and the class folders of a split name the classes",
            where="data.train",
            fix="set data.train, data.val or data.test, in prediction, too",
        )
    found = {split: class_names(tree, f"data.{split}") for split, tree in trees.items()}
    first, *others = trees
    for split in others:
        require_same_classes(trees[first], found[first], trees[split], found[split], f"data.{split}")
        if first == "train" and trees[split].samefile(trees[first]):
            raise DataError(
                f"the {split} split is the training folder {trees[first]}",
                where=f"data.{split}",
                fix="give another folder: scores on training images mean nothing",
            )
    return found[first]
