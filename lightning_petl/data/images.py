"""Decoding of image files. A file gives the picture it holds, in 8-bit RGB, or an error that names it; never another.

The rules, one for each way in which a picture could change without a word:

- Formats: JPEG, PNG, WEBP and BMP, told by content. Everything else that Pillow can open is refused.
- Size: checked from the header before pixels are decoded (`ImageLimits`).
- EXIF orientation is applied. Colour profiles (ICC) are not.
- 16-bit grey is scaled, ``round(v / 257)``; CMYK and palettes go to RGB.
- Transparent pixels show `BACKGROUND`, whatever colour the file hides below them.
- Of several frames the first is taken, and counted in a warning.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import DataWarning
from lightning_petl.errors import ConfigError, DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Names that a folder scan takes for images, compared in lower case."""

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels: white, as paper and browsers show them."""

_EIGHT_BIT = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr"})


class Decoded(NamedTuple):
    """An image, and the number of frames in the file that it was the first of."""

    image: Image.Image
    frames: int


def open_image(path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Reads one image file by the rules of this module.

    Args:
        path: The file.
        limits: Sizes to refuse.

    Returns:
        The image, upright, mode RGB, 8 bits a channel.

    Raises:
        DataError: The file is missing, unreadable, truncated, of another format or outside the limits.
    """
    image, frames = decode(path, limits)
    if frames > 1:
        warnings.warn(f"{os.fspath(path)} has {frames} frames; the first is used", DataWarning, stacklevel=2)
    return image


def decode(path: str | os.PathLike[str], limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """Reads one image file as `open_image` does, and leaves the warning about frames to a caller that counts them."""
    name = os.fspath(path)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: half a file would pass for a picture with grey below",
            fix="find the library that sets it and set it back to False",
        )
    try:
        with Image.open(name, formats=FORMATS) as file:
            limits.check(file.width, file.height, name)
            frames = int(getattr(file, "n_frames", 1))
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return Decoded(_rgb(file, name), frames)
    except (ConfigError, DataError, MemoryError):
        raise
    except Exception as error:
        # Decoders of damaged files raise whatever they trip over: OSError, SyntaxError, ValueError, struct.error...
        raise DataError(failure(name, error), where=name, fix="replace the file or remove it from the data") from error


def failure(path: str, error: Exception, what: str = "image", formats: Sequence[str] = FORMATS) -> str:
    """What went wrong when a file was opened or decoded, in words; ``what`` it is, and what formats it may have."""
    if isinstance(error, UnidentifiedImageError):
        empty = not Path(path).stat().st_size
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        return f"the {what} file is empty" if empty else f"the file is no {known} {what}"
    if isinstance(error, FileNotFoundError):
        return f"the {what} file does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"the {what} file cannot be read: {error.strerror}"
    return f"the {what} cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"


def _rgb(image: Image.Image, path: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bit(image)
    elif image.has_transparency_data:
        return _on_background(image)
    if image.mode not in _EIGHT_BIT:
        raise DataError(
            f"pixels of mode {image.mode} have no defined range", where=path, fix="convert the file to 8-bit RGB"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = BACKGROUND[0]
    return Image.fromarray(grey)


def _on_background(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
