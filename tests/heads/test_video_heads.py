"""Heads over frames: which of them see the order, and what they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import ConfigError
from lightning_petl.heads import MeanHead, TemporalAttentionHead, TemporalConvHead, video_head
from lightning_petl.heads.video import HEADS

WIDTH, CLASSES, FRAMES = 12, 5, 6


def head(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(2)
    built = video_head(name, WIDTH, CLASSES, FRAMES, arguments).eval()
    with torch.no_grad():  # a new classifier is so small that differences would hide
        built.classifier[1].weight.normal_()
    return built


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, FRAMES, WIDTH, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", HEADS)
def test_shapes_and_start(name: str) -> None:
    assert head(name)(features()).shape == (3, CLASSES)
    torch.manual_seed(0)
    linear = video_head(name, 4000, 50, FRAMES, {}).requires_grad_(False).classifier[1]
    if name == "mean":
        assert float(linear.weight.std()) == pytest.approx(0.01, rel=0.02)
    assert not linear.bias.any()


@pytest.mark.parametrize("name", HEADS)
def test_order_matters_where_it_should(name: str) -> None:
    built, x = head(name), features()
    with torch.no_grad():
        forward, backward = built(x), built(x.flip(1))
    same = torch.allclose(forward, backward, rtol=1e-5, atol=1e-6)
    assert same == (name == "mean")
    if name != "mean":
        assert float((forward - backward).abs().max() / forward.abs().max()) > 1e-2


def test_the_mean_head_is_a_linear_layer_on_the_mean() -> None:
    built, x = head("mean"), features()
    expected = F.linear(x.mean(1), built.classifier[1].weight, built.classifier[1].bias)
    torch.testing.assert_close(built(x), expected)


def test_batch_norm_is_that_of_the_paper() -> None:
    """Without scale and shift, epsilon 1e-6, running statistics with torch's momentum, used in evaluation."""
    built, x = head("mean", batch_norm=True).train(), features(8)
    norm = built.classifier[0]
    assert (norm.eps, norm.affine, norm.momentum) == (1e-6, False, 0.1)
    assert [name for name, _ in built.named_parameters()] == ["classifier.1.weight", "classifier.1.bias"]
    built(x)
    mean = x.mean(1)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * mean.var(0))
    built.eval()
    scaled = (mean - norm.running_mean) / (norm.running_var + 1e-6).sqrt()
    torch.testing.assert_close(built(x), F.linear(scaled, built.classifier[1].weight, built.classifier[1].bias))


def test_the_conv_head_by_hand() -> None:
    built, x = head("conv", hidden=8, kernel=3), features(2)
    scaled = F.layer_norm(x, (WIDTH,), built.scale.weight, built.scale.bias)
    for conv in (built.first, built.second):
        padded = F.pad(scaled, (0, 0, 1, 1))
        steps = [padded[:, start : start + FRAMES] @ conv.weight[:, :, start].T for start in range(3)]
        scaled = F.gelu(sum(steps) + conv.bias)
    expected = F.linear(scaled.mean(1), built.classifier[1].weight, built.classifier[1].bias)
    torch.testing.assert_close(built(x), expected)


def test_the_attention_head_is_told_the_order_by_positions_alone() -> None:
    built, x = head("attention"), features()
    with torch.no_grad():
        built.position.zero_()
        torch.testing.assert_close(built(x), built(x.flip(1)))


def test_kinds_and_arguments() -> None:
    assert isinstance(head("conv"), TemporalConvHead)
    assert isinstance(head("attention", depth=2), TemporalAttentionHead)
    assert isinstance(head("mean"), MeanHead)
    for name, arguments, message in (
        ("mean", {"hidden": 3}, r"mean head does not take these arguments.*hidden"),
        ("conv", {"dropout": 1.0}, r"dropout is 1\.0"),
        ("conv", {"hidden": 0}, r"hidden is 0"),
        ("attention", {"depth": 0}, r"depth is 0"),
        ("attention", {"width": 3}, r"width follows from backbone and data"),
        ("sum", {}, r"no head over frames is called 'sum'"),
    ):
        with pytest.raises(ConfigError, match=message):
            head(name, **arguments)
