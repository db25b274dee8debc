"""From an image and its mask to tensors: one geometry for both, so that each pixel keeps its class.

Training: the shorter side to ``short_side`` times a random factor, the ratio kept; a random crop of several classes,
none of which covers too much; a flip; photometric distortion; normalisation; padding to the crop's size. The steps and
their numbers are those of mmsegmentation's recipes for ADE20K, which SETR (arXiv 2012.15840, official code) uses; the
photometric distortion is SSD's (arXiv 1512.02325).

Evaluation: "short" resizes the shorter side to ``short_side``, "original" nothing; the mask stays as it is in its file.

Masks are resampled with the nearest pixel, centre to centre, and never get an id that was not there. All draws are
torch's, on the CPU, so that `randomness.seeded` decides them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode

from lightning_petl.data.input_config import InputConfig
from lightning_petl.data.segmentation.masks import IGNORED
from lightning_petl.errors import ConfigError

LONGEST = 4
"""The longer side gets at most this many times the shorter side's target: 2048 for 512, as in the official recipes."""

RETRIES = 10
"""How often a crop is drawn anew that has too few classes, or too much of one; the last is taken as it is."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 0.1
"""Largest photometric changes: grey levels of 255, factors, and part of the colour circle."""

Sample = tuple[tv_tensors.Image, tv_tensors.Mask]
Transform = Callable[[Image.Image, NDArray[np.uint8]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Augmentation:
    """What changes between the epochs.

    Attributes:
        scale: Smallest and largest factor of the shorter side.
        cat_max_ratio: Part of a crop's pixels, those with a class, that no class may reach, so that there are two at
            least; other crops are drawn anew, ten times at most. 1 takes every crop.
        flip: Probability of a horizontal flip.
        photometric: Whether brightness, contrast, saturation and hue change, each with probability 1/2.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True

    def __post_init__(self) -> None:
        for option, ok, need in (
            ("scale", 0 < self.scale[0] <= self.scale[1], "two positive numbers, the smaller first"),
            ("cat_max_ratio", 0 < self.cat_max_ratio <= 1, "a number above 0 and up to 1"),
            ("flip", 0 <= self.flip <= 1, "a probability"),
        ):
            if not ok:
                raise ConfigError(f"{option} is {getattr(self, option)}", where=f"data.{option}", fix=f"give {need}")


