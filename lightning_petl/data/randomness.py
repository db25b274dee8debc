"""Random choices that follow from what they are for, not from which process makes them or what ran before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed(*key: int) -> int:
    """A 64-bit seed from several numbers of 0 or more; neighbouring keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the CPU generators of torch, NumPy and Python from a key, and puts them back afterwards.

    torch.manual_seed would not do: it also seeds the accelerators, whose generators the model's dropout reads.
    """
    states = np.random.get_state(), random.getstate()
    seed = mixed(*key)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        with torch_seeded(*key):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextmanager
def torch_seeded(*key: int) -> Iterator[None]:
    """As `seeded`, for torch alone: in a tenth of the time, which counts for samples of some milliseconds."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(mixed(*key))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
