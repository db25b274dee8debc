"""Reads the golden vectors: numbers that the official implementations gave, in float64."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_petl import RepAdapter, adapted_layers, inject

GOLDEN = Path(__file__).parent / "golden"


@cache
def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file, floating ones in float64, and its configuration."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        config = json.loads(file.metadata()["config"])
    return {key: t.double() if t.is_floating_point() else t for key, t in tensors.items()}, config


def base_state(name: str) -> dict[str, Tensor]:
    """Weights of the backbone in a file that holds them beside its vectors."""
    tensors, _ = golden(name)
    own = {key.removeprefix("base."): tensor for key, tensor in tensors.items() if key.startswith("base.")}
    return {key: tensor for key, tensor in own.items() if not key.startswith("check.")}


def golden_vit(dtype: torch.dtype = torch.float64) -> nn.Module:
    """The small ViT that several files adapt, plain, in evaluation mode."""
    tensors, config = golden("vit_base")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=config["img"],
        patch_size=config["patch"],
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
        num_classes=config["classes"],
    )
    model.load_state_dict({key: tensor for key, tensor in tensors.items() if key != "check.logits"})
    return model.to(dtype).eval()


def with_adapters(model: nn.Module, name: str, sites: tuple[str, ...], places: dict[str, str]) -> nn.Module:
    """Injects RepAdapter as a file configures it and fills in the file's adapters.

    Args:
        model: The plain backbone, in the dtype to test.
        name: The file.
        sites: Sites of the method.
        places: For the end of each adapted module path, the end of the adapter's path in the file.
    """
    tensors, config = golden(name)
    inject(model, RepAdapter(config["hidden"], config["groups"], config["scale"], dropout=0.0, sites=sites))
    for path, layer in adapted_layers(model).items():
        end = next(end for end in places if path.endswith(end))
        fill(layer.adapter, tensors, f"adapter.{path.removesuffix(end)}{places[end]}")
    return model


def fill(adapter: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies one adapter; its convolutions' trailing axes of size one fall away."""
    for name, parameter in adapter.named_parameters():
        stored = tensors[f"{prefix}.{reference_name(name)}"]
        with torch.no_grad():
            parameter.copy_(stored.reshape(stored.shape[: parameter.dim()]))


def reference_name(parameter: str) -> str:
    """The reference's name for one of RepAdapter's parameters."""
    layer, _, kind = parameter.partition(".")
    return {"down": "conv_A", "up": "conv_B"}[layer] + f".{kind}"


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    """Asserts equality to an absolute tolerance, in float64 and after dropping trailing axes of size one."""
    expected = expected.reshape(found.shape)
    torch.testing.assert_close(found.detach().double(), expected, rtol=0.0, atol=atol)
