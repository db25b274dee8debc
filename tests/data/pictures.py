"""Images that the tests of this folder write to files."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(seed: int = 0, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """Random pixels ``(height, width, 3)``."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def photo(seed: int = 0, size: tuple[int, int] = (12, 16)) -> Image.Image:
    return Image.fromarray(noise(seed, size))
