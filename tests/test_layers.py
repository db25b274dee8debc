"""Which layers are affine maps over features, and how they are read, run and written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_petl import Affine, NotMergeable, RepAdapter, inject
from lightning_petl.layers import affine_layer, over_features, read, write


class Scaled(nn.Linear):
    """A layer whose forward is not quite the map of its weight."""

    factor = 1.0005

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Renamed(nn.Linear):
    """A layer with a forward of its own that is the map of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class NoisyInTraining(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (torch.rand(()) if self.training else 0)


def hooked(pre: bool) -> nn.Linear:
    layer = nn.Linear(8, 4)
    if pre:
        layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    else:
        layer.register_forward_hook(lambda *call: call[2] * 2)
    return layer


def quantised() -> nn.Linear:
    layer = nn.Linear(8, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    return layer


REFUSED = {
    "activation": (nn.GELU(), "no affine map over features"),
    "bilinear": (nn.Bilinear(8, 8, 4), "no affine map over features"),
    "transposed": (nn.ConvTranspose2d(8, 4, 1), "no affine map over features"),
    "norm": (nn.LayerNorm(8), "no affine map over features"),
    "depthwise 7x7": (nn.Conv2d(8, 8, 7, padding=3, groups=8), "depthwise convolution is a dense convolution"),
    "depthwise 1x1": (nn.Conv2d(8, 8, 1, groups=8), "depthwise convolution"),
    "grouped": (nn.Conv2d(8, 4, 1, groups=2), "grouped convolution"),
    "padded 3x3": (nn.Conv2d(8, 4, 3, padding=1), "3x3 convolution, not 1x1, and an adapter's bias is not seen"),
    "same 3x3": (nn.Conv2d(8, 4, 3, padding="same"), "not 1x1, and an adapter's bias is not seen by its padding"),
    "3x3": (nn.Conv2d(8, 4, 3), "3x3 convolution, not 1x1"),
    "padded 1x1": (nn.Conv2d(8, 4, 1, padding=1), "the padding does not see an adapter's bias"),
    "standardised": (StdConv2d(8, 4, 1), "standardises or changes"),
    "standardised same": (StdConv2dSame(8, 4, 1), "standardises or changes"),
    "scaled standardised": (ScaledStdConv2d(8, 4, 1), "standardises or changes"),
    "scaled standardised same": (ScaledStdConv2dSame(8, 4, 1), "standardises or changes"),
    "almost": (Scaled(8, 4), "standardises or changes"),
    "noisy in training": (NoisyInTraining(8, 4), "standardises or changes"),
    "weight norm": (parametrizations.weight_norm(nn.Linear(8, 4)), "computed from other tensors"),
    "orthogonal": (parametrizations.orthogonal(nn.Linear(8, 4)), "computed from other tensors"),
    "spectral norm": (nn.utils.spectral_norm(nn.Linear(8, 4)), "computed from other tensors"),
    "pre-hook": (hooked(pre=True), "forward hooks"),
    "hook": (hooked(pre=False), "forward hooks"),
    "integers": (quantised(), "stored as torch.int8"),
}


@pytest.mark.parametrize(("layer", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_with_layer_and_reason(layer: nn.Module, reason: str) -> None:
    with pytest.raises(NotMergeable, match=reason) as caught:
        affine_layer("some.path", layer)
    assert caught.value.where == "some.path"


@pytest.mark.parametrize(("layer", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_by_injection(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(layer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NotMergeable, match=rf"{reason}.*\[0\]"):
        inject(model, RepAdapter(groups=1, targets=("0",)))
    assert model[0] is layer
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


LAYERS = {
    "Linear": (nn.Linear(8, 4), (2, 5, 8)),
    "Linear without bias": (nn.Linear(8, 4, bias=False), (8,)),
    "own forward": (Renamed(8, 4), (2, 8)),
    "Conv1d": (nn.Conv1d(8, 4, 1), (2, 8, 6)),
    "Conv2d": (nn.Conv2d(8, 4, 1), (2, 8, 6, 5)),
    "Conv2d without batch": (nn.Conv2d(8, 4, 1), (8, 6, 5)),
    "Conv2d with strides": (nn.Conv2d(8, 4, 1, stride=(2, 3)), (2, 8, 7, 7)),
    "Conv2d, same": (nn.Conv2d(8, 4, 1, padding="same"), (2, 8, 6, 5)),
    "Conv2d, reflect": (nn.Conv2d(8, 4, 1, padding_mode="reflect"), (2, 8, 6, 5)),
    "Conv3d": (nn.Conv3d(8, 4, 1, stride=2, bias=False), (2, 8, 3, 4, 5)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_map_and_axis_are_the_layers_own(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = affine_layer("path", layer.double())
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(over_features(layer, x, read(layer)), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [Renamed(256, 64), Renamed(8, 4)], ids=["wide", "narrow"])
def test_own_forward_is_recognised_in_every_dtype(layer: nn.Linear, dtype: torch.dtype) -> None:
    assert affine_layer("path", layer.to(dtype)) is layer
    with pytest.raises(NotMergeable):
        affine_layer("path", StdConv2d(64, 32, 1).to(dtype))


@pytest.mark.parametrize("training", [True, False])
def test_recognising_leaves_mode_and_random_state(training: bool) -> None:
    layer = Renamed(8, 4).train(training)
    state = torch.get_rng_state()
    affine_layer("path", layer)
    assert layer.training is training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 4), nn.Linear(8, 4, bias=False), nn.Conv2d(8, 4, 1, dtype=torch.float16)], ids=str
)
def test_write_keeps_shape_and_dtype(layer: nn.Linear | nn.Conv2d, bias: bool) -> None:
    new = Affine(torch.randn(4, 8, dtype=torch.float64), torch.randn(4, dtype=torch.float64) if bias else None)
    had_bias, shape, dtype = layer.bias is not None, layer.weight.shape, layer.weight.dtype
    write(layer, new)
    assert (layer.weight.shape, layer.weight.dtype) == (shape, dtype)
    torch.testing.assert_close(read(layer).weight, new.weight.to(dtype), rtol=0, atol=0)
    if new.bias is None:
        assert (layer.bias is not None) == had_bias
        assert layer.bias is None or not layer.bias.any()
    else:
        torch.testing.assert_close(layer.bias.detach(), new.bias.to(dtype), rtol=0, atol=0)
