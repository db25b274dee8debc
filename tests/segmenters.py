"""Small backbones of three kinds with decode heads, and random segmentation data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import Method, RepAdapter, adapted_layers
from lightning_petl.tasks import SegmentationTask
from lightning_petl.testing import add_noise

BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    },
    "swin": {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_args": {
            "img_size": 64,
            "window_size": 4,
            "embed_dim": 16,
            "depths": [2, 2, 2],
            "num_heads": [1, 2, 4],
        },
    },
    "convnext": {"backbone": "convnext_atto", "backbone_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
}

ONE_SIZE: dict[str, dict[str, Any]] = {
    "beit": {
        "backbone": "beit_base_patch16_224",
        "backbone_args": {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "hiera": {
        "backbone": "hiera_tiny_224",
        "backbone_args": {"img_size": [64, 64], "embed_dim": 16, "stages": [1, 1, 1, 1]},
    },
    "coatnet": {
        "backbone": "coatnet_nano_rw_224",
        "backbone_args": {
            "img_size": 64,
            "embed_dim": [32, 32, 32, 32],
            "depths": [1, 1, 1, 1],
            "stem_width": [16, 16],
        },
    },
}
"""Backbones that take images of 64 x 64 alone."""


def new_task(kind: str = "vit", method: Method | None = None, seed: int = 7, **changes: Any) -> SegmentationTask:
    """A task on a small backbone; the frozen weights follow from the seed."""
    settings = (
        {"pretrained": False, "num_classes": 5, "head_channels": 8, "warmup_epochs": 0}
        | (BACKBONES | ONE_SIZE)[kind]
        | changes
    )
    torch.manual_seed(seed)
    return SegmentationTask(method=method or RepAdapter(hidden_dim=4, dropout=0.0), **settings)


def trained_noise(model: nn.Module) -> None:
    """Adapters and head as if they had been trained: at the start RepAdapter is the identity."""
    add_noise(tensor for layer in adapted_layers(model).values() for tensor in layer.adapter.parameters())
    add_noise(model.get_submodule("decode_head").parameters(), seed=1)


def write_scenes(root: Path, train: int = 8, val: int = 3, test: int = 3, side: tuple[int, int] = (40, 60)) -> None:
    """Coloured squares on a dark ground with their masks, of several sizes; the top row has no class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for index in range(count):
            height, width = (int(n) for n in random.integers(*side, 2))
            image = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for label in (1, 2, 3):
                top, left = (int(random.integers(0, n - 16)) for n in (height, width))
                image[top : top + 16, left : left + 16] = np.eye(3, dtype=np.uint8)[label - 1] * 220
                mask[top : top + 16, left : left + 16] = label
            mask[0] = 255
            for kind, array in (("images", image), ("masks", mask)):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{index}.png")


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """A trainer that writes nothing by itself."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_model_summary=False, **{**quiet, "max_epochs": 1, **options}
    )


def train_batches(count: int = 4, ignored: int | None = None) -> DataLoader[Any]:
    """Random images and masks in batches of two; in the batch ``ignored`` no pixel has a class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * count, 3, 32, 32, generator=generator)
    masks = torch.randint(0, 5, (2 * count, 32, 32), generator=generator)
    masks[:, :4] = 255
    if ignored is not None:
        masks[2 * ignored : 2 * ignored + 2] = 255
    return DataLoader(TensorDataset(images, masks), batch_size=2)


def eval_batches() -> DataLoader[Any]:
    """Lists of random images and of masks of other sizes."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for height, width in ((32, 32), (40, 24), (17, 50), (32, 32), (64, 30)):
        mask = torch.randint(0, 4, (2 * height, width + 3), generator=generator)
        mask[:5] = 255
        samples.append((torch.randn(3, height, width, generator=generator), mask))
    return DataLoader(samples, batch_size=2, collate_fn=lambda batch: tuple(map(list, zip(*batch, strict=True))))  # type: ignore[arg-type]
