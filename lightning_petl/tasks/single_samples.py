"""Training batches of one sample, which a BatchNorm may not take: refused before the first step, not at an epoch's end.

In training a BatchNorm needs more than one value of each channel. A sample gives one where it is pooled to a single
place, as in UPerNet's head or over the frames of a clip, or where the grid is of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_petl import probe
from lightning_petl.errors import ConfigError


def refuse_single(trainer: pl.Trainer, model: nn.Module, run: Callable[[Tensor], Any], batch: Any) -> None:
    """Runs one sample, in evaluation mode and without gradients, if training is to have a batch of one.

    Args:
        trainer: Of the running fit.
        model: What is trained, in the modes that it trains in.
        run: Runs what a training step runs of the model.
        batch: A training batch, whose first part is what the model takes, ``(batch, ...)``.

    Raises:
        ConfigError: There is such a batch, and a BatchNorm would see one value of each channel.
    """
    fix = _single(trainer.train_dataloader, trainer.num_training_batches)
    if fix:
        with _counting(model, trainer.world_size > 1, fix), probe.evaluation(model):
            run(batch[0][:1])


def _single(loader: Any, batches: float) -> str:
    """How to avoid the batches of one sample among the first so many of a loader; empty where there are none."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return ""
    if loader.batch_size == 1:
        return "give 2 or more, or choose a head without it"
    if loader.drop_last or isinstance(loader.dataset, IterableDataset):
        return ""
    samples = len(loader.sampler)  # type: ignore[arg-type]
    if samples % loader.batch_size != 1 or batches * loader.batch_size < samples:
        return ""
    return f"set data.drop_last to true, or another data.batch_size: of {samples} samples one is left over at the end"


@contextmanager
def _counting(model: nn.Module, several_processes: bool, fix: str) -> Iterator[None]:
    """Looks at what each BatchNorm that is in training mode is given."""
    handles = []
    for name, module in model.named_modules():
        synchronised = isinstance(module, nn.SyncBatchNorm) and several_processes
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and not synchronised:
            handles.append(module.register_forward_pre_hook(_counter(name, fix)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counter(name: str, fix: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].numel() == given[0].shape[1]:
            layer = f"{name} ({type(module).__name__})"
            what = f"a training batch has one sample, and {layer} needs several values of a channel"
            raise ConfigError(what, where="data.batch_size", fix=fix)

    return count
