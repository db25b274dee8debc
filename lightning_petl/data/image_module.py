"""The base of the image data modules: options, input settings, loaders."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypedDict

import torch
import torch.distributed as dist
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import SequentialSampler

from lightning_petl.data.input_choice import InputChoice
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.loading import Batch, Loader, collate
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.samplers import EpochSampler, UnpaddedSampler
from lightning_petl.data.sources import ImageDataset, Source
from lightning_petl.data.transforms import eval_transform as build_eval_transform
from lightning_petl.data.transforms import train_transform as build_train_transform
from lightning_petl.errors import ConfigError, DataError

_SPLIT_OF = {"fit": "train", "validate": "val"}
"""Lightning's names of stages that differ from the names of the splits they read."""

_ANY_INPUT = InputConfig((0.5,) * 3, (0.5,) * 3, (224, 224), "bicubic", 1.0)

_NEEDED = {"fit": ("train",), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


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


class ImageDataModule(LightningDataModule, ABC):
    """Image classification data; the options are those of `ImageOptions`.

    Training, validation and test batches are ``(images (B, 3, H, W) float32, labels (B,) int64)``. Prediction batches
    have indices in place of labels: ``predict_names[i]`` is the sample's name.

    On several processes this module deals out the samples itself, whatever ``Trainer(use_distributed_sampler=...)``
    says: training sees the global batches of one process, evaluation sees every sample once (see `samplers`).

    A subclass calls ``super().__init__(**options)`` and gives `classes` and `source`.
    """

    split_suffix: ClassVar[str] = ""
    """What follows the name of a split in the option that gives it, for messages."""

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
        super().__init__()
        for option, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{option} is {value}", where=f"data.{option}", fix=f"give {least} or more")
        build_train_transform(train_transform, _ANY_INPUT, timm_args)  # wrong arguments show here, not in epoch 1
        self.batch_size, self.num_workers, self.drop_last, self.seed = batch_size, num_workers, drop_last, seed
        self.train_transform, self.timm_args = train_transform, timm_args
        self._choice = InputChoice(image_size, normalization, mean, std, interpolation, crop_pct, eval_transform)
        self._backbone: InputConfig | None = None
        self._reported: list[Source] = []

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names; label ``i`` is ``classes[i]``. Known before any setup."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @abstractmethod
    def source(self, split: str) -> Source | None:
        """The samples of "train", "val", "test" or "predict"; None where the data set has no such split."""

    @property
    def input_config(self) -> InputConfig:
        """What images are turned into: the options, with the backbone's own settings where they leave a choice.

        The backbone's settings are the ``input_config`` of the trainer's task. Without a trainer, set this property to
        them; the options go on taking precedence.

        Raises:
            ConfigError: Something is left to the backbone, and none is known; or task and given setting differ.
        """
        task = self._task_config()
        if task is not None and self._backbone not in (None, task):
            raise ConfigError(
                "the input settings given by hand are not those of the task's backbone",
                where="input_config",
                fix="leave them to the task, and use options such as data.normalization to depart from them",
            )
        return self._choice.resolve(task or self._backbone)

    @input_config.setter
    def input_config(self, backbone: InputConfig) -> None:
        self._backbone = backbone

    def _task_config(self) -> InputConfig | None:
        # `lightning_module` is None for a trainer that has not met its model.
        config = getattr(self.trainer and self.trainer.lightning_module, "input_config", None)
        return config if isinstance(config, InputConfig) else None

    def setup(self, stage: str) -> None:
        """Checks, before the first batch, that the input settings are known and that the stage has its split.

        Raises:
            ConfigError: Something is left to the backbone, and none is known.
            DataError: The data set has no such split.
        """
        build_eval_transform(self.input_config)
        for split in _NEEDED.get(stage, ()):
            self._require(split)

    def n_expected(self, stage: str) -> int:
        """Number of samples that a whole pass over a split scores, over all processes.

        Args:
            stage: A split ("train", "val", "test", "predict") or Lightning's name of a stage ("fit", "validate").

        Raises:
            DataError: The data set has no such split.
        """
        return len(self._require(_SPLIT_OF.get(stage, stage)))

    @property
    def predict_names(self) -> tuple[str, ...]:
        """Name of each sample of prediction, by the index that comes with it in a batch."""
        source = self._require("predict")
        return tuple(source.name(index) for index in range(len(source)))

    def train_dataloader(self) -> Loader:
        """Batches of shuffled training images, by an order that follows from the seed and the epoch."""
        source = self._require("train")
        transform = build_train_transform(self.train_transform, self.input_config, self.timm_args)
        seed = (
            None if self.train_transform == "resize" else self.seed
        )  # seeding takes a fifth of a millisecond a sample
        dataset = ImageDataset(source, transform, source.labels, seed)
        world, rank = self._place()
        sampler = EpochSampler(dataset, self.seed, world, rank, self.drop_last, self._batches_done)
        self._check_batches(sampler, world)
        return self._loader(dataset, sampler, self.drop_last)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of validation images in order; none where fitting goes without a validation split."""
        if self.source("val") is None and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return []
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        """Batches of test images in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Loader:
        """Batches of images and their indices, in order."""
        return self._eval_loader("predict")

    def teardown(self, stage: str) -> None:
        """Says how many files had several frames, once for each split."""
        for split in ("train", "val", "test", "predict"):
            source = self.source(split)
            names = source.animated() if source is not None and source not in self._reported else ()
            if source is not None and names:
                self._reported.append(source)
                warnings.warn(
                    f"{len(names)} files of {split} have several frames, of which the first is used: "
                    f"{listed(names, shown=3)}",
                    DataWarning,
                    stacklevel=2,
                )

    def _require(self, split: str) -> Source:
        source = self.source(split)
        if source is None:
            option = f"data.{split}" if split == "predict" else f"data.{split}{self.split_suffix}"
            raise DataError(f"the data set has no {split} split", where=option, fix=f"set {option}")
        return source

    def _eval_loader(self, split: str) -> Loader:
        source = self._require(split)
        targets: Sequence[int] = range(len(source)) if split == "predict" else source.labels
        dataset = ImageDataset(source, build_eval_transform(self.input_config), targets, seed=None)
        world, rank = self._place()
        if len(source) < world:
            raise DataError(
                f"the {split} split has {len(source)} samples for {world} processes",
                where=f"data.{split}",
                fix="use fewer processes: one without samples would leave the others waiting",
            )
        sampler = SequentialSampler(dataset) if world == 1 else UnpaddedSampler(dataset, world, rank)
        return self._loader(dataset, sampler, drop_last=False)

    def _loader(
        self, dataset: ImageDataset, sampler: EpochSampler | UnpaddedSampler | SequentialSampler, drop_last: bool
    ) -> Loader:
        collate_fn: Callable[..., Batch | DataError] = collate
        return Loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            persistent_workers=self.num_workers > 0,
            # Its own, or each pass would draw one number from the stream that the model's dropout reads.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _check_batches(self, sampler: EpochSampler, world: int) -> None:
        samples, batch = sampler.order(self.batch_size)["samples"], self.batch_size * world
        if self.drop_last and samples < batch:
            raise ConfigError(
                f"drop_last leaves nothing of {samples} training samples in batches of {batch}",
                where="data.drop_last",
                fix="lower data.batch_size or set data.drop_last to false",
            )
        if sampler.repeated and sampler.rank == 0:
            warnings.warn(
                f"{sampler.repeated} of {samples} training samples come twice in an epoch, to give {world} processes "
                "equally many; data.drop_last leaves some out instead",
                DataWarning,
                stacklevel=3,
            )

    def _place(self) -> tuple[int, int]:
        """Number of processes that share the data, and the number of this one."""
        if self.trainer is not None and (kwargs := self.trainer.distributed_sampler_kwargs) is not None:
            return int(kwargs["num_replicas"]), int(kwargs["rank"])
        if self.trainer is None and dist.is_available() and dist.is_initialized():
            return dist.get_world_size(), dist.get_rank()
        return 1, 0

    def _batches_done(self) -> int:
        return 0 if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
