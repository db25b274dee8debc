"""The loader: batches of tensors in, one-line errors out."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info

from lightning_petl.data.samplers import EpochSampler
from lightning_petl.errors import DataError

Batch = tuple[Tensor, Tensor]
"""Images ``(B, 3, H, W)`` or clips, float32, and numbers ``(B,)``, int64."""


def collate(items: list[tuple[Tensor, int]] | Batch | DataError) -> Batch | DataError:
    """Stacks the samples of a batch, in shared memory if in a worker; a batch or an error passes through."""
    if isinstance(items, DataError | tuple):
        return items
    images, numbers = default_collate(items)
    return images, numbers


def stacked(rows: Iterable[Tensor]) -> Tensor:
    """Stacks the pixels of a batch; in a worker on Linux into shared memory, which is handed over without a copy.

    New memory that is mapped interrupts a program at each page that it touches, for longer than the copy takes. So what
    will be the memory is written as a file first.

    Args:
        rows: Of one shape, uint8, one or more; taken one after the other.
    """
    multiprocessing: Any = torch.multiprocessing
    by_file = sys.platform == "linux" and multiprocessing.get_sharing_strategy() == "file_descriptor"
    if get_worker_info() is None or not by_file:
        return torch.stack(list(rows))
    with os.fdopen(os.memfd_create("batch"), "wb") as file:
        for row in rows:
            file.write(row.contiguous().numpy().data)
        file.flush()
        storages: Any = torch.UntypedStorage
        storage = storages._new_shared_fd_cpu(file.fileno(), file.tell())  # as torch takes what workers made
    batch: Tensor = torch.empty(0, dtype=torch.uint8).set_(storage).view(-1, *row.shape)
    return batch


class Finished(ABC):
    """A data set whose batches are finished in the process that trains, because they grow by it."""

    @abstractmethod
    def finish(self, batch: Any) -> Any:
        """Makes what a `Loader` yields of what its workers handed over."""


class Loader(DataLoader[Any]):
    """A DataLoader that starts late and raises a worker's `DataError` as it was made.

    No ``__init__`` and no attributes of its own: Lightning rebuilds loaders from what DataLoader has.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of an epoch.

        Raises:
            DataError: A sample cannot be read.
        """
        # A generator: nothing below runs before the first batch is asked for. Lightning makes the iterator of a resumed
        # epoch before it tells the sampler which epoch it is, and workers would by then have fetched from epoch 0.
        if isinstance(self.sampler, EpochSampler):
            self.sampler.start(self.batch_size or 1)
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield self.dataset.finish(batch) if isinstance(self.dataset, Finished) else batch

    def state_dict(self) -> dict[str, int]:
        """What the order of samples follows from. The place in it is not kept: the trainer counts its batches."""
        return self.sampler.order(self.batch_size or 1) if isinstance(self.sampler, EpochSampler) else {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lightning calls this on a resume, before the first batch: the pass continues where the trainer stopped."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.resume(state)
