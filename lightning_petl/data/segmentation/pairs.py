"""Pairs of an image and its mask: which file goes with which, and reading both as one sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lightning_petl.data.folder_tree import IMAGES, FileKind, scan_files, to_predict
from lightning_petl.data.images import EXTENSIONS, decode
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.data.segmentation.masks import MaskRule, read_mask
from lightning_petl.data.sources import Samples
from lightning_petl.errors import DataError

_MASKS = FileKind("mask", EXTENSIONS)
"""Suffixes of lossy files, too: they are refused when they are read, with the reason."""


class Pair(NamedTuple):
    """An image file, and the file of its mask; None where there is none, in prediction."""

    image: str
    mask: str | None


class PairSource(Samples):
    """Images with masks, in files; the order never changes.

    Args:
        split: Name of the split, for messages.
        pairs: The files.
        root: Folder that `name` is relative to.
        rule: What the masks' ids mean.
        limits: Sizes of images and masks to refuse.
    """

    def __init__(
        self, split: str, pairs: Sequence[Pair], root: Path, rule: MaskRule, limits: ImageLimits = DEFAULT_LIMITS
    ) -> None:
        self.split, self.pairs, self.root, self.rule, self.limits = split, pairs, root, rule, limits
        # In shared memory: worker processes decode, and this one reports.
        self._animated = torch.zeros(len(pairs), dtype=torch.bool)
        self._animated.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The path of the image relative to the root."""
        return os.path.relpath(self.pairs[index].image, self.root)

    def image(self, index: int) -> Image.Image:
        """Decodes an image, see `lightning_petl.data.images`.

        Raises:
            DataError: Naming the file and the index.
        """
        try:
            image, frames = decode(self.pairs[index].image, self.limits)
        except DataError as error:
            raise self._located(error, index) from error
        if frames > 1:
            self._animated[index] = True
        return image

    def sample(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Reads an image and its mask ``(h, w)``, see `lightning_petl.data.segmentation.masks`.

        Raises:
            DataError: One of them cannot be read, or they differ in size.
        """
        pair = self.pairs[index]
        assert pair.mask is not None, "prediction reads images alone"
        image = self.image(index)
        try:
            mask = read_mask(pair.mask, self.rule, self.limits)
            _require_same_size(image, mask, pair)
        except DataError as error:
            raise self._located(error, index) from error
        return image, mask

    def animated(self) -> Sequence[str]:
        """Names of the images with several frames that were read so far, by any process."""
        return [self.name(int(index)) for index in self._animated.nonzero()]

    def _located(self, error: DataError, index: int) -> DataError:
        return DataError(error.what, where=f"{error.where}, sample {index} of {self.split}", fix=error.fix)


def _require_same_size(image: Image.Image, mask: NDArray[np.uint8], pair: Pair) -> None:
    """A resize would hide the difference, and every pixel would have another's class."""
    height, width = mask.shape
    if image.size == (width, height):
        return
    turned = (
        " (it is the image turned; an EXIF orientation is applied to each)" if image.size == (height, width) else ""
    )
    raise DataError(
        f"the mask is {width}x{height} pixels and its image {image.width}x{image.height}{turned}",
        where=f"{pair.mask}, {pair.image}",
        fix="give each image a mask of its own size",
    )


def match(images: Path, masks: Path, option: str, suffix: str = "") -> list[Pair]:
    """Pairs the images of a folder with the masks of another, by their paths below it without the extension.

    Args:
        images: Folder of images, any tree.
        masks: Folder of masks, the same tree.
        option: Configuration field that gave the folders, for messages.
        suffix: What follows the image's name in the mask's: ``_mask`` pairs ``a/1.jpg`` with ``a/1_mask.png``.

    Returns:
        The pairs, ordered by the image's path.

    Raises:
        DataError: A folder is missing or empty, a name comes twice, or files have no counterpart; all are named.
    """
    found = _by_stem(images, "", option, IMAGES)
    drawn = _by_stem(masks, suffix, option, _MASKS)
    faults = [
        f"{len(lacking)} {what}: {listed(sorted(paths[stem] for stem in lacking))}"
        for what, paths, lacking in (
            ("images without a mask", found, found.keys() - drawn.keys()),
            ("masks without an image", drawn, drawn.keys() - found.keys()),
        )
        if lacking
    ]
    if faults:
        raise DataError("; ".join(faults), where=option, fix=f"{images} and {masks} need the same names")
    return [Pair(path, drawn[stem]) for stem, path in found.items()]


def without_masks(place: Path) -> tuple[list[Pair], Path]:
    """The images to predict, of a folder or one alone, and the folder that their names are relative to.

    Raises:
        DataError: See `to_predict`.
    """
    samples, root = to_predict(place)
    return [Pair(sample.path, None) for sample in samples], root


def _by_stem(folder: Path, suffix: str, option: str, kind: FileKind) -> dict[str, str]:
    paths: dict[str, str] = {}
    for sample in scan_files(folder, option, kind):
        stem = os.path.splitext(os.path.relpath(sample.path, folder))[0]  # noqa: PTH122 - strings, as the scan gives
        # A name without the suffix keeps it off no image, and shows up as a mask without one.
        key = stem.removesuffix(suffix) if suffix and stem.endswith(suffix) else stem + ("\0" if suffix else "")
        if key in paths:
            raise DataError(
                f"{paths[key]} and {sample.path} have the same name", where=option, fix="remove or rename one of them"
            )
        paths[key] = sample.path
    return paths


def require_apart(train: Sequence[Pair], other: Sequence[Pair], option: str) -> None:
    """Refuses a validation or test split that shares images with training, links followed.

    Raises:
        DataError: Naming the first shared files.
    """
    seen = {os.path.realpath(pair.image) for pair in train}
    if shared := sorted({os.path.realpath(pair.image) for pair in other} & seen):
        raise DataError(
            f"{len(shared)} images are in the training split too: {listed(shared, shown=3)}",
            where=option,
            fix="give other images: scores on training images mean nothing",
        )
