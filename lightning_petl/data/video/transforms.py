"""From frames to the clip that a backbone takes; whatever is random is drawn once for all frames of a clip.

Frames stay 8-bit until they have their size, and are resized with antialiasing. Both ways end as images do: pixels in
0 to 1, minus the mean, divided by the standard deviation.

- Training: a random crop, a flip, resizing, RandAugment (timm's, on the cropped frames as timm does it on images).
- Evaluation: the shorter side to ``short_side``, then one centre crop, or three along the longer side: first, centre,
  last. ``v = temporal view * crops + crop`` is the order of the views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.randomness import seeded
from lightning_petl.errors import ConfigError

FILTERS = ("nearest", "bilinear", "bicubic")
"""Resampling filters that torch has for tensors."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to training clips in space.

    Attributes:
        crop_scale: Smallest and largest part of the frame's area that a random crop takes; None for no random crop:
            training clips are cut as the centre view of evaluation is.
        crop_ratio: Smallest and largest ratio of a random crop's width to its height.
        horizontal_flip: Flip half of the clips.
        rand_augment: timm's text for RandAugment, as ``rand-m7-n4-mstd0.5-inc1``; None for none.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: bool = True
    rand_augment: str | None = None

    def __post_init__(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        for option, ok, need in (
            ("crop_scale", scale is None or 0 < scale[0] <= scale[1] <= 1, "give two numbers above 0 and up to 1"),
            ("crop_ratio", 0 < ratio[0] <= ratio[1], "give two numbers above 0, the smaller first"),
        ):
            if not ok:
                raise ConfigError(f"{option} is {getattr(self, option)}", where=f"data.{option}", fix=need)


class ClipTransform:
    """What makes a tensor of frames, in two steps: the first keeps 8 bits.

    Args:
        steps: What `cut` does, behind moving the channels.
        config: The normalisation.
    """

    def __init__(self, steps: Sequence[nn.Module], config: InputConfig) -> None:
        self.steps = tuple(steps)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (config.mean, config.std))
        self._scale, self._shift = (1 / (255 * std)).float(), (-mean / std).float()

    def cut(self, frames: Tensor) -> Tensor:
        """Gives frames their size and place.

        Args:
            frames: ``(..., h, w, 3)``, uint8.

        Returns:
            ``(..., 3, H, W)``, uint8.
        """
        cut = frames.movedim(-1, -3)
        for step in self.steps:
            cut = step(cut)
        return cut

    def normalize(self, frames: Tensor, pinned: bool = False) -> Tensor:
        """The normalised pixels of frames that `cut` made, float32 of the same shape."""
        if pinned:
            out = torch.empty(frames.shape, pin_memory=True)
        else:  # NumPy asks the kernel for large pages, and torch does not: most of the time went into small ones
            out = torch.from_numpy(np.empty(frames.shape, np.float32))
        for row, sample in zip(out, frames, strict=True):  # what the next operation reads is still in the cache
            row.copy_(sample).mul_(self._scale).add_(self._shift)
        return out

    def __call__(self, frames: Tensor) -> Tensor:
        """Both steps."""
        return self.normalize(self.cut(frames))


def train_transform(config: InputConfig, short_side: int, augmentation: Augmentation) -> ClipTransform:
    """Builds the transform of training clips, ``(T, h, w, 3)`` uint8 to ``(T, 3, H, W)`` float32.

    Args:
        config: Size, filter and normalisation.
        short_side: See `eval_transform`; for clips without a random crop.
        augmentation: What is random.

    Raises:
        ConfigError: timm does not understand ``rand_augment``, or see `eval_transform`.
    """
    steps: list[nn.Module] = []
    if augmentation.crop_scale is None:
        steps += [_ShortSide(config, short_side), v2.CenterCrop(config.image_size)]
    else:
        steps.append(_RandomPart(augmentation.crop_scale, augmentation.crop_ratio))
    if augmentation.horizontal_flip:
        steps.append(_RandomFlip())
    if augmentation.crop_scale is not None:  # last: to resize a part copies it, and so does a flip
        steps.append(_Resize(config))
    if augmentation.rand_augment is not None:
        steps.append(_RandAugment(augmentation.rand_augment, config))
    return ClipTransform(steps, config)


def eval_transform(config: InputConfig, short_side: int, crops: int) -> ClipTransform:
    """Builds the transform of evaluation, ``(C, T, h, w, 3)`` uint8 to ``(C * crops, T, 3, H, W)`` float32.

    Args:
        config: Size, filter and normalisation.
        short_side: Pixels that the shorter side of the frames is resized to, no fewer than the input has.
        crops: 1 or 3.

    Raises:
        ConfigError: The crops do not fit, there are neither 1 nor 3, or the filter is none of `FILTERS`.
    """
    if crops not in (1, 3):
        raise ConfigError(f"spatial_views is {crops}", where="data.spatial_views", fix="choose 1 or 3")
    return ClipTransform([_ShortSide(config, short_side), _Crops(config.image_size[0], crops)], config)


