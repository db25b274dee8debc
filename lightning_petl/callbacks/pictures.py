"""Pictures of masks: coloured, over their image, in rows beside each other, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_petl.data.input_config import InputConfig

Pixels = NDArray[np.uint8]
NO_CLASS = (255, 255, 255)
MARGIN = 6


def picture(image: Tensor, config: InputConfig) -> Image.Image:
    """The picture that an input ``(3, h, w)`` was made of, its normalisation undone."""
    mean, std = (np.array(values, dtype=np.float32) for values in (config.mean, config.std))
    values = image.detach().float().cpu().permute(1, 2, 0).numpy() * std + mean
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def coloured(mask: Pixels, palette: Pixels) -> Image.Image:
    """A mask ``(h, w)`` of classes in the palette's colours; what is no class is white."""
    table = np.full((256, 3), NO_CLASS, dtype=np.uint8)
    table[: len(palette)] = palette[:256]
    return Image.fromarray(table[mask])


def overlay(image: Image.Image, mask: Pixels, palette: Pixels, opacity: float = 0.6) -> Image.Image:
    """A mask's colours over its image in grey, at the image's size; pixels without a class are whitened.

    The image keeps its own colours under a class that is black, as the background is in many palettes.
    """
    colours = coloured(mask, palette)
    shown = np.asarray(colours).any(axis=2).astype(np.uint8)
    colours, where = (
        each.resize(image.size, Image.Resampling.NEAREST) for each in (colours, Image.fromarray(255 * shown))
    )
    tinted = Image.blend(image.convert("L").convert("RGB"), colours, opacity)
    return Image.composite(tinted, image, where)


def indexed(mask: Pixels, palette: Pixels) -> Image.Image:
    """A mask as a palette image: its pixels are the classes, shown in the palette's colours."""
    found = Image.fromarray(mask).convert("L")
    found.putpalette(palette.flatten().tolist())
    return found


def comparison(
    rows: Sequence[tuple[Image.Image, Pixels, Pixels]], names: Sequence[str], palette: Pixels, side: int = 256
) -> Image.Image:
    """Rows of image, true mask and predicted mask, and below a legend of the classes that occur in them.

    Args:
        rows: Each with masks ``(h, w)`` of its own size.
        names: Names of the classes.
        palette: Their colours, ``(classes, 3)``.
        side: Pixels of a picture's longer side.
    """
    pictures = [
        [_fitted(image, side), *(_fitted(overlay(image, mask, palette), side) for mask in (true, predicted))]
        for image, true, predicted in rows
    ]
    occurring = sorted({int(label) for _, *masks in rows for mask in masks for label in np.unique(mask)})
    legend = [(names[label], tuple(map(int, palette[label]))) for label in occurring if label < len(names)]
    if any(label >= len(names) for label in occurring):
        legend.append(("no class", NO_CLASS))
    width = max(sum(each.width + MARGIN for each in row) for row in pictures) + MARGIN
    heights = [max(each.height for each in row) + MARGIN for row in pictures]
    strip = _legend(legend, width)
    sheet = Image.new("RGB", (width, _HEADING + sum(heights) + strip.height), "white")
    draw, top = ImageDraw.Draw(sheet), _HEADING
    for row, height in zip(pictures, heights, strict=True):
        left = MARGIN
        for each, title in zip(row, ("image", "ground truth", "prediction"), strict=True):
            sheet.paste(each, (left, top))
            if top == _HEADING:
                draw.text((left, 5), title, fill="black", font=_font())
            left += each.width + MARGIN
        top += height
    sheet.paste(strip, (0, top))
    return sheet


_HEADING, _LINE = 24, 20


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib; without it Pillow's own, which has few letters beyond ASCII."""
    try:
        import matplotlib as mpl

        return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size=12)
    except (ImportError, OSError):
        return ImageFont.load_default(size=13)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side as given; enlarged, its pixels stay squares."""
    factor = side / max(image.size)
    size = (max(1, round(factor * image.width)), max(1, round(factor * image.height)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)


def _legend(entries: Sequence[tuple[str, tuple[int, ...]]], width: int) -> Image.Image:
    """Squares of colour with their names, in lines of the given width."""
    font, places, left, line = _font(), [], MARGIN, 0
    for name, colour in entries:
        needed = _LINE + int(font.getlength(name)) + 2 * MARGIN
        if left + needed > width and left > MARGIN:
            left, line = MARGIN, line + 1
        places.append((left, line * _LINE, name, colour))
        left += needed
    strip = Image.new("RGB", (width, (line + 1) * _LINE + MARGIN), "white")
    draw = ImageDraw.Draw(strip)
    for left, top, name, colour in places:
        draw.rectangle((left, top + 3, left + 12, top + 15), fill=colour, outline="black")
        draw.text((left + _LINE, top + 1), name, fill="black", font=font)
    return strip
