"""Sizes outside which an image or a video is refused before a pixel of it is decoded. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_petl.errors import ConfigError, DataError


@dataclass(frozen=True)
class ImageLimits:
    """Sizes outside which an image file, or the frames of a video file, are refused before they are decoded.

    Attributes:
        max_pixels: Largest width times height. A few kilobytes can claim gigapixels; 64 million is a large photograph,
            and twice a frame of 8K.
        min_side: Smallest width and height. A single pixel is a placeholder, not a picture.
        max_aspect: Largest ratio of the longer to the shorter side, which a resize of the shorter side multiplies.
    """

    max_pixels: int = 64_000_000
    min_side: int = 2
    max_aspect: float = 100.0

    def __post_init__(self) -> None:
        for name in ("max_pixels", "min_side", "max_aspect"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise ConfigError(f"{name} is {value}", where=f"data.limits.{name}", fix="give a number of 1 or more")

    def check(self, width: int, height: int, path: str, what: str = "image") -> None:
        """Refuses an image, or a video, by its size in the header.

        Raises:
            DataError: Naming the file, its size and the limit.
        """
        for name, exceeded in (
            ("max_pixels", width * height > self.max_pixels),
            ("min_side", min(width, height) < self.min_side),
            ("max_aspect", max(width, height) > self.max_aspect * min(width, height)),
        ):
            if exceeded:
                raise DataError(
                    f"the {what} is {width}x{height} pixels, outside {name}={getattr(self, name)}",
                    where=path,
                    fix=f"resize or remove the file, or set data.limits.{name}",
                )


DEFAULT_LIMITS = ImageLimits()