def _filter(config: InputConfig) -> v2.InterpolationMode:
    if config.interpolation not in FILTERS:
        raise ConfigError(
            f"interpolation is {config.interpolation}",
            where="data.interpolation",
            fix=f"videos are resized by {', '.join(FILTERS)}",
        )
    return v2.InterpolationMode(config.interpolation)


class _RandomPart(nn.Module):
    """A part of frames ``(..., h, w)``, a view; area and shape are drawn as torchvision's RandomResizedCrop draws."""

    def __init__(self, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        super().__init__()
        self.draw = v2.RandomResizedCrop(1, scale, ratio).make_params

    def forward(self, frames: Tensor) -> Tensor:
        part = self.draw([frames])
        top, left = part["top"], part["left"]
        return frames[..., top : top + part["height"], left : left + part["width"]]


class _RandomFlip(nn.Module):
    """Half of the time, left and right of frames ``(..., h, w)`` change places."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames.flip(-1) if torch.rand(1) < 0.5 else frames


class _Resize(nn.Module):
    """Resizes frames ``(..., 3, h, w)`` to the input, with antialiasing."""

    def __init__(self, config: InputConfig) -> None:
        super().__init__()
        self.size, self.filter = config.image_size, _filter(config)

    def forward(self, frames: Tensor) -> Tensor:
        resized: Tensor = v2.functional.resize(frames, self.size, self.filter, antialias=True)
        return resized


class _ShortSide(nn.Module):
    """Resizes frames ``(..., 3, h, w)`` by their shorter side."""

    def __init__(self, config: InputConfig, short_side: int) -> None:
        super().__init__()
        if min(config.image_size) != max(config.image_size):
            height, width = config.image_size
            raise ConfigError(
                f"the backbone takes {height}x{width} pixels, and videos are cropped to squares",
                where="data.image_size",
                fix="give a square data.image_size",
            )
        if short_side < config.image_size[0]:
            raise ConfigError(
                f"short_side is {short_side}, less than the {config.image_size[0]} pixels of the input",
                where="data.short_side",
                fix="raise it, or leave it null",
            )
        self.short_side, self.filter = short_side, _filter(config)

    def forward(self, frames: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        if min(height, width) == self.short_side:
            return frames
        # Of several clips at once: torch resizes batches of one dimension only without a detour.
        flat = frames.flatten(0, -4)
        resized: Tensor = v2.functional.resize(flat, [self.short_side], self.filter, antialias=True)
        return resized.reshape(*frames.shape[:-3], *resized.shape[-3:])


class _Crops(nn.Module):
    """Square crops of ``(C, T, 3, h, w)``, along the longer side: ``(C * crops, T, 3, side, side)``."""

    def __init__(self, side: int, crops: int) -> None:
        super().__init__()
        self.side, self.crops = side, crops

    def forward(self, clips: Tensor) -> Tensor:
        height, width = clips.shape[-2:]
        # As torchvision's centre crop rounds.
        top, left = round((height - self.side) / 2), round((width - self.side) / 2)
        if self.crops == 1:
            corners = [(top, left)]
        elif height > width:
            corners = [(0, left), (top, left), (height - self.side, left)]
        else:
            corners = [(top, 0), (top, left), (top, width - self.side)]
        views = [clips[..., y : y + self.side, x : x + self.side] for y, x in corners]
        return torch.stack(views, dim=1).flatten(0, 1)


class _RandAugment(nn.Module):
    """timm's RandAugment, which takes one image, with the same draws for every frame."""

    def __init__(self, text: str, config: InputConfig) -> None:
        super().__init__()
        # Imported here: it takes seconds, and only those who ask for RandAugment need it.
        from timm.data.auto_augment import rand_augment_transform

        # timm's own for images: shifts of up to 45 % of the side, and the mean colour behind what was moved.
        arguments = {
            "translate_const": int(0.45 * min(config.image_size)),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in config.mean),
            "interpolation": getattr(Image.Resampling, config.interpolation.upper()),
        }
        try:
            if not text.startswith("rand"):
                raise ValueError("it does not start with rand")
            self.augment = rand_augment_transform(text, arguments)
        except Exception as error:  # timm checks its text by assertions and by tripping over it
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"timm cannot make RandAugment of {text!r}: {reason}",
                where="data.rand_augment",
                fix="write it as rand-m7-n4-mstd0.5-inc1",
            ) from error

    def forward(self, frames: Tensor) -> Tensor:
        key = int(torch.randint(2**62, ()))
        return torch.stack([self._one(frame, key) for frame in frames])

    def _one(self, frame: Tensor, key: int) -> Tensor:
        with seeded(key):
            image = self.augment(v2.functional.to_pil_image(frame))
        augmented: Tensor = v2.functional.pil_to_tensor(image)
        return augmented
