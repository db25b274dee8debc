"""Which of the parameters that train an output depends on: the others would stay as they are in silence."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_petl.errors import ConfigError
from lightning_petl.injection import trainable
from lightning_petl.wrappers import adapted_layers

logger = logging.getLogger(__name__)


def unreached(model: nn.Module, outputs: Sequence[Tensor]) -> list[str]:
    """Names of the parameters that train without any output depending on them.

    Args:
        model: The model.
        outputs: What it computed with gradients on.
    """
    parameters = trainable(model)
    if not parameters:
        return []
    total = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def freeze_unreached(model: nn.Module, outputs: Sequence[Tensor], read_last: bool) -> None:
    """Freezes what no output depends on, and says so in one line.

    That is what the method trains in place, and, where the last layer is read, adapters that no choice of layers
    reaches, such as SSF's on the norm behind the last block.

    Args:
        model: The model.
        outputs: What it computed with gradients on.
        read_last: Whether the last layer of those that can be read is among those that are.

    Raises:
        ConfigError: An adapter is among it that a later layer would reach.
    """
    names = unreached(model, outputs)
    layers = [path for path in adapted_layers(model) if any(name.startswith(f"{path}.adapter.") for name in names)]
    if layers and not read_last:
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        raise ConfigError(
            f"the adapter of {layers[0]}{more} would not train: the head reads no layer behind it",
            where="model.layers",
            fix="read a later layer, or adapt earlier blocks alone with the method's targets",
        )
    parameters = trainable(model)
    for name in names:
        parameters[name].requires_grad_(False)
    if names:
        logger.info("%d parameters stay frozen, since the head does not depend on them: %s ...", len(names), names[0])
