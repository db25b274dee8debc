"""The base of the segmentation data modules: their options, and how pairs of files become batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_petl.adapter import JSON
from lightning_petl.data.input_choice import InputChoice
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.module import PETLDataModule
from lightning_petl.data.randomness import seeded
from lightning_petl.data.samplers import Draw
from lightning_petl.data.segmentation.masks import IGNORED
from lightning_petl.data.segmentation.pairs import PairSource
from lightning_petl.data.segmentation.transforms import Augmentation, EvalTransform, TrainTransform
from lightning_petl.errors import ConfigError, DataError

TrainBatch = tuple[Tensor, Tensor]
"""Images ``(B, 3, H, W)``, float32, and masks ``(B, H, W)``, int64."""

EvalBatch = tuple[list[Tensor], list[Tensor]]
"""Images ``(3, h, w)``, float32, and masks ``(H0, W0)``, int64, of the sizes of their files; one of each a sample."""

PredictBatch = tuple[list[Tensor], Tensor, list[tuple[int, int]]]
"""Images ``(3, h, w)``, indices ``(B,)``, int64, and the heights and widths of the image files."""


class SegmentationOptions(TypedDict, total=False):
    """Options that all segmentation data modules share.

    Args:
        batch_size: Images in a batch, of each process (default 16).
        num_workers: Processes that read files beside the training process; batches do not depend on it (default 0).
        image_size: Height and width of the training crop, pixels; null is the backbone's own (default null).
        short_side: Pixels that the shorter side is resized to, before the random factor in training and in evaluation
            with "short"; null is ``image_size`` (default null).
        normalization: "backbone", "imagenet" or "inception" (default backbone).
        mean: Explicit mean of each channel, in place of ``normalization`` (default null).
        std: Explicit standard deviation of each channel, with ``mean`` (default null).
        interpolation: Resampling filter of images; masks take the nearest pixel (default bilinear).
        eval_transform: "short" resizes the shorter side, "original" leaves images as they are (default short).
        scale: Smallest and largest random factor of the shorter side in training (default [0.5, 2]).
        cat_max_ratio: Part of a training crop that no class may reach; 1 takes every crop, also one without any class
            (default 0.75).
        flip: Probability of a horizontal flip in training (default 0.5).
        photometric: Random brightness, contrast, saturation and hue in training (default true).
        drop_last: Drop the training samples that do not fill a batch; another part in each epoch (default false).
        seed: Seed of the order and the augmentation of training samples (default 0).
    """

    batch_size: int
    num_workers: int
    image_size: int | None
    short_side: int | None
    normalization: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str
    eval_transform: str
    scale: tuple[float, float]
    cat_max_ratio: float
    flip: float
    photometric: bool
    drop_last: bool
    seed: int


@dataclass(frozen=True)
class SceneChoice(InputChoice):
    """An `InputChoice` whose shorter side is resized to its own number of pixels, not to the input's size."""

    kinds: ClassVar[tuple[str, ...]] = EvalTransform.KINDS

    short_side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.short_side is not None and self.short_side < 1:
            raise ConfigError(
                f"short_side is {self.short_side}", where="data.short_side", fix="give pixels of 1 or more"
            )

    def resolve(self, backbone: InputConfig | None) -> InputConfig:
        """As for images; ``crop_pct`` is what the crop is of the resized shorter side.

        Raises:
            ConfigError: As for images; or ``short_side`` is less than the crop.
        """
        config = super().resolve(backbone)
        size = min(config.image_size)
        if self.short_side is None:
            return config
        if self.short_side < size:
            raise ConfigError(
                f"short_side is {self.short_side}, and the crop {size}",
                where="data.short_side",
                fix="give at least data.image_size (padding fills up what random factors below 1 leave free)",
            )
        return replace(config, crop_pct=size / self.short_side)


