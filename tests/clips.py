"""Small video tasks and clips for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_petl import Method, RepAdapter
from lightning_petl.tasks import VideoClassificationTask

FRAMES, SIZE, CLASSES = 4, 32, 6
VIT: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HUGGING_FACE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "videomae": HUGGING_FACE | {"patch_size": 8},
    "timesformer": HUGGING_FACE | {"patch_size": 8},
    "vivit": HUGGING_FACE | {"tubelet_size": [2, 8, 8]},
}


def new_task(
    backbone: str = "vit_tiny_patch16_224", method: Method | None = None, seed: int = 7, **options: Any
) -> VideoClassificationTask:
    """A task on a small backbone; the frozen weights follow from the seed."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "backbone_args": TRANSFORMERS.get(backbone, VIT),
        "pretrained": False,
        "num_classes": CLASSES,
        "frames": FRAMES,
        "warmup_epochs": 0,
    }
    return VideoClassificationTask(backbone, method or RepAdapter(hidden_dim=4, dropout=0.0), **(settings | options))


def clips(*shape: int, seed: int = 1) -> Tensor:
    """Random clips ``(*shape, frames, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, FRAMES, 3, SIZE, SIZE, generator=generator)
