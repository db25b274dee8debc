"""Makes the backbone of the quickstart: ``python -m lightning_petl.demo.pretrain --out vit_digits.safetensors``.

A small timm ViT learns the handwritten digits 0 to 4; the quickstart adapts it to 5 to 9. Everything here is plain
timm and torch, so that the file is what any user brings: a state dict under timm's own names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_petl.demo import training
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.demo.training import one_thread, publish, run, train

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

CLASSES = (0, 1, 2, 3, 4)
TRAIN_PER_CLASS = 120
"""Training images of each class; those left over, 57 of each, measure the accuracy."""

ITERATIONS = 600
BATCH_SIZE = 64
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

    def loss_of_batch(model: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(inputs), generator=generator)[:BATCH_SIZE]
        return F.cross_entropy(model(augment(inputs[chosen], generator)), labels[chosen])

    return train(lambda: timm.create_model(BACKBONE, **BACKBONE_ARGS), loss_of_batch, iterations, seed)


def load(path: Path) -> nn.Module:
    """Builds the backbone and fills it from a file, see `training.load`."""
    return training.load(path, BACKBONE, BACKBONE_ARGS)


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Part of the images ``(n, 3, 32, 32)`` that get their label ``(n,)``, 0 to 1."""
    with torch.inference_mode(), one_thread():
        return float((model(inputs).argmax(dim=1) == labels).double().mean())


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
    facts = {
        "description": "Vision Transformer pretrained on scikit-learn's handwritten digits 0 to 4",
        "script": f"python -m lightning_petl.demo.pretrain --iterations {iterations} --seed {seed}",
        "data": "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY 4.0",
        "model": BACKBONE,
        "model_args": BACKBONE_ARGS,
        "classes": CLASSES,
    }
    packages = ("torch", "torchvision", "timm", "scikit-learn")
    return publish(path, model, facts, packages, lambda: accuracy(load(path), *held_out()), "held_out_accuracy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after the command; those of the process by default.
    """
    out, measured = run(
        "lightning_petl.demo.pretrain", __doc__, make, ITERATIONS, "weights, batches and augmentation", arguments
    )
    print(f"{out}: accuracy {measured:.4f} on {len(held_out()[1])} held-out digits 0 to 4")


if __name__ == "__main__":
    main()
