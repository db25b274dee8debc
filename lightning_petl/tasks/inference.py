"""From the scores of a segmentation model to those of whole images: at once or by windows, at scales, mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_petl.errors import ConfigError
from lightning_petl.heads.segmentation import resized

InferenceKind = Literal["whole", "slide"]
Score = Callable[[Tensor], Tensor]
"""Scores ``(batch, classes, height, width)`` of images ``(batch, 3, height, width)``."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Inference:
    """How images of any size are scored.

    - "whole" gives the model each image at once.
    - "slide" gives it windows. Where windows overlap, a pixel's score is the mean over those that hold it. The last
      window of a row or column ends at the image's border. An image smaller than a window in one direction has a
      smaller window there, so that a window which covers the image gives what "whole" gives; with ``fill``, zeros fill
      it up to the window on the right and below, and their scores are cut off.

    With several scales, or with ``flip``, the probabilities of all views are averaged on the mask's pixels.

    Peak memory is that of ``per_step`` windows, and of one image's scores.

    Args:
        kind: "whole" or "slide".
        window: Height and width of a window of "slide".
        stride: Steps of "slide" from window to window, down and to the right.
        per_step: Windows, or whole images of one size, that the model takes at a time.
        scales: Factors of an image's size.
        flip: Whether to add each view's mirror image.
        fill: Whether images smaller than a window are filled up to it, for models that take one size alone.

    Raises:
        ConfigError: A setting is out of its range, or has no effect.
    """

    kind: InferenceKind = "whole"
    window: Size | None = None
    stride: Size | None = None
    per_step: int = 8
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fill: bool = False

    def __post_init__(self) -> None:
        window, stride = self.window or (1, 1), self.stride or (1, 1)
        for name, value, ok, fix in (
            ("inference", self.kind, self.kind in get_args(InferenceKind), "choose whole or slide"),
            ("window", self.window, len(window) == 2 and min(window) >= 1, "give a height and a width"),
            ("stride", self.stride, len(stride) == 2 and min(stride) >= 1, "give steps down and to the right"),
            (
                "stride",
                self.stride,
                self.window is None or self.stride is None or all(s <= w for s, w in zip(stride, window, strict=True)),
                "give no more than the window, or pixels between windows would have no score",
            ),
            ("windows_per_step", self.per_step, self.per_step >= 1, "give 1 or more"),
            (
                "scales",
                self.scales,
                bool(self.scales) and all(0 < s <= 16 for s in self.scales),
                "give factors above 0",
            ),
        ):
            if not ok:
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"{name} is {shown!r}", where=f"model.{name}", fix=fix)
        for name, given in (("window", self.window), ("stride", self.stride)):
            if self.kind == "whole" and given is not None:
                raise ConfigError(
                    f"{name} has no effect with inference={self.kind!r}",
                    where=f"model.{name}",
                    fix="remove it (or set it to null), or set model.inference to slide",
                )

    def __call__(self, score: Score, images: Sequence[Tensor], sizes: Sequence[Size]) -> Iterator[Tensor]:
        """Scores of images, one after the other, ``(classes, height, width)``.

        They are logits of a single view, and logarithms of mean probabilities of several: ``softmax`` gives
        probabilities of both.

        Args:
            score: The model.
            images: Each ``(3, h, w)``.
            sizes: Height and width of each image's result.
        """
        if len(self.scales) == 1 and not self.flip:
            yield from self._view(score, images, sizes, self.scales[0])
            return
        for image, size in zip(images, sizes, strict=True):
            yield self._averaged(score, image, size)

    def _averaged(self, score: Score, image: Tensor, size: Size) -> Tensor:
        total: Tensor | None = None
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        for scale, mirrored in views:
            (scores,) = self._view(score, [image.flip(-1) if mirrored else image], [size], scale)
            found = scores.softmax(dim=0)
            found = found.flip(-1) if mirrored else found
            total = found if total is None else total.add_(found)
        assert total is not None  # there is a scale
        smallest = torch.finfo(total.dtype).tiny
        return total.div_(len(views)).clamp_(min=smallest).log_()

    def _view(self, score: Score, images: Sequence[Tensor], sizes: Sequence[Size], scale: float) -> Iterator[Tensor]:
        """Scores of one view of each image."""
        scaled = [_scaled(image, scale) for image in images]
        if self.kind == "slide":
            for image, size in zip(scaled, sizes, strict=True):
                yield resized(self._slide(score, image)[None], size)[0]
            return
        pairs = zip(scaled, sizes, strict=True)
        for _, group in groupby(pairs, key=lambda pair: pair[0].shape):
            same = list(group)
            for start in range(0, len(same), self.per_step):
                part = same[start : start + self.per_step]
                found = score(torch.stack([image for image, _ in part]))
                for scores, (_, size) in zip(found, part, strict=True):
                    yield resized(scores[None], size)[0]

    def _slide(self, score: Score, image: Tensor) -> Tensor:
        """The mean over windows, ``(classes, h, w)``."""
        shown = image.shape[-2:]
        window = self.window or (shown[0], shown[1])
        if self.fill:
            image = F.pad(image, (0, max(0, window[1] - shown[1]), 0, max(0, window[0] - shown[0])))
        height, width = image.shape[-2:]
        stride = self.stride or tuple(max(1, 2 * side // 3) for side in window)
        rows, high = _starts(height, window[0], stride[0]), min(height, window[0])
        columns, wide = _starts(width, window[1], stride[1]), min(width, window[1])
        places = [(top, left) for top in rows for left in columns]
        total: Tensor | None = None
        for start in range(0, len(places), self.per_step):
            part = places[start : start + self.per_step]
            found = score(torch.stack([image[:, top : top + high, left : left + wide] for top, left in part]))
            if total is None:
                total = found.new_zeros(found.shape[1], height, width)
            for scores, (top, left) in zip(found, part, strict=True):
                total[:, top : top + high, left : left + wide] += scores
        assert total is not None  # there is a window
        if len(places) > 1:
            total /= _counts(rows, high, height, total)[:, None] * _counts(columns, wide, width, total)
        return total[:, : shown[0], : shown[1]]


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side; the last one ends at the border."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def _counts(starts: Sequence[int], window: int, length: int, like: Tensor) -> Tensor:
    """How many windows hold each place of one side, ``(length,)``."""
    counts = like.new_zeros(length)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    exact = image[None].to(
        torch.promote_types(image.dtype, torch.float32)
    )  # the CPU cannot antialias in half precision
    found = F.interpolate(exact, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
    return found[0].to(image.dtype)
