"""Batches of pixels that workers hand over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_petl.data.loading import Finished, Loader, collate, stacked

SHAPE = (3, 40, 56)


def pixels(index: int) -> Tensor:
    """Of its own for each index, and not in the order of memory."""
    generator = torch.Generator().manual_seed(index)
    return torch.randint(256, (*SHAPE[1:], SHAPE[0]), dtype=torch.uint8, generator=generator).movedim(-1, 0)


class Pixels(Dataset[Any], Finished):
    def __len__(self) -> int:
        return 10

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[int]]:
        return stacked(pixels(index) for index in indices), indices

    def finish(self, batch: tuple[Tensor, list[int]]) -> tuple[Tensor, list[int]]:
        return batch


@pytest.fixture(params=["file_descriptor", "file_system"])
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(request.param)
    yield request.param
    torch.multiprocessing.set_sharing_strategy(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_arrive_as_they_were_and_stay(strategy: str, workers: int) -> None:
    # All batches are kept: none may lie where a later one was written.
    batches = list(Loader(Pixels(), batch_size=4, num_workers=workers, collate_fn=collate))
    assert [indices for _, indices in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for found, indices in batches:
        assert found.shape == (len(indices), *SHAPE)
        assert (found.dtype, found.is_contiguous(), found.is_shared()) == (torch.uint8, True, workers > 0)
        assert all(torch.equal(row, pixels(index)) for row, index in zip(found, indices, strict=True))
        found += 1  # a batch may be changed in place
