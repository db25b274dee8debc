"""Any folders of images and masks: one pair of folders a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.segmentation.masks import MaskRule, parse_colors
from lightning_petl.data.segmentation.module import SegmentationDataModule, SegmentationOptions
from lightning_petl.data.segmentation.pairs import Pair, PairSource, match, require_apart, without_masks
from lightning_petl.data.segmentation.palettes import chosen_palette
from lightning_petl.errors import ConfigError, DataError


class SegmentationFolderData(SegmentationDataModule):
    """Images and masks in two folders a split, paired by name: ``a/1.jpg`` and ``a/1.png`` below them belong together.

    Masks are 8-bit or 16-bit grey or palette PNG (or BMP) files whose pixels are ids, see
    `lightning_petl.data.segmentation.masks`. Names, folders and options are checked here, ids when a file is read.

    Args:
        root: Folder of the data set.
        train: Folders of images and of masks of the training split below ``root``, or null.
        val: The same of the validation split, or null if there is none.
        test: The same of the test split, or null.
        class_names: Name of each class in order, or a text file below ``root`` with one a line; null names them "0",
            "1" and so on.
        num_classes: Number of classes; null takes it from ``class_names``.
        ignore_index: Id in the files of pixels without a class; null if there is none.
        reduce_zero_label: The files count classes from 1, and 0 stands for pixels without a class.
        color_map: Id of each colour ``"#rrggbb"`` of masks in RGB; null refuses such masks.
        mask_suffix: What follows the image's name in the mask's: ``_mask`` pairs ``1.jpg`` with ``1_mask.png``.
        palette: A colour ``[red, green, blue]`` for each class, for outputs; null takes Pascal VOC's.
        predict: Folder of images to predict, any tree, or one image, below ``root`` unless absolute; null predicts
            the images of the test split.
        limits: Sizes of images and masks to refuse before decoding.
        **options: See `SegmentationOptions`.

    Raises:
        DataError: A folder is missing or empty, files have no counterpart, or a split shares images with training.
        ConfigError: An option is out of its range, or options contradict each other.
    """

    def __init__(
        self,
        root: str,
        train: tuple[str, str] | None = ("images/train", "masks/train"),
        val: tuple[str, str] | None = ("images/val", "masks/val"),
        test: tuple[str, str] | None = None,
        class_names: tuple[str, ...] | str | None = None,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        reduce_zero_label: bool = False,
        color_map: dict[str, int] | None = None,
        mask_suffix: str = "",
        palette: list[tuple[int, int, int]] | None = None,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[SegmentationOptions],
    ) -> None:
        super().__init__(**options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        classes = named_classes(class_names, num_classes, base)
        colors = chosen_palette(palette, len(classes))
        rule = MaskRule(len(classes), ignore_index, reduce_zero_label, colors=parse_colors(color_map))
        pairs = {
            split: match(base / folders[0], base / folders[1], f"data.{split}", mask_suffix)
            for split, folders in (("train", train), ("val", val), ("test", test))
            if folders is not None
        }
        place = None if predict is None else base / predict
        self.fill(classes, colors, sources_of(pairs, base, rule, limits, place))


def sources_of(
    pairs: Mapping[str, Sequence[Pair]], root: Path, rule: MaskRule, limits: ImageLimits, predict: Path | None
) -> dict[str, PairSource]:
    """The sources of the splits, and of prediction: the images of a folder, one image, or those of the test split.

    Raises:
        DataError: There is no split and nothing to predict, no image is found to predict, or training shares images
            with another split.
    """
    if not pairs and predict is None:
        fix = "set data.train, data.val, data.test or data.predict"
        raise DataError("no split has a folder", where="data.train", fix=fix)
    for split in pairs.keys() - {"train"} if "train" in pairs else ():
        require_apart(pairs["train"], pairs[split], f"data.{split}")
    sources = {split: PairSource(split, found, root, rule, limits) for split, found in pairs.items()}
    if predict is not None:
        sources["predict"] = PairSource("predict", *without_masks(predict), rule, limits)
    elif "test" in sources:
        sources["predict"] = sources["test"]
    return sources


def named_classes(names: Sequence[str] | str | None, number: int | None, root: Path) -> tuple[str, ...]:
    """The class names that the options ``class_names`` and ``num_classes`` give.

    Raises:
        DataError: The file of names cannot be read.
        ConfigError: Neither is given, they disagree, or a name comes twice.
    """
    if names is None:
        if number is None:
            raise ConfigError(
                "the classes are not given",
                where="data.num_classes",
                fix="give data.class_names or data.num_classes: no mask shows all of them",
            )
        names = [str(label) for label in range(number)]
    elif isinstance(names, str):
        names = _names_in(root / names)
    if len(set(names)) < len(names) or not names:
        raise ConfigError(
            "class_names is empty or repeats a name", where="data.class_names", fix="name each class once"
        )
    if number not in (None, len(names)):
        raise ConfigError(
            f"num_classes is {number}, and there are {len(names)} class_names",
            where="data.num_classes",
            fix="correct one of them",
        )
    return tuple(names)


def _names_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
        raise DataError(
            f"the file of class names {file} cannot be read: {reason}",
            where="data.class_names",
            fix="give a text file with one name a line, relative to data.root",
        ) from error
    return [line.strip() for line in lines if line.strip()]
