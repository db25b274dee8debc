"""Scikit-learn's handwritten digits, and a fixed split of them. No download: the images come with scikit-learn.

The images are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI, CC BY 4.0):
1797 digits of 8x8 pixels, 174 to 183 of each class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_petl.errors import ConfigError


def load_digits(classes: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads the images of some classes, in scikit-learn's order.

    The source counts 0 to 16 dark pixels of each 4x4 cell. A count ``v`` becomes ``floor(255 v / 16)``, in integers:
    0 stays 0, 8 becomes 127 and 16 becomes 255, and all 17 levels stay apart.

    Args:
        classes: Digits, each once. Their order gives the labels: ``classes[i]`` gets label ``i``.

    Returns:
        Images ``(n, 8, 8)``, 0 to 255, ink bright on black; labels ``(n,)``, 0 to ``len(classes) - 1``.

    Raises:
        ConfigError: scikit-learn is missing, or ``classes`` is empty, repeats a digit or leaves 0 to 9.
    """
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise ConfigError(f"the classes are {list(classes)}", where="classes", fix="name digits 0 to 9, each once")
    images, digits = _source()
    chosen = np.isin(digits, classes)
    label_of = np.zeros(10, dtype=np.int64)
    label_of[list(classes)] = np.arange(len(classes))
    return (images[chosen].astype(np.int64) * 255 // 16).astype(np.uint8), label_of[digits[chosen]]


def _source() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images ``(1797, 8, 8)`` of whole numbers 0 to 16, and the digits ``(1797,)`` they show."""
    try:
        # Imported here: scikit-learn is an extra, and only the quickstart needs it.
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(
            "the handwritten digits come with scikit-learn, which is not installed",
            fix="pip install 'lightning-petl[demo]'",
        ) from error
    source = datasets.load_digits()
    return source.images, source.target.astype(np.int64)


def split(
    labels: NDArray[np.int64], train_per_class: int = 80, val_per_class: int = 30, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Splits a data set into three disjoint parts, each with equally many images of every class.

    The test part takes what the smallest class has left, of every class, so that accuracy is also the mean over
    classes; a few images of the larger classes go unused. The seed is the split's own: training with several seeds
    compares runs on the same images.

    Args:
        labels: ``(n,)``.
        train_per_class: Training images of each class.
        val_per_class: Validation images of each class; 0 for none.
        seed: Seed of the shuffle inside each class.

    Returns:
        Ascending indices into ``labels`` under "train", "val" and "test".

    Raises:
        ConfigError: A count is negative, or some class has no image left for the test part.
    """
    classes, counts = np.unique(labels, return_counts=True)
    smallest = int(counts.min(initial=len(labels)))
    if train_per_class < 0 or val_per_class < 0 or train_per_class + val_per_class >= smallest:
        raise ConfigError(
            f"{train_per_class} training and {val_per_class} validation images a class, of {smallest} in the smallest",
            where="train_per_class",
            fix="give counts of 0 or more that leave a test image in every class",
        )
    shuffle = np.random.default_rng(seed)
    # (classes, smallest): one shuffled row of indices for each class, cut to the length they share.
    rows = np.stack([shuffle.permutation(np.flatnonzero(labels == label))[:smallest] for label in classes])
    train, val, test = np.split(rows, [train_per_class, train_per_class + val_per_class], axis=1)
    return {name: np.sort(part, axis=None) for name, part in (("train", train), ("val", val), ("test", test))}
