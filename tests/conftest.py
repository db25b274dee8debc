"""What all tests of the core share."""

from __future__ import annotations

import pytest
import torch

# Two cores run two workers; threads of their own would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
