"""Reading of masks: the ids that a file holds, checked against the classes, or an error that names file and ids.

A mask holds numbers, not colours, and much of what image readers do for a picture changes numbers. So:

- Ids come from grey (1 to 16 bits) and from palette files, as they are stored. Pillow stretches grey of 2 and 4 bits
  to 8; that is undone, exactly. Grey of 1 bit has the ids 0 and 1.
- A mask in RGB has ids only by a colour map that the user gives; a colour outside of it is an error.
- JPEG and WEBP blur ids into ids that nobody drew; they are refused, as is all else that is no PNG or BMP.
- An EXIF orientation is applied, as it is to images.
- An id that is no class is an error before any loss sees it, which would not name the file, or on a GPU end the
  process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from lightning_petl.data.images import FORMATS, failure
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.errors import ConfigError, DataError

IGNORED = 255
"""The id, in every mask that a data module gives, of pixels without a class. No file's own choice changes it."""

MOST_CLASSES = IGNORED

FORMATS_OF_MASKS = ("PNG", "BMP")

_STRETCH = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey of 2 and 4 bits by."""

_WITHOUT_ALPHA = {
    "LA": "write the ids without the alpha channel as 8-bit or 16-bit grey",
    "RGBA": "write the ids as grey or as a palette PNG, or the colours without the alpha channel, with data.color_map",
}

_UNKNOWN = -1


@dataclass(frozen=True)
class MaskRule:
    """What the ids in a data set's files mean.

    Attributes:
        num_classes: Number of classes, 1 to 255; they are 0 to ``num_classes - 1`` in what `apply` returns.
        ignore_index: Id of pixels without a class in the files; null if there is none.
        reduce_zero_label: The files count classes from 1, and 0 stands for pixels without a class, as in ADE20K.
        ids: The class of each id in the files, `IGNORED` for none; null is the id itself.
        colors: The id of each colour ``(red, green, blue)`` of masks in RGB; null refuses such masks.

    Raises:
        ConfigError: The settings contradict each other.
    """

    num_classes: int
    ignore_index: int | None = IGNORED
    reduce_zero_label: bool = False
    ids: Mapping[int, int] | None = None
    colors: Mapping[tuple[int, int, int], int] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MOST_CLASSES:
            raise ConfigError(
                f"there are {self.num_classes} classes", where="data.num_classes", fix=f"give 1 to {MOST_CLASSES}"
            )
        if self.ignore_index is not None and not 0 <= self.ignore_index < 2**16:
            raise ConfigError(
                f"ignore_index is {self.ignore_index}, and files hold ids of 0 to {2**16 - 1}",
                where="data.ignore_index",
                fix="give an id that the files hold, or null",
            )
        if self.ignore_index is not None and self._class_of.get(self.ignore_index, IGNORED) != IGNORED:
            raise ConfigError(
                f"ignore_index is {self.ignore_index}, the id of a class",
                where="data.ignore_index",
                fix="give another id or null; set data.reduce_zero_label if 0 has no class and classes count from 1",
            )

    @cached_property
    def _class_of(self) -> dict[int, int]:
        """The class of each id that stands for one, and `IGNORED` for the others that files may hold by ``ids``."""
        if self.ids is not None:
            return dict(self.ids)
        first = 1 if self.reduce_zero_label else 0
        return {first + label: label for label in range(self.num_classes)} | ({0: IGNORED} if first else {})

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """The class of every id of 16 bits."""
        table = np.full(2**16, _UNKNOWN, dtype=np.int16)
        for id_, label in self._class_of.items():
            table[id_] = label
        if self.ignore_index is not None:
            table[self.ignore_index] = IGNORED
        return table

    def apply(self, ids: NDArray[np.integer], path: str) -> NDArray[np.uint8]:
        """Turns ids of a file into classes.

        Args:
            ids: ``(h, w)``.
            path: The file, for messages.

        Returns:
            ``(h, w)``, 0 to ``num_classes - 1`` or `IGNORED`.

        Raises:
            DataError: Ids have no class; the text lists them, the allowed ones and the setting to check.
        """
        labels = self._table[ids]
        if labels.size and int(labels.min()) == _UNKNOWN:
            raise self._out_of_range(np.unique(ids[labels == _UNKNOWN]).tolist(), path)
        classes: NDArray[np.uint8] = labels.astype(np.uint8)
        return classes

    def allowed(self) -> str:
        """The ids that files may hold, in words."""
        known = sorted({*self._class_of, *(() if self.ignore_index is None else (self.ignore_index,))})
        breaks = [place for place in range(1, len(known)) if known[place] != known[place - 1] + 1]
        runs = [known[start:end] for start, end in zip([0, *breaks], [*breaks, len(known)], strict=True)]
        return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

    def _out_of_range(self, bad: list[int], path: str) -> DataError:
        fix = "check the number of classes, data.ignore_index (the id of pixels without a class)"
        if self.ids is None:
            fix += f" and data.reduce_zero_label, now {str(self.reduce_zero_label).lower()}"
            off_by_one = bad == [self.num_classes] and not self.reduce_zero_label
            fix += ": such files often count classes from 1, with 0 for none" if off_by_one else ""
        text = listed([str(id_) for id_ in bad])
        return DataError(f"the mask has ids without a class: {text}; allowed are {self.allowed()}", where=path, fix=fix)


def read_mask(path: str | os.PathLike[str], rule: MaskRule, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Reads one mask file by the rules of this module.

    Args:
        path: The file.
        rule: What its ids mean.
        limits: Sizes to refuse.

    Returns:
        ``(h, w)``, upright: classes 0 to ``rule.num_classes - 1``, or `IGNORED`.

    Raises:
        DataError: The file is missing, unreadable or of another kind, or it has ids without a class.
    """
    name = os.fspath(path)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: half a file would pass for a mask of class 0 below",
            fix="find the library that sets it and set it back to False",
        )
    try:
        with Image.open(name, formats=FORMATS) as file:
            _check_kind(file, name)
            limits.check(file.width, file.height, name, "mask")
            stretch = _STRETCH.get(str(file.tile[0].args), 1) if file.tile else 1
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            ids = _from_colors(file, rule, name) if file.mode == "RGB" else _stored(file) // stretch
    except (ConfigError, DataError, MemoryError):
        raise
    except Exception as error:  # as for images, decoders raise whatever they trip over
        raise DataError(
            failure(name, error, "mask", FORMATS_OF_MASKS),
            where=name,
            fix="replace the file or remove it from the data",
        ) from error
    return rule.apply(ids, name)


