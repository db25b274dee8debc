"""Which sample goes where: orders that follow from seed and epoch alone, for one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import NamedTuple

import torch
from torch.utils.data import DistributedSampler

from lightning_petl.data.randomness import mixed
from lightning_petl.errors import ConfigError


class Draw(NamedTuple):
    """A sample in an epoch. The epoch travels with the index, so that worker processes know it."""

    epoch: int
    sample: int


def _none_done() -> int:
    return 0


class EpochSampler(DistributedSampler[Draw]):
    """Training order: a permutation that follows from ``(seed, epoch)``, dealt out to the processes in turn.

    Process ``r`` of ``w`` takes every ``w``-th sample from the ``r``-th. So batch ``k`` of all processes together,
    ``b`` samples each, is batch ``k`` of one process with batches of ``w b``: training on several processes sees the
    global batches of one. Where ``w`` does not divide the samples, the first of the permutation fill up the end, or
    with ``drop_last`` the end is dropped (`repeated`).

    A subclass of DistributedSampler because Lightning leaves those alone; in one process it is used all the same.

    Args:
        samples: The data set; only its length counts.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: This process.
        drop_last: Drop the tail that the processes cannot share evenly.
        done: Tells how many batches of the current epoch the trainer has behind it; asked after a resume only.
    """

    def __init__(
        self,
        samples: Sized,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        done: Callable[[], int] = _none_done,
    ) -> None:
        super().__init__(samples, num_replicas, rank, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self._done = done
        self._recorded: Mapping[str, int] | None = None
        self._skip = 0

    @property
    def repeated(self) -> int:
        """Samples of an epoch that all processes together see twice."""
        return max(0, self.total_size - len(self.dataset))  # type: ignore[arg-type]

    def order(self, batch_size: int) -> dict[str, int]:
        """What the global batches follow from, besides the epoch; a checkpoint keeps it."""
        samples = len(self.dataset)  # type: ignore[arg-type]
        return {"samples": samples, "seed": self.seed, "batch_size": batch_size * self.num_replicas}

    def resume(self, recorded: Mapping[str, int]) -> None:
        """Makes the next pass, and only that, start behind the batches that were done when ``recorded`` was saved."""
        self._recorded = dict(recorded)

    def start(self, batch_size: int) -> None:
        """Called as a pass starts, when the loops know the epoch and how far it was.

        Raises:
            ConfigError: The pass continues an epoch whose order was another, so that samples would come twice.
        """
        recorded, self._recorded = self._recorded, None
        done = 0 if recorded is None else self._done()
        if recorded is not None and done and recorded != self.order(batch_size):
            now = self.order(batch_size)
            changed = [name for name in now if recorded.get(name) != now[name]]
            raise ConfigError(
                f"the checkpoint is {done} batches into an epoch with "
                + ", ".join(f"{name}={recorded.get(name)} (now {now[name]})" for name in changed),
                where=f"data.{changed[0]}",
                fix="resume with the same values (batch_size counts all processes) or from the end of an epoch",
            )
        self._skip = done * batch_size

    def __iter__(self) -> Iterator[Draw]:
        order = torch.randperm(
            len(self.dataset),  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(mixed(self.seed, self.epoch)),
        )
        # Repeated as often as it takes: there may be more processes than samples.
        filled = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        mine = filled[self.rank :: self.num_replicas][self._skip :]
        return (Draw(self.epoch, sample) for sample in mine.tolist())


class UnpaddedSampler(DistributedSampler[int]):
    """Evaluation order: process ``r`` of ``w`` takes samples ``r, r + w, ...``; none is left out or counted twice.

    The processes' numbers of samples, and of batches, may differ by one: no code may talk between processes in a step.

    Args:
        samples: The data set; only its length counts.
        num_replicas: Number of processes.
        rank: This process.
    """

    def __init__(self, samples: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(samples, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        self._mine = range(rank, len(samples), num_replicas)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)
