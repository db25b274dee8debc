"""Sizes of what a method trains, on a backbone that is built without memory."""

from __future__ import annotations

import timm
import torch
from torch import nn

from lightning_petl import Method, inject, trainable


def parameters(name: str, method: Method) -> dict[str, int]:
    """Size of each trainable parameter of a headless timm backbone with a method, by name."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    trained = trainable(inject(model, method))
    assert all(parameter.is_meta for parameter in trained.values())
    return {key: parameter.numel() for key, parameter in trained.items()}
