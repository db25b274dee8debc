"""Decode heads: their grids, what they read, and what only training runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_petl import ConfigError
from lightning_petl.heads.segmentation import HEADS, DecodeHead, Feature, HeadKind, resized

PLAIN = {layer: Feature(12, 16) for layer in (5, 11, 17, 23)}
PYRAMID = {stage: Feature(8 * 2**stage, 4 * 2**stage) for stage in range(4)}


def maps(features: dict[int, Feature], height: int = 64, width: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(feature.width, height // feature.reduction, width // feature.reduction) for feature in features.values()]
    return [torch.randn(2, *shape, generator=generator) for shape in shapes]


GRIDS: dict[HeadKind, tuple[tuple[int, int], tuple[int, int]]] = {
    # On four maps of 1/16, and on a pyramid from 1/4 to 1/32, of an image of 64 x 96.
    "linear": ((4, 6), (16, 24)),
    "naive": ((4, 6), (16, 24)),
    "pup": ((64, 96), (64, 96)),
    "mla": ((16, 24), (64, 96)),
    "upernet": ((16, 24), (16, 24)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_scores_come_on_the_heads_own_grid(kind: HeadKind) -> None:
    for features, grid in zip((PLAIN, PYRAMID), GRIDS[kind], strict=True):
        head = DecodeHead(kind, features, tuple(features), (), 7, channels=8)
        assert head(maps(features)).shape == (2, 7, *grid)
        assert head.auxiliary_scores(maps(features)) == []


@pytest.mark.parametrize("kind", HEADS)
def test_every_map_and_every_parameter_counts(kind: HeadKind) -> None:
    head = DecodeHead(kind, PYRAMID, tuple(PYRAMID), (1, 3), 7, channels=8, dropout=0.0)
    given = [x.requires_grad_() for x in maps(PYRAMID)]
    main, auxiliary = head(given), head.auxiliary_scores(given)
    assert [tuple(scores.shape) for scores in auxiliary] == [(2, 7, 8, 12), (2, 7, 2, 3)]
    main.square().sum().backward(retain_graph=True)
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in given)
    names = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert names
    assert all(name.startswith("auxiliary_heads.") for name in names)
    sum(scores.square().sum() for scores in auxiliary).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_the_sizes_of_setr_on_vit_large() -> None:
    """The layers of arXiv 2012.15840, section 3.2, counted by hand; each map is normalised first, 2 x 1024."""
    levels = {layer: Feature(1024, 16) for layer in (5, 11, 17, 23)}
    batch_norm, norm = 2 * 256, 2 * 1024
    naive = norm + 1024 * 256 + batch_norm + 256 * 150 + 150
    pup = norm + 9 * 1024 * 256 + 3 * 9 * 256 * 256 + 4 * batch_norm + 256 * 150 + 150
    one = 1024 * 256 + 2 * 9 * 256 * 256 + 9 * 256 * 128 + 3 * batch_norm + 2 * 128
    mla = 4 * norm + 4 * one + 4 * 128 * 150 + 150
    for kind, layers, expected in (("naive", (23,), naive), ("pup", (23,), pup), ("mla", tuple(levels), mla)):
        head = DecodeHead(kind, {layer: levels[layer] for layer in layers}, layers, (), 150)
        assert sum(parameter.numel() for parameter in head.parameters()) == expected, kind


def test_a_linear_head_is_linear_in_normalised_features() -> None:
    features = {0: Feature(6, 8)}
    head = DecodeHead("linear", features, (0,), (), 3).eval()
    (x,) = maps(features)
    layer = head.decoder.classifier[1]
    expected = nn.functional.layer_norm(x.movedim(1, -1), (6,), eps=1e-6) @ layer.weight[:, :, 0, 0].T + layer.bias
    torch.testing.assert_close(head([x]), expected.movedim(-1, 1))


def test_upernet_resizes_maps_of_one_scale_only() -> None:
    shapes: list[list[tuple[int, ...]]] = []
    for features in (PLAIN, PYRAMID):
        head = DecodeHead("upernet", features, tuple(features), (), 3, channels=8)
        head.decoder.decoder.register_forward_pre_hook(
            lambda module, given: shapes.append([tuple(x.shape[-2:]) for x in given[0]])
        )
        head(maps(features))
    assert shapes[0] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert shapes[1] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_resampling_leaves_a_fitting_size_alone() -> None:
    x = torch.randn(1, 2, 5, 6)
    assert resized(x, (5, 6)) is x
    flat = torch.full((1, 1, 3, 4), 2.5)
    torch.testing.assert_close(resized(flat, (7, 9)), torch.full((1, 1, 7, 9), 2.5))


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.head"):
        DecodeHead("deep", PLAIN, (5,), (), 3)  # type: ignore[arg-type]
