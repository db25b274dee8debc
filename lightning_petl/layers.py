"""Frozen layers as affine maps: which layers are one, how one is read, run over its feature axis, and written back.

Two kinds are told apart. An adapter may stand around the whole map of an affine layer, a Linear or a 1x1 convolution.
One that changes outputs only may follow any layer with a weight row and a bias for each output: all convolutions, and
LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl.affine import Affine
from lightning_petl.errors import NotMergeable

AffineLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
OutputLayer = AffineLayer | nn.LayerNorm
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN_FORWARD = {kind.forward for kind in (nn.Linear, *_CONVOLUTIONS)}


def affine_layer(path: str, layer: nn.Module) -> AffineLayer:
    """The layer, once it is known to compute nothing but one affine map over its features.

    Raises:
        NotMergeable: It computes something else; the text names the layer and the reason.
    """
    reason = _refusal(layer)
    if reason:
        raise NotMergeable(f"cannot adapt {type(layer).__name__}: {reason}", where=path, fix="target another layer")
    return cast(AffineLayer, layer)


def output_layer(path: str, layer: nn.Module) -> OutputLayer:
    """The layer, once it is known that scaling its weight rows and biases scales its outputs.

    Raises:
        NotMergeable: It does not; the text names the layer and the reason.
    """
    reason = _refusal_of_outputs(layer)
    if reason:
        raise NotMergeable(f"cannot adapt {type(layer).__name__}: {reason}", where=path, fix="target another layer")
    return cast(OutputLayer, layer)


def _refusal_of_outputs(layer: nn.Module) -> str:
    """Why a map of its outputs cannot be folded into this layer; empty where one can."""
    if not isinstance(layer, OutputLayer):
        return "it has no row of weights for each output, as Linear, convolutions and LayerNorm have"
    if isinstance(layer, nn.LayerNorm):
        if layer._parameters.get("weight") is None or layer.weight.dim() != 1:
            return "it has no weight for each feature"
        return _hooks(layer) or ("" if output_axis(layer) else "it is no LayerNorm over one axis of features")
    return _unreadable(layer) or ("" if type(layer).forward in _PLAIN_FORWARD else _refusal(layer))


def _refusal(layer: nn.Module) -> str:
    """Why no adapter can be folded into this layer; empty where one can."""
    if not isinstance(layer, AffineLayer):
        return "it is no affine map over features, as a Linear layer and a 1x1 convolution are"
    if isinstance(layer, _CONVOLUTIONS):
        if layer.groups != 1:
            depthwise = "depthwise" if layer.groups == layer.in_channels else "grouped"
            return f"a map over all channels before a {depthwise} convolution is a dense convolution"
        if any(size != 1 for size in layer.kernel_size):
            size = "x".join(map(str, layer.kernel_size))
            padded = ", and an adapter's bias is not seen by its padding" if _padding(layer) else ""
            return f"it is a {size} convolution, not 1x1{padded}"
        if _padding(layer):
            return "it pads its input, and the padding does not see an adapter's bias"
    unreadable = _unreadable(layer)
    if unreadable:
        return unreadable
    if type(layer).forward not in _PLAIN_FORWARD and not _computes_its_affine_map(layer):
        return "its forward is not the affine map of its weight and bias (it standardises or changes them)"
    return ""


def _unreadable(layer: AffineLayer) -> str:
    if layer._parameters.get("weight") is None:
        return "its weight is computed from other tensors (a parametrization, weight or spectral norm)"
    if not layer.weight.is_floating_point():
        return f"its weight is stored as {layer.weight.dtype}"
    return _hooks(layer)


def _hooks(layer: nn.Module) -> str:
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    return "it carries forward hooks, which an adapted layer would pass by" if hooked else ""


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size != 1 for size in layer.kernel_size)
    return any(layer.padding)


def _computes_its_affine_map(layer: AffineLayer) -> bool:
    """Runs a subclass with a forward of its own beside the map that its weight and bias stand for."""
    if layer.weight.is_meta:
        return False
    spatial = (1,) * (layer.weight.dim() - 2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, read(layer).in_features, *spatial, generator=generator).to(layer.weight)
    training = layer.training
    try:
        with torch.no_grad():
            expected = over_features(layer, x, read(layer))
            # Rounding only: a convolution may add up in another order than a matrix product does.
            limit = 16 * torch.finfo(layer.weight.dtype).eps * expected.abs().max()
            return all(bool((layer.train(mode)(x) - expected).abs().max() <= limit) for mode in (True, False))
    finally:
        layer.train(training)


def read(layer: OutputLayer) -> Affine:
    """The layer's map, sharing memory: one row of weights an output.

    A 1x1 convolution's weight ``(out, in, 1, ..)`` is seen as ``(out, in)``. A row of a larger convolution holds the
    whole kernel of an output, one of a LayerNorm the weight of a feature: only their outputs may be changed.
    """
    weight = layer.weight
    rows = weight if weight.dim() == 2 else weight.unsqueeze(1) if weight.dim() == 1 else weight.flatten(1)
    return Affine(rows, layer.bias)


def output_axis(layer: OutputLayer) -> int:
    """The axis, counted from the last, along which a layer's outputs lie; 0 for a LayerNorm over anything else.

    timm has LayerNorms over the last axis and over the channels of images, told apart by running them.
    """
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.LayerNorm) and layer.weight.is_meta):
        return -3 if type(layer).__name__.endswith("2d") else -1
    if not isinstance(layer, nn.LayerNorm):
        return -layer.weight.dim() + 1
    width, generator = len(layer.weight), torch.Generator().manual_seed(0)
    for axis, shape in ((-1, (2, 3, 5, width)), (-3, (2, width, 3, 5))):
        x = torch.randn(shape, generator=generator).to(layer.weight)
        with torch.no_grad():
            expected = F.layer_norm(x.movedim(axis, -1), (width,), layer.weight, layer.bias, layer.eps)
            try:
                found = layer(x).movedim(axis, -1)
            except RuntimeError:  # it normalises an axis of another size
                continue
            if bool((found - expected).abs().max() <= 64 * torch.finfo(x.dtype).eps * expected.abs().max()):
                return axis
    return 0


def over_features(layer: AffineLayer, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function of ``(..., in)`` along the axis that a layer reads: the last, or a convolution's channels."""
    if isinstance(layer, nn.Linear):
        return function(x)
    channels = -layer.weight.dim() + 1
    if any(step != 1 for step in layer.stride):
        steps = (slice(None, None, step) for step in layer.stride)
        x = x[cast(tuple[slice, ...], (..., *steps))]
    return function(x.movedim(channels, -1)).movedim(-1, channels)


def write(layer: OutputLayer, new: Affine) -> None:
    """Puts a map in place of the layer's own, in its shape, dtype and device; a bias that it lacks is created."""
    weight = new.weight.to(layer.weight.dtype).reshape(layer.weight.shape)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    bias = new.bias
    if bias is None and layer.bias is not None:
        bias = torch.zeros_like(layer.bias)  # the layer keeps its tensors, so that the plain backbone's file fits
    if bias is not None:
        bias = bias.to(layer.weight.dtype).contiguous()
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
