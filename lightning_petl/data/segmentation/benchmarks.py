"""Pascal VOC and Cityscapes, by the file lists of torchvision's data sets. Nothing is downloaded or unpacked."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
from torchvision.datasets import Cityscapes, VOCSegmentation

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.segmentation.folder import sources_of
from lightning_petl.data.segmentation.masks import IGNORED, MaskRule
from lightning_petl.data.segmentation.module import SegmentationDataModule, SegmentationOptions
from lightning_petl.data.segmentation.pairs import Pair
from lightning_petl.data.segmentation.palettes import voc_palette
from lightning_petl.errors import ConfigError, DataError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Class ``i`` has the id ``i`` in the files; 255 is the border of objects, which no score counts."""

_EVALUATED = sorted((c for c in Cityscapes.classes if not c.ignore_in_eval), key=lambda c: int(c.train_id))
CITYSCAPES_CLASSES: tuple[str, ...] = tuple(str(c.name) for c in _EVALUATED)
"""The 19 classes that are evaluated, by their training ids."""


class PascalVOCData(SegmentationDataModule):
    """Pascal VOC's segmentation in its own layout, ``<root>/VOCdevkit/VOC<year>``, with 20 classes and the background.

    Args:
        root: Folder that holds ``VOCdevkit``.
        year: "2007" to "2012".
        train: The list of the training split, "train" or "trainval", or null.
        val: The list of the validation split, or null.
        test: The list of the test split, or null: "val" by default, for the masks of 2012's test split are not
            published; of 2007, "test" is.
        predict: Folder of images to predict, any tree, or one image, below ``root`` unless absolute; null predicts
            the images of the test split.
        limits: Sizes of images and masks to refuse before decoding.
        **options: See `SegmentationOptions`.

    Raises:
        DataError: A folder, a list or a file is missing, or a split shares images with training.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        year: str = "2012",
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "val",
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        pairs = {
            split: _voc_pairs(base, year, name, f"data.{split}")
            for split, name in (("train", train), ("val", val), ("test", test))
            if name is not None
        }
        place = None if predict is None else base / predict
        sources = sources_of(pairs, base, MaskRule(len(VOC_CLASSES)), limits, place)
        self.fill(VOC_CLASSES, voc_palette(len(VOC_CLASSES)), sources)


class CityscapesData(SegmentationDataModule):
    """Cityscapes' fine annotations in their own layout: ``leftImg8bit/<split>/<city>`` and ``gtFine/<split>/<city>``.

    The masks are the ``labelIds``; 19 of the 34 ids are classes, and the others belong to none (arXiv 1604.01685).

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine``.
        train: The training split, "train", or null.
        val: The validation split, "val", or null.
        test: The test split, or null: "val" by default, for the masks of Cityscapes' test split are not published.
        predict: Folder of images to predict, any tree, such as ``leftImg8bit/test``, or one image, below ``root``
            unless absolute; null predicts the images of the test split.
        limits: Sizes of images and masks to refuse before decoding.
        **options: See `SegmentationOptions`.

    Raises:
        DataError: A folder or a file is missing, or a split shares images with training.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "val",
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        pairs = {
            split: _cityscapes_pairs(base, name, f"data.{split}")
            for split, name in (("train", train), ("val", val), ("test", test))
            if name is not None
        }
        ids = {c.id: c.train_id if not c.ignore_in_eval else IGNORED for c in Cityscapes.classes if c.id >= 0}
        rule = MaskRule(len(CITYSCAPES_CLASSES), ids=ids)
        place = None if predict is None else base / predict
        colors = np.array([c.color for c in _EVALUATED], dtype=np.uint8)
        self.fill(CITYSCAPES_CLASSES, colors, sources_of(pairs, base, rule, limits, place))


def _voc_pairs(root: Path, year: str, name: str, option: str) -> list[Pair]:
    try:
        found = VOCSegmentation(root, year, name, download=False)
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split()), where=option, fix="choose one that the year has") from error
    except (RuntimeError, OSError) as error:
        reason = f": {error.filename} is missing" if isinstance(error, OSError) else ""
        raise DataError(
            f"{root} holds no Pascal VOC {year}{reason}",
            where="data.root",
            fix="give the folder that holds VOCdevkit, as the archive unpacks",
        ) from error
    return _require_files(root, zip(found.images, found.targets, strict=True), option)


def _cityscapes_pairs(root: Path, name: str, option: str) -> list[Pair]:
    # torchvision unpacks archives that lie there in place of a missing folder, whatever they hold.
    for folder in (root / "leftImg8bit" / name, root / "gtFine" / name):
        require_folder(folder, option)
    try:
        found = Cityscapes(root, name, mode="fine", target_type="semantic")
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split()), where=option, fix="give train or val") from error
    paths = sorted(zip(found.images, (target[0] for target in found.targets), strict=True))
    return _require_files(root, [path for path in paths if path[0].endswith("_leftImg8bit.png")], option)


def _require_files(root: Path, paths: Iterable[tuple[str, str]], option: str) -> list[Pair]:
    """Checks the files that a list names.

    Raises:
        DataError: A path leads out of the root, files are missing (all are named), or there are none.
    """
    pairs = [Pair(image, mask) for image, mask in paths]
    inside = f"{os.path.abspath(root)}{os.sep}"  # noqa: PTH100 - links may lead where they like, lists may not
    if outside := [pair.image for pair in pairs if not os.path.abspath(pair.image).startswith(inside)]:  # noqa: PTH100
        raise DataError(f"{listed(outside)} lead out of {root}", where=option, fix="correct the list")
    if lacking := [path for pair in pairs for path in (pair.image, str(pair.mask)) if not Path(path).is_file()]:
        raise DataError(f"{len(lacking)} files are missing: {listed(lacking)}", where=option, fix="unpack them again")
    if not pairs:
        raise DataError("the split has no images", where=option, fix="unpack the data set again")
    if repeated := [image for image, count in Counter(pair.image for pair in pairs).items() if count > 1]:
        warnings.warn(
            f"{option}: {len(repeated)} images are listed more than once: {listed(repeated, shown=3)}",
            DataWarning,
            stacklevel=4,
        )
    return pairs
