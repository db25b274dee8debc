"""What a split holds: samples in a fixed order, each read as an image, and the data set that feeds them to a loader."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_petl.data.images import decode
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.randomness import seeded
from lightning_petl.data.samplers import Draw
from lightning_petl.errors import DataError


class Sample(NamedTuple):
    """An image file.

    Attributes:
        path: The file.
        label: Class index, or -1 where none is known.
        line: Line of the list file that names it, from 1; 0 without a list.
    """

    path: str
    label: int
    line: int = 0


class Samples(ABC):
    """Samples with names, by index ``0..len - 1``; the order never changes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a report calls the sample."""

    def animated(self) -> Sequence[str]:
        """Names of the samples read so far, by any process, of which only the first frame was used."""
        return ()


class Source(Samples):
    """Images with labels."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def labels(self) -> Sequence[int]:
        """Class index of each sample."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Reads one image, mode RGB.

        Raises:
            DataError: It cannot be read. No other sample ever takes its place.
        """


class FileSource(Source):
    """Images in files.

    Args:
        split: Name of the split, for messages.
        samples: The files.
        root: Folder that `name` is relative to.
        limits: Image sizes to refuse.
        list_file: The list that the sample's lines count in.
    """

    def __init__(
        self,
        split: str,
        samples: Sequence[Sample],
        root: Path,
        limits: ImageLimits = DEFAULT_LIMITS,
        list_file: Path | None = None,
    ) -> None:
        self.split, self.samples, self.root, self.limits, self.list_file = split, samples, root, limits, list_file
        self._labels = [sample.label for sample in samples]
        # In shared memory: worker processes decode, and this one reports.
        self._animated = torch.zeros(len(samples), dtype=torch.bool)
        self._animated.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each file."""
        return self._labels

    def name(self, index: int) -> str:
        """The path relative to the root."""
        return os.path.relpath(self.samples[index].path, self.root)

    def image(self, index: int) -> Image.Image:
        """Decodes one file, see `lightning_petl.data.images`.

        Raises:
            DataError: Naming the file, the index and the line of the list.
        """
        sample = self.samples[index]
        try:
            image, frames = decode(sample.path, self.limits)
        except DataError as error:
            line = f", {self.list_file}:{sample.line}" if self.list_file else ""
            where = f"{error.where}, sample {index} of {self.split}{line}"
            raise DataError(error.what, where=where, fix=error.fix) from error
        if frames > 1:
            self._animated[index] = True
        return image

    def animated(self) -> Sequence[str]:
        """Paths, relative to the root, of the files with several frames that were read so far."""
        return [self.name(int(index)) for index in self._animated.nonzero()]


class ArraySource(Source):
    """Grey images in memory.

    Args:
        images: ``(n, h, w)``, 0 to 255.
        labels: ``(n,)``.
        names: One for each image.
    """

    def __init__(self, images: NDArray[np.uint8], labels: Sequence[int], names: Sequence[str]) -> None:
        self._images, self._labels, self._names = images, list(labels), names

    @property
    def labels(self) -> Sequence[int]:
        """Class index of each image."""
        return self._labels

    def name(self, index: int) -> str:
        """The name that was given."""
        return self._names[index]

    def image(self, index: int) -> Image.Image:
        """The image with its grey in all three channels."""
        return Image.fromarray(self._images[index]).convert("RGB")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as tensors, each with a number beside it.

    Args:
        source: The images.
        transform: Makes the tensor ``(3, H, W)``, float32.
        targets: The number of each sample: its label, or its index for prediction.
        seed: With the epoch and the index, all that decides the transform's random choices; None if it makes none.
    """

    def __init__(
        self, source: Source, transform: Callable[[Image.Image], Tensor], targets: Sequence[int], seed: int | None
    ) -> None:
        self.source, self.transform, self.targets, self.seed = source, transform, targets, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: int | Draw) -> tuple[Tensor, int]:
        """Reads one sample; a plain index is a draw in epoch 0.

        Raises:
            DataError: Its image cannot be read.
        """
        epoch, index = draw if isinstance(draw, Draw) else (0, draw)
        image = self.source.image(index)
        if self.seed is None:
            return self.transform(image), self.targets[index]
        # Not the worker's own stream: a sample then looks the same for any number of workers, and after a resume.
        with seeded(self.seed, epoch, index):
            return self.transform(image), self.targets[index]

    def __getitems__(self, draws: Sequence[int | Draw]) -> list[tuple[Tensor, int]] | DataError:
        """Reads a batch for a `Loader`, which raises the error that this returns.

        A worker's exception would reach the user as forty lines around the one that names the file.
        """
        try:
            return [self[draw] for draw in draws]
        except DataError as error:
            return error
