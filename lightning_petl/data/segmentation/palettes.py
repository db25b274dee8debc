"""Colours of classes, for outputs that people look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_petl.errors import ConfigError


def voc_palette(num_classes: int) -> NDArray[np.uint8]:
    """Pascal VOC's colours, for any number of classes up to 256.

    The bits of a class go round the three channels, from the highest bit of a channel down: 0 is black, 1 dark red,
    2 dark green, 3 their sum, 4 dark blue, and so on. Source: the development kit of Pascal VOC.

    Returns:
        ``(num_classes, 3)``.
    """
    ids = np.arange(num_classes)
    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def chosen_palette(
    colors: Sequence[Sequence[int]] | None, num_classes: int, default: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """The colours that a user gave, one a class; without them the data set's own, else Pascal VOC's.

    Raises:
        ConfigError: There are too few or too many, or one is no ``[red, green, blue]`` of 0 to 255.
    """
    if colors is None:
        return voc_palette(num_classes) if default is None else default
    if len(colors) != num_classes or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in colors):
        raise ConfigError(
            f"the palette is not {num_classes} colours [red, green, blue] of 0 to 255",
            where="data.palette",
            fix="give one for each class, or null",
        )
    return np.array(colors, dtype=np.uint8)
