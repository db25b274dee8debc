"""Images named by list files."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder, to_predict
from lightning_petl.data.image_module import ImageDataModule, ImageOptions
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.list_file import checked_classes, declared_classes, read_list, require_disjoint
from lightning_petl.data.sources import FileSource, Sample


class ImageListData(ImageDataModule):
    """Images named by list files, one ``path label`` a line with paths relative to ``root``: the layout of VTAB-1k.

    Everything but the pixels is checked here: lines, labels, files, overlaps.

    Args:
        root: Folder of the data set. Lists are relative to it too, unless absolute.
        train_list: List of the training split, or null if classes are named or counted.
        val_list: List of the validation split, or null.
        test_list: List of the test split, or null.
        class_names: Name of each label, in order; null names them "0", "1" and so on.
        num_classes: Number of classes; null takes it from ``class_names``, else from the training labels, which then
            have no gaps.
        allow_outside_root: Accept paths that lead out of ``root``, by ``..``, as absolute paths or through links.
        predict: Folder of images to predict, any tree, or one image, relative to ``root`` unless absolute; null
            predicts the test split.
        limits: Image sizes to refuse before decoding.
        **options: See `ImageOptions`.

    Raises:
        DataError: A list or an image file is missing, lines are bad, or training shares files with another split.
        ConfigError: An option is out of its range, or class names and their number disagree.
    """

    split_suffix = "_list"

    def __init__(
        self,
        root: str,
        train_list: str | None,
        val_list: str | None = None,
        test_list: str | None = None,
        class_names: tuple[str, ...] | None = None,
        num_classes: int | None = None,
        allow_outside_root: bool = False,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        declared = declared_classes(class_names, num_classes, train_list)
        samples: dict[str, list[Sample]] = {}
        self._sources: dict[str, FileSource] = {}
        for split, name in (("train", train_list), ("val", val_list), ("test", test_list)):
            if name is None:
                continue
            option = f"data.{split}_list"
            count = len(declared) if declared is not None else None
            samples[split] = read_list(base / name, base, count, allow_outside_root, option)
            if split == "train":
                declared = checked_classes(samples["train"], declared, base / name)
            elif "train" in samples:
                require_disjoint(samples["train"], samples[split], option)
            self._sources[split] = FileSource(split, samples[split], base, limits, base / name)
        assert declared is not None  # the training list, where there is one, came first and settled it
        self._classes = declared
        if predict is not None:
            self._sources["predict"] = FileSource("predict", *to_predict(base / predict), limits)
        elif "test" in self._sources:
            self._sources["predict"] = self._sources["test"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, or the labels as text."""
        return self._classes

    def source(self, split: str) -> FileSource | None:
        """The files of a split."""
        return self._sources.get(split)
