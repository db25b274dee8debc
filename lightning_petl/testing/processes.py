"""What the contract suite runs in other processes: loading a file where nothing was built before, and training by two.

Two processes are started once, when a test first needs them, and serve all tests of a session.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_petl.adapter import Method
from lightning_petl.injection import inject, trainable
from lightning_petl.store import load_adapter
from lightning_petl.testing import checks

STEPS, LEARNING_RATE = 2, 0.1

P = ParamSpec("P")
R = TypeVar("R")


@cache
def _pool() -> ProcessPoolExecutor:
    """Spawned, not forked: a plugin must not rely on what the test's own process holds."""
    return ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)


def run(function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Calls a function in another process; classes in its arguments are imported there."""
    return _pool().submit(function, *arguments, **keywords).result()


def outputs_of_file(method: type[Method], plain: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    """What a plain backbone computes with the adapters of a file.

    Args:
        method: The file's method; naming it here imports its module, as installing a plugin would.
        plain: The backbone.
        inputs: Its inputs.
        path: The file.
    """
    with torch.no_grad():
        found: Tensor = load_adapter(plain, path).eval()(inputs)
    return found


def trained(method: type[Method], arguments: Mapping[str, Any], plain: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """A few steps of plain SGD on the mean square of the outputs; returns what trains.

    In a process group, each process gets its share of the batch, and gradients are averaged.
    """
    with checks.seeded():  # on a copy: what two processes are sent lies in memory that they share
        model = inject(copy.deepcopy(plain), method(**arguments))
    checks.train(model)
    model.train()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=LEARNING_RATE)
    # Every parameter must get its gradient in every step: a search for unused ones is left off on purpose.
    runs = DistributedDataParallel(model) if dist.is_initialized() else model
    for _ in range(STEPS):
        optimizer.zero_grad()
        runs(batch).square().mean().backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


def trained_by_two(
    method: type[Method], arguments: Mapping[str, Any], plain: nn.Module, batch: Tensor, meeting: Path
) -> dict[str, Tensor]:
    """The same by two processes, each on one half of the batch."""
    halves = batch.chunk(2)
    futures = [
        _pool().submit(_one_of_two, rank, meeting, method, dict(arguments), plain, half)
        for rank, half in enumerate(halves)
    ]
    first, _ = (future.result() for future in futures)
    return first


def _one_of_two(
    rank: int, meeting: Path, method: type[Method], arguments: dict[str, Any], plain: nn.Module, batch: Tensor
) -> dict[str, Tensor]:
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    try:
        return trained(method, arguments, plain, batch)
    finally:
        dist.destroy_process_group()