class SegmentationDataModule(PETLDataModule):
    """Images with a class for each pixel; the options are those of `SegmentationOptions`.

    - Training batches are ``(images (B, 3, H, W) float32, masks (B, H, W) int64)``.
    - Validation and test batches are lists, one entry a sample: images ``(3, h, w)`` and masks ``(H0, W0)``. The masks
      have the size of their files, which scores are about, whatever size the model sees.
    - Prediction batches are ``(images, indices (B,), sizes)``, with a list of images ``(3, h, w)`` and one of the sizes
      ``(H0, W0)`` of their files; ``predict_names[i]`` is the sample's name.

    Masks hold classes, and `ignore_index` where there is none. A crop in which no pixel has a class is legal: a loss
    has to give 0 for it.

    A subclass calls ``super().__init__(**options)`` and `fill`.
    """

    files = "images"
    gives = "images with masks"

    ignore_index = IGNORED
    """The id of pixels without a class in the masks of batches, whatever it is in the files."""

    def __init__(
        self,
        batch_size: int = 16,
        num_workers: int = 0,
        image_size: int | None = None,
        short_side: int | None = None,
        normalization: str = "backbone",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str = "bilinear",
        eval_transform: str = "short",
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        choice = SceneChoice(
            image_size, normalization, mean, std, interpolation, 1.0, eval_transform, short_side=short_side
        )
        super().__init__(choice, batch_size, num_workers, drop_last, seed)
        self.augmentation = Augmentation((scale[0], scale[1]), cat_max_ratio, flip, photometric)

    def fill(self, classes: Sequence[str], palette: NDArray[np.uint8], sources: Mapping[str, PairSource]) -> None:
        """Takes the scenes of the data set; called once, by the constructor of a subclass.

        Args:
            classes: Names of the classes.
            palette: A colour for each class, ``(classes, 3)``, red, green and blue.
            sources: The pairs of each split.
        """
        self._classes, self._palette, self._sources = tuple(classes), palette, dict(sources)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; id ``i`` is ``classes[i]``."""
        return self._classes

    @property
    def palette(self) -> NDArray[np.uint8]:
        """A colour for each class, ``(classes, 3)``, red, green and blue: the data set's own where it has one."""
        return self._palette

    def source(self, split: str) -> PairSource | None:
        """The pairs of "train", "val", "test" or "predict"; None where the data set has no such split."""
        return self._sources.get(split)

    def inputs_record(self) -> dict[str, JSON]:
        """How images become inputs, ``input``, and what the ids of masks in files mean, ``masks``."""
        rule = next(iter(self._sources.values())).rule
        masks: dict[str, JSON] = {"reduce_zero_label": rule.reduce_zero_label, "ignore_index": rule.ignore_index}
        return {**super().inputs_record(), "masks": masks}

    def check_input(self) -> None:
        """Builds the transform of evaluation, which raises where it cannot be.

        Raises:
            ConfigError: Something is left to the backbone, and none is known; or the settings contradict each other.
        """
        EvalTransform(self.input_config)

    def train_dataset(self) -> TrainDataset:
        """The training pairs under the random transform."""
        return TrainDataset(self._pairs("train"), TrainTransform(self.input_config, self.augmentation), self.seed)

    def eval_dataset(self, split: str) -> EvalDataset | PredictDataset:
        """The pairs of a split, images under the transform of evaluation; for prediction images alone."""
        kind = PredictDataset if split == "predict" else EvalDataset
        return kind(self._pairs(split), EvalTransform(self.input_config))

    def collate(self, split: str) -> Callable[[Any], Any]:
        """Stacks samples of one size in training, and lists the others."""
        return {"train": _stacked, "predict": _listed_to_predict}.get(split, _listed)

    def _pairs(self, split: str) -> PairSource:
        source = self._require(split)
        assert isinstance(source, PairSource)  # by `source`
        return source


class _Pairs(Dataset[Any]):
    """Samples of a source, read a batch at a time, so that a worker's `DataError` comes through as it was made."""

    def __init__(self, source: PairSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: Sequence[int | Draw]) -> list[Any] | DataError:
        try:
            return [self[draw] for draw in draws]
        except DataError as error:
            return error


class TrainDataset(_Pairs):
    """Random crops of images and masks.

    Args:
        source: The pairs.
        transform: Makes ``(3, H, W)``, float32, and ``(H, W)``, int64.
        seed: With the epoch and the index, all that decides the transform's draws.
    """

    def __init__(self, source: PairSource, transform: TrainTransform, seed: int) -> None:
        super().__init__(source)
        self.transform, self.seed = transform, seed

    def __getitem__(self, draw: int | Draw) -> tuple[Tensor, Tensor]:
        """Reads one sample; a plain index is a draw in epoch 0.

        Raises:
            DataError: A file cannot be read, the sizes differ, or the mask has ids without a class.
        """
        epoch, index = draw if isinstance(draw, Draw) else (0, draw)
        image, mask = self.source.sample(index)
        # Not the worker's own stream: a sample then looks the same for any number of workers, and after a resume.
        with seeded(self.seed, epoch, index):
            return self.transform(image, mask)


class EvalDataset(_Pairs):
    """Images ``(3, h, w)``, with masks ``(H0, W0)`` of their files' size.

    Args:
        source: The pairs.
        transform: Makes the image's tensor.
    """

    def __init__(self, source: PairSource, transform: EvalTransform) -> None:
        super().__init__(source)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Reads one sample.

        Raises:
            DataError: A file cannot be read, the sizes differ, or the mask has ids without a class.
        """
        image, mask = self.source.sample(index)
        return self.transform(image), torch.from_numpy(mask).long()


class PredictDataset(_Pairs):
    """Images ``(3, h, w)``, with their index and the height and width of their file.

    Args:
        source: The pairs, whose masks are not read.
        transform: Makes the image's tensor.
    """

    def __init__(self, source: PairSource, transform: EvalTransform) -> None:
        super().__init__(source)
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int, tuple[int, int]]:
        """Reads one image.

        Raises:
            DataError: It cannot be read.
        """
        image = self.source.image(index)
        return self.transform(image), index, (image.height, image.width)


def _stacked(samples: list[tuple[Tensor, Tensor]] | DataError) -> TrainBatch | DataError:
    if isinstance(samples, DataError):
        return samples
    images, masks = default_collate(samples)
    return images, masks


def _listed(samples: list[tuple[Tensor, Tensor]] | DataError) -> EvalBatch | DataError:
    if isinstance(samples, DataError):
        return samples
    return [image for image, _ in samples], [mask for _, mask in samples]


def _listed_to_predict(samples: list[tuple[Tensor, int, tuple[int, int]]] | DataError) -> PredictBatch | DataError:
    if isinstance(samples, DataError):
        return samples
    images, indices, sizes = zip(*samples, strict=True)
    return list(images), torch.tensor(indices), list(sizes)
