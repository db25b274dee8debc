"""Makes the backbone of the segmentation demo: ``python -m lightning_petl.demo.pretrain_scenes --out FILE``.

A small timm ViT learns to name the digits 0 to 4 where they lie in scenes (see `digit_scenes`); the demo adapts it to
scenes of 5 to 9. Its own classifier reads every token, so that the file is what any user brings: a state dict under
timm's own names. Everything here is plain timm and torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl.demo import digit_scenes, training
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.demo.training import one_thread, publish, run, train

BACKBONE = "vit_tiny_patch16_224"
"""The timm model whose sizes `BACKBONE_ARGS` overrides."""

BACKBONE_ARGS: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,  # notes of 24 pixels cover nine patches, of 36 twenty
    "in_chans": 3,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 6,
    "mlp_ratio": 2,
    "num_classes": 6,
}
"""Arguments of ``timm.create_model`` besides the name, as JSON values; classes are the photograph and five digits."""

WEIGHTS = Path(__file__).with_name("vit_scenes.safetensors")
"""The weights that this script made with its defaults, as shipped."""

CLASSES = (0, 1, 2, 3, 4)
TRAIN_PER_CLASS = 120
"""Training images of each digit; those left over, 57 of each, are in the scenes that measure."""

SCENES, HELD_OUT = 8000, 300
"""Number of scenes that are drawn for training, and for measuring."""

SIZES = 0.375, 0.5625
"""Smallest and largest note, of the side of a scene: a little below the data set's, which `augment` spreads farther."""

ITERATIONS = 2500
BATCH_SIZE = 32
ZOOM, SHIFT = 0.3, 0.15
"""Largest augmentation of a scene: logarithm of the size's factor, and part of its side."""

GAIN, OFFSET = 0.2, 0.1
"""Largest change of each channel: relative, and of the range from black to white."""

OUTSIDE = -1
"""Label of the pixels that an augmented scene does not show."""


