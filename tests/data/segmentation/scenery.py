"""Images and masks that the tests of this folder write, in the layouts of the data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def ids(size: tuple[int, int], allowed: list[int], seed: int = 0) -> np.ndarray:
    """Random ids ``(height, width)``."""
    return np.random.default_rng(seed).choice(np.array(allowed, dtype=np.uint8), size)


def write(path: Path, pixels: np.ndarray, palette: list[int] | None = None, **options: object) -> Path:
    """Writes pixels as they are: ``(h, w)`` grey or palette, ``(h, w, 3)`` RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def picture(path: Path, size: tuple[int, int], seed: int = 0, **options: object) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return write(path, pixels, **options)


def ade20k(root: Path, train: int = 6, val: int = 3) -> Path:
    """ADEChallengeData2016: JPEG images, grey PNG masks of 0 to 150, every image of another size."""
    for split, short, count in (("training", "train", train), ("validation", "val", val)):
        for number in range(1, count + 1):
            size = (20 + 3 * number, 50 - 4 * number)
            name = f"ADE_{short}_{number:08d}"
            picture(root / f"images/{split}/{name}.jpg", size, number)
            write(root / f"annotations/{split}/{name}.png", ids(size, list(range(151)), number))
    return root


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012 with palette masks, and images without a mask, as most are."""
    base = root / "VOCdevkit/VOC2012"
    names = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    colors = [channel for id_ in range(256) for channel in (id_, 255 - id_, 7)]
    for split, listed in names.items():
        path = base / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in listed))
        for number, name in enumerate(listed):
            picture(base / f"JPEGImages/{name}.jpg", (24, 30), number)
            write(base / f"SegmentationClass/{name}.png", ids((24, 30), [*range(21), 255], number), colors)
    picture(base / "JPEGImages/2012_004331.jpg", (24, 30))
    return root


def cityscapes(root: Path) -> Path:
    """leftImg8bit and gtFine, with the files beside labelIds that the archive has."""
    for split, city, count in (("train", "aachen", 2), ("train", "bochum", 1), ("val", "lindau", 1)):
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            picture(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", (16, 32), number)
            folder = root / f"gtFine/{split}/{city}"
            write(folder / f"{stem}_gtFine_labelIds.png", ids((16, 32), list(range(34)), number))
            write(folder / f"{stem}_gtFine_instanceIds.png", ids((16, 32), [0]).astype(np.uint16))
            picture(folder / f"{stem}_gtFine_color.png", (16, 32))
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def folders(root: Path, count: int = 5, classes: int = 4, size: tuple[int, int] = (24, 32)) -> Path:
    """images/{train,val} and masks/{train,val} of one size, with ids 0 to ``classes - 1`` and 255."""
    for split in ("train", "val"):
        for number in range(count):
            picture(root / f"images/{split}/{number}.png", size, number)
            write(root / f"masks/{split}/{number}.png", ids(size, [*range(classes), 255], number))
    return root
