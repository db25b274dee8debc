"""One forward of a model that costs nothing and changes nothing: on meta tensors, with inputs found by trying.

It answers questions that only running can answer, such as whether a layer's weight is read past the layer's own call.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

logger = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]


def forward(model: nn.Module, inputs: Inputs, training: bool = False) -> object:
    """Runs a model without a trace: its modes, its buffers and the random state stay as they are.

    With inputs on the meta device, parameters and buffers are stood in for by meta tensors: shapes and control flow are
    real, values and costs are not. With real inputs, only the buffers are stood in for, by copies.
    """
    on_meta, stand_ins, made = inputs[0].is_meta, {}, dict[Tensor, Tensor]()
    for name, tensor in _tensors(model):
        if on_meta or not isinstance(tensor, nn.Parameter):
            made.setdefault(tensor, tensor.detach().to("meta") if on_meta else tensor.detach().clone())
            stand_ins[name] = made[tensor]  # tied tensors stay tied
    with mode(model, training), torch.random.fork_rng(devices=[]), torch.no_grad():
        # functional_call's own search for tied tensors would not put back those of a module in two places.
        return functional_call(model, stand_ins, inputs, tie_weights=False)


def usable_inputs(model: nn.Module, given: Inputs | None = None) -> Inputs | None:
    """Inputs that the model's forward accepts, on the meta device where it runs there; None where no guess is accepted.

    Guesses come from what the model says of itself (timm's configuration, ``img_size``, a transformers configuration)
    and from the layer that reads the input. They have batch size 2, for a BatchNorm in training mode.
    """
    guesses = (
        [given] if given is not None else [(torch.empty(s, device="meta"),) for s in dict.fromkeys(_shapes(model))]
    )
    reference = next((tensor for _, tensor in _tensors(model) if tensor.is_floating_point()), torch.empty(()))
    for device in dict.fromkeys(("meta", str(reference.device))):
        for guess in guesses:
            inputs = tuple(_on(tensor, device, reference.dtype) for tensor in guess)
            try:
                forward(model, inputs)
            except Exception:  # a shape that does not fit fails in any of many ways; the next one is tried
                continue
            return inputs
    if given is None:
        logger.warning("no example inputs were found; pass inputs= to check at once that every adapted layer is called")
        return None
    forward(model, tuple(tensor.to(reference.device) for tensor in given))
    return given


def _on(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """A tensor on a device; a meta tensor, which has no values, becomes zeros there."""
    if tensor.is_meta and device != "meta":
        return torch.zeros(tensor.shape, dtype=dtype, device=device)
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Input shapes worth trying, the likeliest first."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear)), None)
    channels, features = getattr(first, "in_channels", 3), getattr(first, "in_features", None)
    if features is not None:
        # Tokens first: given a single sequence, torch's own transformer layers leave out the fast path of a batch.
        yield from ((2, 4, features), (2, features), (2, 4, 4, features))
    for height, width in _image_sizes(model):
        yield 2, channels, height, width
        yield from ((2, frames, channels, height, width) for frames in _frames(model))
        yield from ((2, channels, frames, height, width) for frames in _frames(model))


def _image_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Image sizes that the model names, then usual ones."""
    for owner in (getattr(model, "patch_embed", None), model, getattr(model, "config", None)):
        for name in ("img_size", "image_size"):
            size = getattr(owner, name, None)
            if isinstance(size, int):
                yield size, size
            elif isinstance(size, tuple | list) and len(size) >= 2:
                yield int(size[-2]), int(size[-1])
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size:
        yield int(size[-2]), int(size[-1])
    yield from ((side, side) for side in (224, 256, 384, 32, 64, 16, 8))


def _frames(model: nn.Module) -> Iterator[int]:
    frames = getattr(getattr(model, "config", None), "num_frames", None)
    if isinstance(frames, int):
        yield frames


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each under one name a module that holds it; a module in two places counts once."""
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Sets training or evaluation mode for all modules, and puts each back as it was."""
    before = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, was in before.items():
            module.training = was


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode is put back."""
    with mode(model, False), torch.no_grad():
        yield
