"""Makes the backbone of the quickstart: ``python -m lightning_petl.demo.pretrain --out vit_digits.safetensors``.

A small timm ViT learns the handwritten digits 0 to 4; the quickstart adapts it to 5 to 9. Everything here is plain
timm and torch, so that the file is what any user brings: a state dict under timm's own names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from lightning_petl.demo.digits import load_digits, split
from lightning_petl.errors import ConfigError

BACKBONE = "vit_tiny_patch16_224"
"""The timm model whose sizes `BACKBONE_ARGS` overrides."""

BACKBONE_ARGS: dict[str, Any] = {
    "img_size": 32,
    # 16 patches, each of 2x2 source pixels: a quarter of the time of patches of 4, which see no more of the 8x8 source.
    "patch_size": 8,
    "in_chans": 3,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2,
    "num_classes": 5,
}
"""Arguments of ``timm.create_model`` besides the name, as JSON values."""

WEIGHTS = Path(__file__).with_name("vit_digits.safetensors")
"""The weights that this script made with its defaults, as shipped."""

HEADER = "lightning_petl.demo"
"""The header entry of that file that holds its facts, as JSON."""

CLASSES = (0, 1, 2, 3, 4)
TRAIN_PER_CLASS = 120
"""Training images of each class; those left over, 57 of each, measure the accuracy."""

ITERATIONS = 600
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1
"""Part of the iterations over which the learning rate rises from 0; it falls on a cosine afterwards."""

ROTATION, SCALE, SHIFT = 15.0, 0.15, 0.125
"""Largest augmentation: degrees, relative change of size, and part of the image's side (one source pixel)."""


def to_inputs(images: NDArray[np.uint8]) -> Tensor:
    """Turns grey images into the backbone's inputs, as the data module does in the quickstart.

    Args:
        images: ``(n, 8, 8)``, 0 to 255.

    Returns:
        ``(n, 3, 32, 32)``, -1 (black) to 1.
    """
    side = int(BACKBONE_ARGS["img_size"])
    transform = v2.Compose(
        [
            v2.Resize((side, side), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )
    return torch.stack([transform(Image.fromarray(image).convert("RGB")).as_subclass(Tensor) for image in images])


def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Rotates, scales and shifts every image by its own random amounts, uniform up to the module's constants.

    Args:
        inputs: ``(b, c, h, w)``, -1 is black.
        generator: Source of the amounts.

    Returns:
        ``(b, c, h, w)``, black where the source image ends.
    """
    amounts = torch.rand(len(inputs), 4, generator=generator) * 2 - 1
    angle, size = torch.deg2rad(amounts[:, 0] * ROTATION), 1 + amounts[:, 1] * SCALE
    shift = amounts[:, 2:] * SHIFT * 2  # grid coordinates run from -1 to 1, twice the side
    cos, sin = size * angle.cos(), size * angle.sin()
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs + 1, grid, align_corners=False) - 1  # outside is 0 there, black here


def pretrain(inputs: Tensor, labels: Tensor, iterations: int = ITERATIONS, seed: int = 0) -> nn.Module:
    """Trains the backbone from random weights.

    Args:
        inputs: ``(n, 3, 32, 32)``, at least ``BATCH_SIZE`` images.
        labels: ``(n,)``, int64.
        iterations: Number of batches; the result depends on it, not on the machine's speed.
        seed: Seed of weights, batches and augmentation. The caller's random state stays as it is.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ConfigError: ``iterations`` is not positive.
    """
    if iterations < 1:
        raise ConfigError(f"{iterations} iterations", where="iterations", fix="give 1 or more")
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(BACKBONE, **BACKBONE_ARGS)
        _train(model, inputs, labels, iterations, torch.Generator().manual_seed(seed))
    return model.eval()


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


def _train(model: nn.Module, inputs: Tensor, labels: Tensor, iterations: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=iterations, pct_start=WARM_UP, cycle_momentum=False
    )
    model.train()
    for _ in tqdm(range(iterations), desc="pretraining", unit="batch"):
        chosen = torch.randperm(len(inputs), generator=generator)[:BATCH_SIZE]
        loss = F.cross_entropy(model(augment(inputs[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def load(path: Path) -> nn.Module:
    """Builds the backbone and fills it from a file; every name and shape must match.

    Args:
        path: A file that `save` wrote.

    Returns:
        The model in evaluation mode, float32.
    """
    model: nn.Module = timm.create_model(BACKBONE, **BACKBONE_ARGS)
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()


def read_header(path: Path) -> dict[str, Any]:
    """Reads the facts that `save` wrote beside the weights."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[HEADER])
    return facts


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Part of the images ``(n, 3, 32, 32)`` that get their label ``(n,)``, 0 to 1."""
    with torch.inference_mode(), one_thread():
        return float((model(inputs).argmax(dim=1) == labels).double().mean())


def save(model: nn.Module, path: Path, header: dict[str, Any]) -> None:
    """Writes the weights as float16, under timm's names, with the header's facts beside them."""
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    # One header entry, as safetensors writes several in a random order: the same weights then make the same bytes.
    # Not save_file, whose file only its owner can read.
    path.write_bytes(serialize(weights, {HEADER: json.dumps(header)}))


def held_out() -> tuple[Tensor, Tensor]:
    """Inputs ``(285, 3, 32, 32)`` and labels ``(285,)`` of the digits 0 to 4 that pretraining does not see."""
    return _part("test")


def _part(name: str) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(CLASSES)
    chosen = split(labels, TRAIN_PER_CLASS, val_per_class=0)[name]
    return to_inputs(images[chosen]), torch.from_numpy(labels[chosen])


def make(path: Path, iterations: int = ITERATIONS, seed: int = 0) -> float:
    """Pretrains and writes the file.

    Args:
        path: The safetensors file to write.
        iterations: Number of batches.
        seed: Seed of the training.

    Returns:
        Accuracy on the held-out digits 0 to 4, 0 to 1, measured on the float16 file as loaded back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # before the training, so that a wrong path costs no time
    model = pretrain(*_part("train"), iterations=iterations, seed=seed)
    header = {
        "description": "Vision Transformer pretrained on scikit-learn's handwritten digits 0 to 4",
        "script": f"python -m lightning_petl.demo.pretrain --iterations {iterations} --seed {seed}",
        "data": "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY 4.0",
        "model": BACKBONE,
        "model_args": BACKBONE_ARGS,
        "classes": CLASSES,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "scikit-learn")},
    }
    # Written twice: the accuracy in the header is that of the file itself, after rounding to float16.
    save(model, path, header)
    measured = accuracy(load(path), *held_out())
    save(model, path, {**header, "held_out_accuracy": round(measured, 4)})
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after the command; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m lightning_petl.demo.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="number of batches (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and augmentation (%(default)s)")
    options = parser.parse_args(arguments)
    measured = make(options.out, options.iterations, options.seed)
    print(f"{options.out}: accuracy {measured:.4f} on {len(held_out()[1])} held-out digits 0 to 4")


if __name__ == "__main__":
    main()
