"""The states of torch's random generators in a checkpoint, so that dropout goes on as if the fit had not stopped.

The data need none: what is random in a sample follows from the seed, the epoch and the sample.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor

KEY = "lightning_petl_random"
"""Where a checkpoint has them."""


def states(device: torch.device) -> list[dict[str, Tensor]]:
    """The states of all processes, each with its ``cpu`` and, where it trains on one, its ``cuda``.

    All processes have to call this together, as they do to save a checkpoint.
    """
    mine = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(device)
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return every


def restore(found: list[dict[str, Tensor]], device: torch.device, world: int, rank: int) -> None:
    """Goes on with the states of a checkpoint; says so where these are of another number of processes."""
    if len(found) != world:
        rank_zero_warn(
            f"the checkpoint is of {len(found)} processes, and these are {world}: dropout draws other numbers than a "
            "fit that had not stopped"
        )
        return
    torch.set_rng_state(found[rank]["cpu"])
    if device.type == "cuda" and "cuda" in found[rank]:
        torch.cuda.set_rng_state(found[rank]["cuda"], device)
