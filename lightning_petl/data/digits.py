"""Scikit-learn's handwritten digits as an image data set, in memory and without a download."""

from __future__ import annotations

from typing import Unpack

from lightning_petl.data.image_module import ImageDataModule, ImageOptions
from lightning_petl.data.sources import ArraySource
from lightning_petl.demo.digits import load_digits, split


class DigitsData(ImageDataModule):
    """Images of handwritten digits, 8x8 grey pixels turned to RGB, split anew from scikit-learn's set.

    Args:
        classes: The digits to tell apart; label ``i`` is ``classes[i]``.
        train_per_class: Training images of each digit.
        val_per_class: Validation images of each digit; the rest is the test split, equally many of each.
        split_seed: Seed of the split. The option ``seed`` changes the order of training, on the same images.
        **options: See `ImageOptions`.

    Raises:
        ConfigError: An option is out of its range, or scikit-learn is missing.
    """

    split_suffix = "_per_class"

    def __init__(
        self,
        classes: tuple[int, ...] = (5, 6, 7, 8, 9),
        train_per_class: int = 80,
        val_per_class: int = 30,
        split_seed: int = 0,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(**options)
        images, labels = load_digits(classes)
        self._classes = tuple(str(digit) for digit in classes)
        self._sources = {
            name: ArraySource(images[chosen], labels[chosen].tolist(), [f"digits/{index}" for index in chosen])
            for name, chosen in split(labels, train_per_class, val_per_class, split_seed).items()
            if len(chosen)
        }
        self._sources["predict"] = self._sources["test"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits as text."""
        return self._classes

    def source(self, split: str) -> ArraySource | None:
        """The images of a split."""
        return self._sources.get(split)
