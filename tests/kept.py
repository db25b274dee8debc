"""What a training step keeps: bytes for its backward pass, and which of two ways it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from lightning_petl import Affine, grouped
from lightning_petl.methods import arc, lora, repadapter
from lightning_petl.products import dropped


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters and buffers; each storage counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
        out.sum()  # it stays alive until all is counted, and so does what it keeps
    return sum(kept.values())


def floor(build: Callable[[], nn.Module]) -> nn.Module:
    """The frozen backbone with its head, through which gradients go back to one bias in front of the blocks."""
    model = build().requires_grad_(False).train()
    model.patch_embed.proj.bias.requires_grad_(True)
    model.head.requires_grad_(True)
    return model


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Every method computes by F.linear and plain autograd, and keeps what that keeps."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (repadapter, arc, lora):
            patch.setattr(module, "narrowed", _narrowed)
            patch.setattr(module, "widened", lambda hidden, by: by(hidden))
        patch.setattr(grouped, "functions_work", lambda *_: False)
        yield


def _narrowed(x: Tensor, by: Affine, drop: float = 0.0) -> Tensor:
    return by(dropped(x, drop))
