"""Heads over the frames of a clip: features of single frames in, scores of classes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_petl.errors import ConfigError

VideoHeadName = Literal["mean", "conv", "attention"]
HeadArgument = bool | int | float


def _classifier(width: int, classes: int, batch_norm: bool) -> nn.Sequential:
    """A linear layer, weights normal with a standard deviation of 0.01, where asked for behind a plain BatchNorm.

    The BatchNorm, without scale and shift and with an epsilon of 1e-6, is that of MAE's linear probe (arXiv
    2111.06377), which AdaptFormer (arXiv 2205.13535) and with it RepAdapter use for video.
    """
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False) if batch_norm else nn.Identity(), linear)


class MeanHead(nn.Module):
    """Classifies the mean of a clip's frames: their order does not matter.

    Args:
        width: Features of a frame.
        classes: Number of classes.
        frames: Frames of a clip; any number is taken.
        batch_norm: Normalise the mean with the training clips' statistics, without scale and shift. These statistics
            are the head's only other state, and are stored with it.
    """

    def __init__(self, width: int, classes: int, frames: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.classifier = _classifier(width, classes, batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of features ``(batch, frames, width)``."""
        scores: Tensor = self.classifier(features.mean(dim=1))
        return scores


class TemporalConvHead(nn.Module):
    """Two convolutions over time, each followed by a GELU, then the mean: it tells a change from its reverse.

    Args:
        width: Features of a frame.
        classes: Number of classes.
        frames: Frames of a clip; any number is taken.
        hidden: Channels of the convolutions.
        kernel: Frames that a convolution sees at once, odd; the ends of a clip are padded with zeros.
        dropout: Probability of dropping a feature in front of the classifier.
        batch_norm: See `MeanHead`.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        frames: int,
        hidden: int = 128,
        kernel: int = 3,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise ConfigError(f"hidden is {hidden}", where="model.head_args.hidden", fix="give 1 or more")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"kernel is {kernel}", where="model.head_args.kernel", fix="give an odd number of frames")
        _check_dropout(dropout)
        self.scale = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, hidden, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2)
        self.act = nn.GELU()
        self.drop = nn.Dropout(dropout)
        self.classifier = _classifier(hidden, classes, batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of features ``(batch, frames, width)``."""
        hidden = self.act(self.first(self.scale(features).mT))
        hidden = self.act(self.second(hidden)).mean(dim=-1)
        scores: Tensor = self.classifier(self.drop(hidden))
        return scores


class _Mixing(nn.Module):
    """One transformer layer over the frames. Its names are none that methods look for in a backbone's blocks."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, frames + 1, width)``, as its input."""
        seen = self.before(x)
        x = x + self.mix(seen, seen, seen, need_weights=False)[0]
        out: Tensor = x + self.feed(self.between(x))
        return out


class TemporalAttentionHead(nn.Module):
    """A small transformer over the frames: learnt positions tell their order, and a class token is classified.

    Args:
        width: Features of a frame.
        classes: Number of classes.
        frames: Frames of a clip; each has its own learnt position.
        hidden: Width of the transformer.
        heads: Attention heads, a divisor of ``hidden``.
        depth: Number of transformer layers.
        dropout: Probability of dropping a feature inside the layers, in training.
        batch_norm: See `MeanHead`.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        frames: int,
        hidden: int = 128,
        heads: int = 4,
        depth: int = 1,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 1 or heads < 1 or hidden % heads:
            where = "model.head_args.heads"
            raise ConfigError(f"{heads} heads share {hidden} features", where=where, fix="heads must divide hidden")
        if depth < 1:
            raise ConfigError(f"depth is {depth}", where="model.head_args.depth", fix="give 1 or more")
        _check_dropout(dropout)
        self.scale = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, hidden)
        self.token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.position = nn.Parameter(torch.zeros(1, frames + 1, hidden))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.over_time = nn.Sequential(*(_Mixing(hidden, heads, dropout) for _ in range(depth)))
        self.last = nn.LayerNorm(hidden)
        self.classifier = _classifier(hidden, classes, batch_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of features ``(batch, frames, width)``."""
        hidden = self.reduce(self.scale(features))
        hidden = torch.cat([self.token.expand(len(hidden), -1, -1), hidden], dim=1) + self.position
        scores: Tensor = self.classifier(self.last(self.over_time(hidden)[:, 0]))
        return scores


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout is {dropout}", where="model.head_args.dropout", fix="give a number in [0, 1)")


HEADS: dict[VideoHeadName, type[nn.Module]] = {
    "mean": MeanHead,
    "conv": TemporalConvHead,
    "attention": TemporalAttentionHead,
}


def video_head(name: str, width: int, classes: int, frames: int, arguments: Mapping[str, HeadArgument]) -> nn.Module:
    """Builds a head over frames.

    Args:
        name: "mean", "conv" or "attention".
        width: Features of a frame.
        classes: Number of classes.
        frames: Frames of a clip.
        arguments: Further arguments of the head.

    Raises:
        ConfigError: The name or an argument is wrong.
    """
    if name not in get_args(VideoHeadName):
        choices = ", ".join(get_args(VideoHeadName))
        raise ConfigError(f"no head over frames is called {name!r}", where="model.head", fix=f"choose {choices}")
    for fixed in ("width", "classes", "frames"):
        if fixed in arguments:
            raise ConfigError(f"{fixed} follows from backbone and data", where=f"model.head_args.{fixed}", fix="remove")
    kwargs: dict[str, Any] = dict(arguments)
    try:
        return HEADS[name](width, classes, frames, **kwargs)  # type: ignore[index]
    except TypeError as error:
        raise ConfigError(f"the {name} head does not take these arguments: {error}", where="model.head_args") from None