def _check_kind(file: ImageFile.ImageFile, path: str) -> None:
    if file.format not in FORMATS_OF_MASKS:
        raise DataError(
            f"the mask is a {file.format} file, whose compression may change ids", where=path, fix="use a PNG"
        )
    if getattr(file, "n_frames", 1) > 1:
        raise DataError(f"the mask has {file.n_frames} frames", where=path, fix="keep the one that is meant")  # type: ignore[attr-defined]
    if file.mode not in ("1", "L", "P", "RGB") and not file.mode.startswith("I;16"):
        raise DataError(
            f"the mask has mode {file.mode}, from which no ids are read",
            where=path,
            fix=_WITHOUT_ALPHA.get(file.mode, "write the ids as 8-bit or 16-bit grey or as a palette PNG"),
        )


def _stored(image: Image.Image) -> NDArray[np.integer]:
    """Pixels as numbers; of 1 bit they come as truth values."""
    pixels: NDArray[np.integer] = np.asarray(image, dtype=np.uint8 if image.mode == "1" else None)
    return pixels


def _from_colors(image: Image.Image, rule: MaskRule, path: str) -> NDArray[np.int64]:
    if rule.colors is None:
        raise DataError(
            "the mask has mode RGB, and colours are no ids",
            where=path,
            fix="give data.color_map, or masks of ids (grey or palette)",
        )
    red, green, blue = (np.asarray(image)[..., channel].astype(np.int64) for channel in range(3))
    found, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    known = {r << 16 | g << 8 | b: id_ for (r, g, b), id_ in rule.colors.items()}
    if unknown := [f"#{color:06x}" for color in found.tolist() if color not in known]:
        raise DataError(
            f"the mask has colours without an id: {listed(unknown)}", where=path, fix="add them to data.color_map"
        )
    ids: NDArray[np.int64] = np.array([known[color] for color in found.tolist()])[inverse.reshape(red.shape)]
    return ids


def parse_colors(colors: Mapping[str, int] | None) -> dict[tuple[int, int, int], int] | None:
    """Reads the option ``color_map``, ids by colours as ``"#rrggbb"``.

    Raises:
        ConfigError: A key is no such colour, an id is out of its range, or a colour, in either case of its letters, has
            two ids.
    """
    if colors is None:
        return None
    found: dict[tuple[int, int, int], int] = {}
    for color, id_ in colors.items():
        if not re.fullmatch("#[0-9a-fA-F]{6}", color) or not 0 <= id_ < 2**16:
            raise ConfigError(
                f"color_map has {color!r}: {id_}",
                where="data.color_map",
                fix=f"write colours as '#ff8000', and ids of 0 to {2**16 - 1}",
            )
        red, green, blue = bytes.fromhex(color[1:])
        if (first := found.setdefault((red, green, blue), id_)) != id_:
            raise ConfigError(
                f"color_map has two ids of one colour: {color!r} is id {first} and id {id_}",
                where="data.color_map",
                fix="give each colour one id",
            )
    return found