def draw_scenes(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws scenes of the digits 0 to 4 for "train", or of held-out digits over held-out photographs for "test".

    Returns:
        Images ``(count, 3, 64, 64)``, uint8; labels ``(count, 64, 64)``, uint8, 0 for the photograph, a digit's from 1.
    """
    images, labels = load_digits(CLASSES)
    pool = split(labels, TRAIN_PER_CLASS, val_per_class=0)[name]
    side = int(BACKBONE_ARGS["img_size"])
    photos, vary = digit_scenes.load_photos(name), float(name == "train")
    drawn = [
        (torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(mask - 1))
        for picture, mask in digit_scenes.scenes(count, images, labels, pool, photos, side, seed, SIZES, vary)
    ]
    return torch.stack([picture for picture, _ in drawn]), torch.stack([mask for _, mask in drawn])


def to_inputs(images: Tensor) -> Tensor:
    """Turns pictures ``(b, 3, h, w)``, uint8, into the backbone's inputs, -1 (black) to 1."""
    return images.float() / 127.5 - 1


def augment(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zooms and shifts every scene, and changes its colours, by its own random amounts.

    Args:
        inputs: ``(b, 3, h, w)``.
        labels: ``(b, h, w)``.
        generator: Source of the amounts, uniform up to the module's constants.

    Returns:
        The same shapes; labels int64, `OUTSIDE` where the scene ends.
    """
    count = len(inputs)
    amounts = torch.rand(count, 3, generator=generator) * 2 - 1
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = torch.exp(amounts[:, 0] * ZOOM)
    maps[:, :, 2] = amounts[:, 1:] * SHIFT * 2  # grid coordinates run from -1 to 1, twice the side
    grid = F.affine_grid(maps, list(inputs.shape), align_corners=False)
    seen = F.grid_sample(inputs, grid, align_corners=False)
    # Outside is 0 there: labels are shifted by one, and back.
    named = F.grid_sample(labels[:, None].float() + 1, grid, mode="nearest", align_corners=False)[:, 0] - 1
    colors = torch.rand(2, count, 3, 1, 1, generator=generator) * 2 - 1
    return seen * (1 + GAIN * colors[0]) + 2 * OFFSET * colors[1], named.long()


def scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """A score for each class at each pixel, ``(b, classes, h, w)``: the classifier on every token, bilinear between."""
    tokens: Tensor = model.forward_features(inputs)[:, 1:]  # type: ignore[operator]  # the first is the class token
    maps = model.head(tokens).transpose(1, 2).unflatten(2, model.patch_embed.grid_size)  # type: ignore[operator, union-attr]
    return F.interpolate(maps, size=inputs.shape[-2:], mode="bilinear")


def pretrain(images: Tensor, labels: Tensor, iterations: int = ITERATIONS, seed: int = 0) -> nn.Module:
    """Trains the backbone from random weights.

    Args:
        images: ``(n, 3, 64, 64)``, uint8, at least ``BATCH_SIZE``.
        labels: ``(n, 64, 64)``, uint8.
        iterations: Number of batches; the result depends on it, not on the machine's speed.
        seed: Seed of weights, batches and augmentation. The caller's random state stays as it is.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ConfigError: ``iterations`` is not positive.
    """

    def loss_of_batch(model: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        inputs, named = augment(to_inputs(images[chosen]), labels[chosen], generator)
        return F.cross_entropy(scores(model, inputs), named, ignore_index=OUTSIDE)

    return train(lambda: timm.create_model(BACKBONE, **BACKBONE_ARGS), loss_of_batch, iterations, seed)


def load(path: Path) -> nn.Module:
    """Builds the backbone and fills it from a file, see `training.load`."""
    return training.load(path, BACKBONE, BACKBONE_ARGS)


def mean_iou(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean over the classes of intersection over union, counted over all scenes, 0 to 1.

    Args:
        model: The backbone.
        images: ``(n, 3, 64, 64)``, uint8.
        labels: ``(n, 64, 64)``, uint8.
    """
    classes = int(BACKBONE_ARGS["num_classes"])
    counts = np.zeros((classes, classes), dtype=np.int64)
    with torch.inference_mode(), one_thread():
        for some, named in zip(torch.split(images, 50), torch.split(labels, 50), strict=True):
            found = scores(model, to_inputs(some)).argmax(dim=1)
            counts += np.bincount((named.long() * classes + found).flatten().numpy(), minlength=classes**2).reshape(
                classes, classes
            )
    both = np.diag(counts)
    return float((both / (counts.sum(0) + counts.sum(1) - both)).mean())


def held_out() -> tuple[Tensor, Tensor]:
    """The scenes of held-out digits over held-out parts of the photographs that measure, see `draw_scenes`."""
    return draw_scenes("test", HELD_OUT, seed=1)


def make(path: Path, iterations: int = ITERATIONS, seed: int = 0) -> float:
    """Pretrains and writes the file.

    Args:
        path: The safetensors file to write.
        iterations: Number of batches.
        seed: Seed of the training; the scenes are the same for all.

    Returns:
        The mean intersection over union on the held-out scenes, measured on the float16 file as loaded back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # before the training, so that a wrong path costs no time
    model = pretrain(*draw_scenes("train", SCENES, seed=0), iterations=iterations, seed=seed)
    facts = {
        "description": "Vision Transformer pretrained on scenes of scikit-learn's handwritten digits 0 to 4",
        "script": f"python -m lightning_petl.demo.pretrain_scenes --iterations {iterations} --seed {seed}",
        "data": "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY 4.0; photographs "
        "china.jpg by danielbuechele and flower.jpg by vultilion (Flickr), CC BY 2.0",
        "model": BACKBONE,
        "model_args": BACKBONE_ARGS,
        "classes": CLASSES,
    }
    packages = ("torch", "torchvision", "timm", "scikit-learn", "pillow")
    return publish(path, model, facts, packages, lambda: mean_iou(load(path), *held_out()), "held_out_miou")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after the command; those of the process by default.
    """
    out, measured = run(
        "lightning_petl.demo.pretrain_scenes", __doc__, make, ITERATIONS, "weights, batches and augmentation", arguments
    )
    print(f"{out}: mean IoU {measured:.4f} on {HELD_OUT} held-out scenes of digits 0 to 4")


if __name__ == "__main__":
    main()
