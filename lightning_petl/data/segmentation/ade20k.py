"""ADE20K's scene parsing benchmark, and any data set in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.segmentation.ade20k_classes import ADE20K_CLASSES, ade20k_palette
from lightning_petl.data.segmentation.folder import named_classes, sources_of
from lightning_petl.data.segmentation.masks import MaskRule
from lightning_petl.data.segmentation.module import SegmentationDataModule, SegmentationOptions
from lightning_petl.data.segmentation.pairs import match
from lightning_petl.data.segmentation.palettes import chosen_palette


class ADE20KData(SegmentationDataModule):
    """Scenes in ADE20K's layout: ``images/<split>/*.jpg`` and ``annotations/<split>/*.png`` (arXiv 1608.05442).

    The release ADEChallengeData2016 is read as it unpacks: 20,210 training and 2,000 validation images, 150 classes.
    In its masks 0 is everything else, which no score counts; 1 to 150 become the classes 0 to 149.

    Args:
        root: Folder of the data set, which holds ``images`` and ``annotations``.
        train: Folder of the training split below both, or null.
        val: Folder of the validation split, or null.
        test: Folder of the test split, or null. The validation split by default, which papers report: no masks of the
            test split are published.
        class_names: Name of each class in order, or a text file below ``root`` with one a line; null is ADE20K's 150.
        reduce_zero_label: The masks count classes from 1, and 0 stands for pixels without a class.
        ignore_index: A second id in the masks of pixels without a class; null if there is none.
        palette: A colour ``[red, green, blue]`` for each class, for outputs; null takes ADE20K's, or for other classes
            Pascal VOC's.
        predict: Folder of images to predict, any tree, or one image, below ``root`` unless absolute; null predicts
            the images of the test split.
        limits: Sizes of images and masks to refuse before decoding.
        **options: See `SegmentationOptions`.

    Raises:
        DataError: A folder is missing or empty, files have no counterpart, or a split shares images with training.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        train: str | None = "training",
        val: str | None = "validation",
        test: str | None = "validation",
        class_names: tuple[str, ...] | str | None = None,
        reduce_zero_label: bool = True,
        ignore_index: int | None = 255,
        palette: list[tuple[int, int, int]] | None = None,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        classes = ADE20K_CLASSES if class_names is None else named_classes(class_names, None, base)
        own = ade20k_palette() if class_names is None else None
        colors = chosen_palette(palette, len(classes), own)
        rule = MaskRule(len(classes), ignore_index, reduce_zero_label)
        pairs = {
            split: match(base / "images" / name, base / "annotations" / name, f"data.{split}")
            for split, name in (("train", train), ("val", val), ("test", test))
            if name is not None
        }
        place = None if predict is None else base / predict
        self.fill(classes, colors, sources_of(pairs, base, rule, limits, place))
