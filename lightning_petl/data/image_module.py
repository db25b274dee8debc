"""The base of the image data modules: their options, and how files become tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypedDict

from lightning_petl.data.input_choice import InputChoice
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.module import PETLDataModule
from lightning_petl.data.sources import ImageDataset, Source
from lightning_petl.data.transforms import eval_transform as build_eval_transform
from lightning_petl.data.transforms import train_transform as build_train_transform

_ANY_INPUT = InputConfig((0.5,) * 3, (0.5,) * 3, (224, 224), "bicubic", 1.0)


class ImageOptions(TypedDict, total=False):
    """Options that all image data modules share.

    Args:
        batch_size: Images in a batch, of each process (default 64).
        num_workers: Processes that read images beside the training process; batches do not depend on it (default 0).
        image_size: Height and width of the input, pixels; null is the backbone's own (default null).
        normalization: "backbone", "imagenet" or "inception" (default backbone).
        mean: Explicit mean of each channel, in place of ``normalization`` (default null).
        std: Explicit standard deviation of each channel, with ``mean`` (default null).
        interpolation: Resampling filter (default bicubic).
        crop_pct: Part of the resized image that the centre crop keeps; null is the backbone's own (default null).
        train_transform: "resize", "crop" or "timm" (default resize).
        eval_transform: "resize", "crop" or "timm" (default resize).
        timm_args: Arguments of ``timm.data.create_transform`` for training with "timm" (default null).
        drop_last: Drop the training samples that do not fill a batch; another part in each epoch (default false).
        seed: Seed of the order and the augmentation of training images (default 0).
    """

    batch_size: int
    num_workers: int
    image_size: int | None
    normalization: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str
    crop_pct: float | None
    train_transform: str
    eval_transform: str
    timm_args: dict[str, bool | int | float | str | list[float] | None] | None
    drop_last: bool
    seed: int


class ImageDataModule(PETLDataModule):
    """Image classification data; the options are those of `ImageOptions`.

    Training, validation and test batches are ``(images (B, 3, H, W) float32, labels (B,) int64)``. Prediction batches
    have indices in place of labels: ``predict_names[i]`` is the sample's name.

    On several processes this module deals out the samples itself, whatever ``Trainer(use_distributed_sampler=...)``
    says: training sees the global batches of one process, evaluation sees every sample once (see `samplers`).

    A subclass calls ``super().__init__(**options)`` and gives `classes` and `source`.
    """

    gives = "images"

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        image_size: int | None = None,
        normalization: str = "backbone",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        train_transform: str = "resize",
        eval_transform: str = "resize",
        timm_args: dict[str, bool | int | float | str | list[float] | None] | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        build_train_transform(train_transform, _ANY_INPUT, timm_args)  # wrong arguments show here, not in epoch 1
        choice = InputChoice(image_size, normalization, mean, std, interpolation, crop_pct, eval_transform)
        super().__init__(choice, batch_size, num_workers, drop_last, seed)
        self.train_transform, self.timm_args = train_transform, timm_args

    @abstractmethod
    def source(self, split: str) -> Source | None:
        """The images of "train", "val", "test" or "predict"; None where the data set has no such split."""

    def check_input(self) -> None:
        """Builds the transform of evaluation, which raises where it cannot be.

        Raises:
            ConfigError: Something is left to the backbone, and none is known; or the settings contradict each other.
        """
        build_eval_transform(self.input_config)

    def train_dataset(self) -> ImageDataset:
        """The training images under the training transform, with their labels."""
        source = self._images("train")
        transform = build_train_transform(self.train_transform, self.input_config, self.timm_args)
        seed = (
            None if self.train_transform == "resize" else self.seed
        )  # seeding takes a fifth of a millisecond a sample
        return ImageDataset(source, transform, source.labels, seed)

    def eval_dataset(self, split: str) -> ImageDataset:
        """The images of a split under the transform of evaluation, with their labels, or for prediction indices."""
        source = self._images(split)
        targets: Sequence[int] = range(len(source)) if split == "predict" else source.labels
        return ImageDataset(source, build_eval_transform(self.input_config), targets, seed=None)

    def _images(self, split: str) -> Source:
        source = self._require(split)
        assert isinstance(source, Source)  # by `source`
        return source