def fitted(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after the shorter side became ``short_side`` and the longer at most `LONGEST` times that."""
    factor = min(short_side / min(height, width), LONGEST * short_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def short_side(config: InputConfig) -> int:
    """Pixels that ``config`` resizes the shorter side to: the input's shorter side is ``crop_pct`` of it."""
    return round(min(config.image_size) / config.crop_pct)


class TrainTransform:
    """Turns an image and a mask into tensors ``(3, H, W)``, float32, and ``(H, W)``, int64.

    Args:
        config: Size of the crop, shorter side, filter and normalisation.
        augmentation: What is drawn, from torch's generator on the CPU.
    """

    def __init__(self, config: InputConfig, augmentation: Augmentation) -> None:
        self.config, self.augmentation = config, augmentation

    def __call__(self, image: Image.Image, mask: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Draws one version of a sample, by torch's generator on the CPU."""
        low, high = self.augmentation.scale
        size = fitted(image.height, image.width, max(1, round(short_side(self.config) * _between(low, high))))
        sample = _resized(image, mask, size, self.config)
        sample = _crop(sample, self.config.image_size, self.augmentation.cat_max_ratio)
        if _happens(self.augmentation.flip):
            sample = F.horizontal_flip(sample[0]), F.horizontal_flip(sample[1])
        picture = _distort(sample[0]) if self.augmentation.photometric else sample[0]
        return _padded(_normalized(picture, self.config), sample[1], self.config.image_size)


class EvalTransform:
    """Turns an image into a tensor ``(3, h, w)``, float32, of the size that ``config.eval_transform`` says.

    Raises:
        ConfigError: That is neither "short" nor "original".
    """

    KINDS = ("short", "original")

    def __init__(self, config: InputConfig) -> None:
        if config.eval_transform not in self.KINDS:
            raise ConfigError(
                f"the transform is {config.eval_transform!r}",
                where="data.eval_transform",
                fix=f"choose from {', '.join(self.KINDS)}",
            )
        self.config = config

    def __call__(self, image: Image.Image) -> Tensor:
        """Resizes and normalises."""
        if self.config.eval_transform == "short":
            image = _resize(image, fitted(image.height, image.width, short_side(self.config)), self.config)
        return _normalized(F.to_image(image), self.config)


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resamples a mask ``(h, w)`` to a size: each pixel gets the id of the one whose place its centre falls into.

    Pillow's, as for images. torchvision's for masks takes the corner for the centre, which moves a mask by up to half a
    pixel against its image.
    """
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _resized(image: Image.Image, mask: NDArray[np.uint8], size: tuple[int, int], config: InputConfig) -> Sample:
    picture = tv_tensors.Image(F.to_image(_resize(image, size, config)))
    return picture, tv_tensors.Mask(torch.from_numpy(resize_mask(mask, size)))


def _resize(image: Image.Image, size: tuple[int, int], config: InputConfig) -> Image.Image:
    # Pillow's resampling: it has every filter, and always smooths what it makes smaller.
    return image if image.size == size[::-1] else F.resize(image, list(size), InterpolationMode(config.interpolation))


def _crop(sample: Sample, size: tuple[int, int], cat_max_ratio: float) -> Sample:
    picture, mask = sample
    height, width = (min(have, want) for have, want in zip(mask.shape, size, strict=True))
    for _ in range(1 + RETRIES):
        top, left = _below(mask.shape[0] - height + 1), _below(mask.shape[1] - width + 1)
        cut = F.crop(mask, top, left, height, width)
        if cat_max_ratio >= 1 or largest_share(cut) < cat_max_ratio:
            break
    return F.crop(picture, top, left, height, width), cut


def largest_share(mask: Tensor) -> float:
    """Part of a mask's pixels, those with a class, that its commonest class covers; 1 where no pixel has one."""
    counts = torch.bincount(mask.as_subclass(Tensor).flatten().long(), minlength=IGNORED + 1)[:IGNORED]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def _distort(image: tv_tensors.Image) -> tv_tensors.Image:
    """SSD's order: contrast comes before saturation and hue, or after them."""
    pixels = image.as_subclass(Tensor).float()
    if _happens(0.5):
        pixels = (pixels + _between(-BRIGHTNESS, BRIGHTNESS)).clamp(0, 255)
    contrast_first = _happens(0.5)
    contrast = _between(*CONTRAST) if _happens(0.5) else 1.0
    if contrast_first:
        pixels = (pixels * contrast).clamp(0, 255)
    pixels = pixels / 255
    if _happens(0.5):
        pixels = F.adjust_saturation(pixels, _between(*SATURATION))
    if _happens(0.5):
        pixels = F.adjust_hue(pixels, _between(-HUE, HUE))
    pixels = pixels * 255
    if not contrast_first:
        pixels = (pixels * contrast).clamp(0, 255)
    return tv_tensors.Image(pixels.round().to(torch.uint8))


def _normalized(image: Tensor, config: InputConfig) -> Tensor:
    pixels = F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)
    normalized: Tensor = F.normalize(pixels, list(config.mean), list(config.std))
    return normalized


def _padded(image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Fills up right and below: the image with 0, which is the mean, and the mask with `IGNORED`."""
    edges = [0, 0, size[1] - mask.shape[1], size[0] - mask.shape[0]]
    return F.pad(image, edges, fill=0), F.pad(mask.as_subclass(Tensor).long()[None], edges, fill=IGNORED)[0]


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _below(bound: int) -> int:
    return int(torch.randint(bound, ()))


def _happens(probability: float) -> bool:
    return float(torch.rand(())) < probability
