"""Images named by list files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder, scan_images
from lightning_petl.data.image_module import ImageDataModule, ImageOptions
from lightning_petl.data.images import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.list_file import read_list, require_disjoint
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.sources import FileSource, Sample
from lightning_petl.errors import ConfigError, DataError


class ImageListData(ImageDataModule):
    """Images named by list files, one ``path label`` a line with paths relative to ``root``: the layout of VTAB-1k.

    Everything but the pixels is checked here: lines, labels, files, overlaps.

    Args:
        root: Folder of the data set. Lists are relative to it too, unless absolute.
        train_list: List of the training split.
        val_list: List of the validation split, or null.
        test_list: List of the test split, or null.
        class_names: Name of each label, in order; null names them "0", "1" and so on.
        num_classes: Number of classes; null takes it from ``class_names``, else from the training labels, which then
            have no gaps.
        allow_outside_root: Accept paths that lead out of ``root``, by ``..``, as absolute paths or through links.
        predict: Folder of images to predict, relative to ``root``; null predicts the test split.
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
        train_list: str,
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
        declared = _declared_classes(class_names, num_classes)
        samples: dict[str, list[Sample]] = {}
        self._sources: dict[str, FileSource] = {}
        for split, name in (("train", train_list), ("val", val_list), ("test", test_list)):
            if name is None:
                continue
            option = f"data.{split}_list"
            count = len(declared) if declared is not None else None
            samples[split] = read_list(base / name, base, count, allow_outside_root, option)
            if split == "train":
                declared = _class_names(samples["train"], declared, base / name)
            else:
                require_disjoint(samples["train"], samples[split], option)
            self._sources[split] = FileSource(split, samples[split], base, limits, base / name)
        assert declared is not None  # the training list, which always comes first, settles it
        self._classes = declared
        if predict is not None:
            folder = base / predict
            self._sources["predict"] = FileSource("predict", scan_images(folder, "data.predict"), folder, limits)
        elif "test" in self._sources:
            self._sources["predict"] = self._sources["test"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, or the labels as text."""
        return self._classes

    def source(self, split: str) -> FileSource | None:
        """The files of a split."""
        return self._sources.get(split)


def _declared_classes(class_names: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...] | None:
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}", where="data.num_classes", fix="give 1 or more")
    if class_names is None:
        return None if num_classes is None else tuple(map(str, range(num_classes)))
    if len(set(class_names)) < len(class_names) or not class_names:
        raise ConfigError(
            "class_names is empty or repeats a name", where="data.class_names", fix="name each label once"
        )
    if num_classes not in (None, len(class_names)):
        raise ConfigError(
            f"num_classes is {num_classes}, and there are {len(class_names)} class_names",
            where="data.num_classes",
            fix="correct one of them",
        )
    return tuple(class_names)


def _class_names(samples: Sequence[Sample], declared: tuple[str, ...] | None, file: Path) -> tuple[str, ...]:
    """The declared classes, or as many as the training labels show; labels without a sample do not pass in silence."""
    found = {sample.label for sample in samples}
    names = declared if declared is not None else tuple(map(str, range(max(found) + 1)))
    unseen = [name for label, name in enumerate(names) if label not in found]
    if unseen and declared is None:
        raise DataError(
            f"the labels go up to {max(found)}, and {len(unseen)} below have no sample: {listed(unseen)}",
            where=str(file),
            fix="correct the labels, or give data.num_classes if that is how it is",
        )
    if unseen:
        text = f"{file}: {len(unseen)} of {len(names)} classes have no training sample: {listed(unseen)}"
        warnings.warn(text, DataWarning, stacklevel=3)
    return names
