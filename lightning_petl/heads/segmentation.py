"""Heads that turn a backbone's feature maps into a score for each class at each place.

SETR's heads are those of Zheng et al., Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with
Transformers, arXiv 2012.15840, section 3.2; UPerNet is that of transformers (Xiao et al., arXiv 1807.10221).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from lightning_petl.errors import ConfigError

HeadKind = Literal["linear", "naive", "pup", "mla", "upernet"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
SINGLE: tuple[HeadKind, ...] = ("linear", "naive", "pup")
"""Heads that read the backbone's last feature map, where no others are chosen; the rest read four."""

CHANNELS = {"upernet": 512}
"""Width of a head where none is given; 256 for those not named."""


@dataclass(frozen=True)
class Feature:
    """A feature map that a backbone gives.

    Attributes:
        width: Number of its channels.
        reduction: Pixels of the image for one of the map, in each direction.
    """

    width: int
    reduction: int


class DecodeHead(nn.Module):
    """A segmentation head over feature maps, and its auxiliary heads, which only training runs.

    Each map that a head reads is normalised over its channels first (LayerNorm, trained with the head), since the
    maps inside a backbone have not passed its last norm.

    Attributes:
        taken: The layers whose maps `forward` takes, in this order.
        multiple: The coarsest map's reduction; images are filled up to a multiple of it.

    Args:
        kind: One of `HEADS`.
        features: The maps that the backbone is asked for, by the number of their layer, ascending.
        main: The layers that the head reads.
        auxiliary: The layers that an auxiliary head reads, one head each.
        num_classes: Number of classes.
        channels: Width inside the head; None for `CHANNELS`.
        dropout: Probability of dropping a channel in front of the last convolution.

    Raises:
        ConfigError: The head is unknown, or a number is out of its range, or transformers is missing for ``upernet``.
    """

    def __init__(
        self,
        kind: HeadKind,
        features: Mapping[int, Feature],
        main: Sequence[int],
        auxiliary: Sequence[int],
        num_classes: int,
        channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        width = CHANNELS.get(kind, 256) if channels is None else channels
        check(kind, width, dropout)
        self.taken, self.main, self.auxiliary = tuple(features), tuple(main), tuple(auxiliary)
        self.multiple = max(feature.reduction for feature in features.values())
        chosen = [features[layer] for layer in self.main]
        self.norms = nn.ModuleList(LayerNorm2d(feature.width) for feature in chosen)
        builders = {"linear": Linear, "naive": Naive, "pup": ProgressiveUpsampling, "mla": MultiLevel}
        self.decoder = builders.get(kind, UPerNet)(chosen, width, num_classes, dropout)
        self.auxiliary_heads = nn.ModuleList(
            nn.Sequential(LayerNorm2d(features[layer].width), Auxiliary(features[layer], width, num_classes, dropout))
            for layer in self.auxiliary
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores ``(batch, classes, h, w)`` on the head's own grid, of maps ``(batch, width, h_i, w_i)``, as taken."""
        chosen = [maps[self.taken.index(layer)] for layer in self.main]
        return cast(Tensor, self.decoder([norm(x) for norm, x in zip(self.norms, chosen, strict=True)]))

    def auxiliary_scores(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Scores ``(batch, classes, h_i, w_i)`` of each auxiliary head."""
        chosen = [maps[self.taken.index(layer)] for layer in self.auxiliary]
        return [head(x) for head, x in zip(self.auxiliary_heads, chosen, strict=True)]


def check(kind: str, channels: int | None, dropout: float) -> None:
    """Refuses a head that cannot be.

    Raises:
        ConfigError: Saying which setting is wrong.
    """
    for name, value, ok, fix in (
        ("head", kind, kind in HEADS, f"choose from {', '.join(HEADS)}"),
        ("head_channels", channels, channels is None or channels >= 2, "give 2 or more, or null"),
        ("head_dropout", dropout, 0 <= dropout < 1, "give a number in [0, 1)"),
    ):
        if not ok:
            raise ConfigError(f"{name} is {value!r}", where=f"model.{name}", fix=fix)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resampling to ``(height, width)``, with the corners of pixels, not their centres, at the borders."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def _convolution(width: int, out: int, kernel: int) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU, at the same size."""
    layer = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _classifier(width: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """The maps one after the other along the channels, on the first one's grid."""
    return torch.cat([resized(x, maps[0].shape[-2:]) for x in maps], dim=1)


class Linear(nn.Module):
    """A linear map of the features at each place."""

    def __init__(self, features: Sequence[Feature], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.classifier = _classifier(sum(feature.width for feature in features), num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores on the first map's grid."""
        return cast(Tensor, self.classifier(_joined(maps)))


class Naive(nn.Module):
    """SETR-Naive: a 1x1 convolution with BatchNorm and ReLU, then a 1x1 convolution."""

    def __init__(self, features: Sequence[Feature], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.convolution = _convolution(sum(feature.width for feature in features), channels, 1)
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores on the first map's grid."""
        return cast(Tensor, self.classifier(self.convolution(_joined(maps))))


class ProgressiveUpsampling(nn.Module):
    """SETR-PUP: 3x3 convolutions, each followed by doubling the size, up to the image's; then a 1x1 convolution."""

    def __init__(self, features: Sequence[Feature], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        steps = max(1, round(math.log2(features[0].reduction)))  # four from 1/16, as in the paper
        widths = [sum(feature.width for feature in features), *[channels] * steps]
        self.convolutions = nn.ModuleList(_convolution(widths[i], widths[i + 1], 3) for i in range(steps))
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores on the first map's grid, doubled once a convolution."""
        x = _joined(maps)
        for convolution in self.convolutions:
            x = convolution(x)
            x = resized(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return cast(Tensor, self.classifier(x))


class MultiLevel(nn.Module):
    """SETR-MLA: several layers' maps, added up from the last to the first, each enlarged four times, then joined."""

    def __init__(self, features: Sequence[Feature], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = nn.ModuleList(_convolution(feature.width, channels, 1) for feature in features)
        self.mix = nn.ModuleList(_convolution(channels, channels, 3) for _ in features)
        self.refine = nn.ModuleList(
            nn.Sequential(_convolution(channels, channels, 3), _convolution(channels, half, 3)) for _ in features
        )
        self.classifier = _classifier(half * len(features), num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores on four times the first map's grid."""
        sums = [narrow(x) for narrow, x in zip(self.narrow, maps, strict=True)]
        for place in reversed(range(len(sums) - 1)):
            sums[place] = sums[place] + resized(sums[place + 1], sums[place].shape[-2:])
        size = [4 * side for side in maps[0].shape[-2:]]
        streams = zip(sums, self.mix, self.refine, strict=True)
        return cast(
            Tensor, self.classifier(torch.cat([resized(refine(mix(x)), size) for x, mix, refine in streams], 1))
        )


class UPerNet(nn.Module):
    """UPerNet's head, of transformers; maps of one scale are first resized to 4, 2, 1 and 1/2 of it.

    Its pooling to a single place needs at least two images in a training batch, for BatchNorm; the tasks see to it.
    """

    scales = (4.0, 2.0, 1.0, 0.5)

    def __init__(self, features: Sequence[Feature], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        try:
            from transformers.models.upernet.modeling_upernet import UperNetHead
        except ImportError as error:
            fix = "pip install 'lightning-petl[transformers]', or choose another head"
            raise ConfigError(
                f"UPerNet is transformers', which cannot be imported: {error}", where="model.head", fix=fix
            ) from None
        settings = SimpleNamespace(pool_scales=(1, 2, 3, 6), hidden_size=channels, num_labels=num_classes)
        decoder: Any = UperNetHead(settings, [feature.width for feature in features])  # type: ignore[no-untyped-call]
        decoder.classifier = _classifier(channels, num_classes, dropout)
        self.decoder = decoder
        single = len({feature.reduction for feature in features}) == 1
        self.resize = self.scales[-len(features) :] if single and 1 < len(features) <= len(self.scales) else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Scores on the largest map's grid."""
        if self.resize is not None:
            sizes = [[max(1, int(scale * side)) for side in maps[0].shape[-2:]] for scale in self.resize]
            maps = [resized(x, size) for x, size in zip(maps, sizes, strict=True)]
        return cast(Tensor, self.decoder(list(maps)))


class Auxiliary(nn.Module):
    """An auxiliary head: a 3x3 convolution with BatchNorm and ReLU, then a 1x1 convolution."""

    def __init__(self, feature: Feature, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.convolution = _convolution(feature.width, channels, 3)
        self.classifier = _classifier(channels, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Scores on the map's grid."""
        return cast(Tensor, self.classifier(self.convolution(x)))
