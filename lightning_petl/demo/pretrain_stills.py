"""Makes the backbone of the video demo: ``python -m lightning_petl.demo.pretrain_stills --out vit_stills.safetensors``.

The small ViT of the image quickstart goes on from its file with stills: one digit, 0 to 4, anywhere in the picture, of
any size and brightness, as in a frame of `moving_digits`. It learns which digit it is and in which ninth of the picture
its middle lies. No still says anything about time, and the demo's clips have all ten digits.
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
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_petl.demo import pretrain, training
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.demo.moving_digits import BRIGHTNESSES, SIZES, Plan, draw

CELLS = 3
"""Columns and rows of the picture's parts."""

BACKBONE_ARGS: dict[str, Any] = {**pretrain.BACKBONE_ARGS, "num_classes": len(pretrain.CLASSES) * CELLS**2}
"""Arguments of ``timm.create_model`` besides the name; a class is a digit in a part."""

WEIGHTS = Path(__file__).with_name("vit_stills.safetensors")
"""The weights that this script made with its defaults, as shipped."""

ITERATIONS = 3000
STILLS, HELD_OUT = 30_000, 1000
"""Number of stills that are drawn for training, and for measuring."""


def draw_stills(name: str, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draws stills of the digits of one part of the data set.

    Args:
        name: "train" or "test"; the two have no handwritten digit in common.
        count: Number of stills.
        rng: All choices.

    Returns:
        Inputs ``(count, 3, 32, 32)``, -1 (black) to 1, and labels ``(count,)``: digit times ninths plus the ninth.
    """
    images, digits = load_digits(pretrain.CLASSES)
    pool = split(digits, pretrain.TRAIN_PER_CLASS, val_per_class=0)[name]
    chosen = rng.choice(pool, count)
    x, y = rng.random(count), rng.random(count)
    sizes, brightnesses = (_between(ends, count, rng) for ends in (SIZES, BRIGHTNESSES))
    side = int(BACKBONE_ARGS["img_size"])
    stills = np.concatenate(
        [
            draw(
                Plan(0, int(digit), *(values[place : place + 1] for values in (x, y, sizes, brightnesses))),
                images,
                side,
            )
            for place, digit in enumerate(chosen)
        ]
    )
    parts = (x * CELLS).astype(np.int64) * CELLS + (y * CELLS).astype(np.int64)
    return _inputs(stills), torch.from_numpy(digits[chosen] * CELLS**2 + parts)


def _between(ends: tuple[float, float], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Numbers whose logarithm is uniform between two ends."""
    low, high = np.log(ends)
    numbers: NDArray[np.float64] = np.exp(rng.uniform(float(low), float(high), count))
    return numbers


def _inputs(stills: NDArray[np.uint8]) -> Tensor:
    return (torch.from_numpy(stills).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def train(inputs: Tensor, labels: Tensor, iterations: int = ITERATIONS, seed: int = 0) -> nn.Module:
    """Goes on from the image quickstart's weights.

    Args:
        inputs: ``(n, 3, 32, 32)``.
        labels: ``(n,)``, int64.
        iterations: Number of batches; the result depends on it, not on the machine's speed.
        seed: Of the new classifier and of the batches. The caller's random state stays as it is.

    Returns:
        The trained model, in evaluation mode.

    Raises:
        ConfigError: ``iterations`` is not positive.
    """

    def loss_of_batch(model: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(inputs), (pretrain.BATCH_SIZE,), generator=generator)
        return F.cross_entropy(model(inputs[chosen]), labels[chosen])

    return training.train(_started, loss_of_batch, iterations, seed)


def _started() -> nn.Module:
    """The model with the image quickstart's weights, all but the classifier's."""
    model: nn.Module = timm.create_model(pretrain.BACKBONE, **BACKBONE_ARGS)
    known = {name: w for name, w in load_file(pretrain.WEIGHTS).items() if not name.startswith("head.")}
    model.load_state_dict({**model.state_dict(), **known})
    return model


def load(path: Path) -> nn.Module:
    """Builds the backbone and fills it from a file, see `training.load`."""
    return training.load(path, pretrain.BACKBONE, BACKBONE_ARGS)


def held_out() -> tuple[Tensor, Tensor]:
    """Inputs and labels of the stills that measure, see `draw_stills`; the same each time."""
    return draw_stills("test", HELD_OUT, np.random.default_rng(1))


def make(path: Path, iterations: int = ITERATIONS, seed: int = 0) -> float:
    """Trains and writes the file.

    Args:
        path: The safetensors file to write.
        iterations: Number of batches.
        seed: Seed of the training.

    Returns:
        Part of the held-out stills that get digit and ninth right, 0 to 1, measured on the float16 file as loaded back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # before the training, so that a wrong path costs no time
    model = train(*draw_stills("train", STILLS, np.random.default_rng(0)), iterations=iterations, seed=seed)
    facts = {
        "description": "Vision Transformer pretrained on stills of scikit-learn's handwritten digits 0 to 4",
        "script": f"python -m lightning_petl.demo.pretrain_stills --iterations {iterations} --seed {seed}",
        "data": "Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY 4.0",
        "model": pretrain.BACKBONE,
        "model_args": BACKBONE_ARGS,
        "classes": pretrain.CLASSES,
    }

    def measure() -> float:
        return pretrain.accuracy(load(path), *held_out())

    return training.publish(path, model, facts, ("torch", "timm", "scikit-learn"), measure, "held_out_accuracy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The words after the command; those of the process by default.
    """
    script = "lightning_petl.demo.pretrain_stills"
    out, measured = training.run(script, __doc__, make, ITERATIONS, "classifier and batches", arguments)
    print(f"{out}: digit and ninth of {measured:.4f} of {HELD_OUT} held-out stills")


if __name__ == "__main__":
    main()
