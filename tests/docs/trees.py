"""Small data sets in the layouts that the documentation speaks of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FLOWERS = ("daisy", "rose", "tulip")


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def class_folders(root: Path) -> None:
    """``train``, ``val`` and ``test`` with a folder for each flower, and a folder ``new`` without classes."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label, name in enumerate(FLOWERS):
            for index in range(count):
                _image(root / split / name / f"{index + 1}.jpg", 100 * label + index)
    for index in range(2):
        _image(root / "new" / f"{index + 1}.jpg", index)


def list_files(root: Path) -> None:
    """``train.txt``, ``val.txt`` and ``test.txt``, which name images below ``photos``."""
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        lines = []
        for label, name in enumerate(FLOWERS):
            for index in range(count):
                path = f"photos/{split}_{name}_{index}.jpg"
                _image(root / path, 10 * label + index)
                lines.append(f"{path} {label}\n")
        (root / f"{split}.txt").write_text("".join(lines))


def vtab1k(root: Path) -> None:
    """A task of VTAB-1k: four lists, images by split with six digits, every list relative to the task's folder."""
    lists: dict[str, list[str]] = {}
    for split, count in (("train800", 8), ("val200", 2), ("test", 4)):
        for index in range(count):
            path = f"images/{split}/{index:06}.jpg"
            _image(root / path, index)
            lists.setdefault(split, []).append(f"{path} {index}\n")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("".join(lines))


def write_all(folder: Path) -> None:
    """All of them below ``data``, where the pages look for them."""
    class_folders(folder / "data" / "flowers")
    list_files(folder / "data" / "lists")
    vtab1k(folder / "data" / "vtab-1k" / "cifar")
