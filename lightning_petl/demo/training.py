"""What the scripts share that make the demos' small backbones: the loop, the file with its facts, the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn
from tqdm import tqdm

from lightning_petl.errors import ConfigError

HEADER = "lightning_petl.demo"
"""The header entry of a file that holds its facts, as JSON."""

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1
"""Part of the iterations over which the learning rate rises from 0; it falls on a cosine afterwards."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread.

    The sums then do not depend on the number of cores. Nothing is lost: a second thread does not speed up matrices
    of this size, and where another program holds the core that it waits for, a batch takes a hundred times longer.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    new: Callable[[], nn.Module],
    loss_of_batch: Callable[[nn.Module, torch.Generator], Tensor],
    iterations: int,
    seed: int,
) -> nn.Module:
    """Trains a model by a number of batches, so that the result does not depend on the machine's speed.

    Args:
        new: Makes the model.
        loss_of_batch: Draws a batch with the generator and gives its loss.
        iterations: Number of batches.
        seed: Seed of the model and of the generator. The caller's random state stays as it is.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ConfigError: ``iterations`` is not positive.
    """
    if iterations < 1:
        raise ConfigError(f"{iterations} iterations", where="iterations", fix="give 1 or more")
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model, generator = new(), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=iterations, pct_start=WARM_UP, cycle_momentum=False
        )
        model.train()
        for _ in tqdm(range(iterations), desc="pretraining", unit="batch"):
            loss = loss_of_batch(model, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def load(path: Path, backbone: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Builds a timm model and fills it from a file that `save` wrote; every name and shape must match.

    Returns:
        The model in evaluation mode, float32.
    """
    model: nn.Module = timm.create_model(backbone, **arguments)
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()


def read_header(path: Path) -> dict[str, Any]:
    """Reads the facts that `save` wrote beside the weights."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[HEADER])
    return facts


def save(model: nn.Module, path: Path, header: Mapping[str, Any]) -> None:
    """Writes the weights as float16, under timm's names, with the header's facts beside them."""
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    # One header entry, as safetensors writes several in a random order: the same weights then make the same bytes.
    # Not save_file, whose file only its owner can read.
    path.write_bytes(serialize(weights, {HEADER: json.dumps(header)}))


def publish(
    path: Path,
    model: nn.Module,
    facts: Mapping[str, Any],
    packages: Sequence[str],
    measure: Callable[[], float],
    score: str,
) -> float:
    """Writes a model's file, measures what can be loaded back from it, and writes that beside the weights.

    Args:
        path: The safetensors file to write.
        model: The trained model.
        facts: Of the header.
        packages: Distributions whose versions the header tells.
        measure: Gives the file's score, after rounding to float16.
        score: The score's name in the header.

    Returns:
        The score.
    """
    header = {**facts, "versions": {name: version(name) for name in packages}}
    save(model, path, header)
    measured = measure()
    save(model, path, {**header, score: round(measured, 4)})
    return measured


def run(
    module: str,
    description: str | None,
    make: Callable[[Path, int, int], float],
    iterations: int,
    seeded: str,
    arguments: Sequence[str] | None,
) -> tuple[Path, float]:
    """The command line of a script.

    Args:
        module: The script's module.
        description: What the help says.
        make: Makes the file from its path, the number of batches and the seed, and gives its score.
        iterations: Number of batches where none is given.
        seeded: What the seed decides, for the help.
        arguments: The words after the command; those of the process by default.

    Returns:
        The file, and its score.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--iterations", type=int, default=iterations, help="number of batches (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help=f"seed of {seeded} (%(default)s)")
    options = parser.parse_args(arguments)
    return options.out, make(options.out, options.iterations, options.seed)
