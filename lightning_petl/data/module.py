"""The base of all data modules: what samples there are, how they are dealt out, and the loaders."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import Dataset, SequentialSampler

from lightning_petl.adapter import JSON
from lightning_petl.data.input_choice import InputChoice
from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.loading import Loader, collate
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.samplers import EpochSampler, UnpaddedSampler
from lightning_petl.data.sources import Samples
from lightning_petl.errors import ConfigError, DataError

_SPLIT_OF = {"fit": "train", "validate": "val"}
"""Lightning's names of stages that differ from the names of the splits they read."""

_NEEDED = {"fit": ("train",), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class PETLDataModule(LightningDataModule, ABC):
    """What image, video and segmentation data share.

    On several processes this module deals out the samples itself, whatever ``Trainer(use_distributed_sampler=...)``
    says: training sees the global batches of one process, evaluation sees every sample once (see `samplers`).

    A subclass gives `classes`, `source`, `train_dataset`, `eval_dataset` and `check_input`, and where its samples are
    no pairs of a tensor and a number, `collate`.

    Args:
        choice: What the user chose about the input.
        batch_size: Samples in a batch, of each process.
        num_workers: Processes that read samples beside the training process.
        drop_last: Drop the training samples that do not fill a batch.
        seed: Seed of the order and the augmentation of training samples.

    Raises:
        ConfigError: A number is out of its range.
    """

    files: ClassVar[str] = "files"
    """What its samples are, for messages."""

    gives: ClassVar[str] = ""
    """Its samples with their labels, which a task may not take; empty where any task may take them."""

    split_suffix: ClassVar[str] = ""
    """What follows the name of a split in the option that gives it, for messages."""

    def __init__(self, choice: InputChoice, batch_size: int, num_workers: int, drop_last: bool, seed: int) -> None:
        super().__init__()
        for option, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{option} is {value}", where=f"data.{option}", fix=f"give {least} or more")
        self.batch_size, self.num_workers, self.drop_last, self.seed = batch_size, num_workers, drop_last, seed
        self._choice = choice
        self._backbone: InputConfig | None = None
        self._reported: list[Samples] = []

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names; label ``i`` is ``classes[i]``. Known before any setup."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @abstractmethod
    def source(self, split: str) -> Samples | None:
        """The samples of "train", "val", "test" or "predict"; None where the data set has no such split."""

    @abstractmethod
    def train_dataset(self) -> Dataset[Any]:
        """The training samples as a loader takes them; its index is a `samplers.Draw`."""

    @abstractmethod
    def eval_dataset(self, split: str) -> Dataset[Any]:
        """The samples of "val", "test" or "predict" as a loader takes them."""

    @abstractmethod
    def check_input(self) -> None:
        """Checks, before the first batch, that samples can be turned into the model's input.

        Raises:
            ConfigError: They cannot.
        """

    def collate(self, split: str) -> Callable[[Any], Any]:
        """What makes a batch of a split from a list of samples; it passes a `DataError` on."""
        return collate

    def record(self) -> dict[str, object]:
        """What a results file says about the data, as JSON values; called on every process, since it may count."""
        return {}

    def inputs_record(self) -> dict[str, JSON]:
        """How samples become inputs, as JSON values for the header of a file: ``input``, the `input_config`.

        Raises:
            ConfigError: See `input_config`.
        """
        return {"input": cast(JSON, self.input_config.to_dict())}

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
        self.check_input()
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
        """Batches of shuffled training samples, by an order that follows from the seed and the epoch."""
        dataset = self.train_dataset()
        world, rank = self._place()
        sampler = EpochSampler(self._require("train"), self.seed, world, rank, self.drop_last, self._batches_done)
        self._check_batches(sampler, world)
        return self._loader(dataset, sampler, "train")

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of validation samples in order; none where fitting goes without a validation split."""
        if self.source("val") is None and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return []
        return self._eval_loader("val")

    def test_dataloader(self) -> Loader:
        """Batches of test samples in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Loader:
        """Batches of samples and their indices, in order."""
        return self._eval_loader("predict")

    def _require(self, split: str) -> Samples:
        source = self.source(split)
        if source is None:
            option = f"data.{split}" if split == "predict" else f"data.{split}{self.split_suffix}"
            raise DataError(f"the data set has no {split} split", where=option, fix=f"set {option}")
        return source

    def _eval_loader(self, split: str) -> Loader:
        source = self._require(split)
        dataset = self.eval_dataset(split)
        world, rank = self._place()
        if len(source) < world:
            raise DataError(
                f"the {split} split has {len(source)} samples for {world} processes",
                where=f"data.{split}",
                fix="use fewer processes: one without samples would leave the others waiting",
            )
        sampler = SequentialSampler(source) if world == 1 else UnpaddedSampler(source, world, rank)
        return self._loader(dataset, sampler, split)

    def _loader(
        self, dataset: Dataset[Any], sampler: EpochSampler | UnpaddedSampler | SequentialSampler, split: str
    ) -> Loader:
        return Loader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate(split),
            pin_memory=torch.cuda.is_available(),
            drop_last=self.drop_last and split == "train",
            persistent_workers=self.num_workers > 0,
            # Its own, or each pass would draw one number from the stream that the model's dropout reads.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def teardown(self, stage: str) -> None:
        """Says how many files had several frames, once for each split."""
        for split in ("train", "val", "test", "predict"):
            source = self.source(split)
            names = source.animated() if source is not None and source not in self._reported else ()
            if source is not None and names:
                self._reported.append(source)
                warnings.warn(
                    f"{len(names)} {self.files} of {split} have several frames, of which the first is used: "
                    f"{listed(names, shown=3)}",
                    DataWarning,
                    stacklevel=2,
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
