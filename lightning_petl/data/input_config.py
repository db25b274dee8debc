"""What a backbone wants to see: the facts that turn an image file into its input. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from lightning_petl.errors import ConfigError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
EVAL_TRANSFORMS = ("resize", "crop", "timm", "short", "original")
"""The last two are those of segmentation, see `lightning_petl.data.segmentation.transforms`."""


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the input of a backbone, complete enough to predict from.

    Attributes:
        mean: Subtracted from each channel of an image in 0 to 1.
        std: Divides each channel after that.
        image_size: Height and width of the input, pixels.
        interpolation: Resampling filter, one of `INTERPOLATIONS`.
        crop_pct: Part of the resized shorter side that the centre crop keeps, in (0, 1]. Unused by "resize".
        eval_transform: How an image becomes an input outside training, see `lightning_petl.data.transforms`, and for
            segmentation `lightning_petl.data.segmentation.transforms`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    interpolation: str
    crop_pct: float
    eval_transform: str = "crop"

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("mean", all(map(math.isfinite, self.mean)) and len(self.mean) > 0, "finite numbers, one a channel"),
            ("std", all(math.isfinite(s) and s > 0 for s in self.std), "positive finite numbers"),
            ("std", len(self.std) == len(self.mean), "as many numbers as mean"),
            (
                "image_size",
                len(self.image_size) == 2 and min(self.image_size) >= 1,
                "a height and a width of 1 or more",
            ),
            ("interpolation", self.interpolation in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
            ("crop_pct", 0 < self.crop_pct <= 1, "a number above 0 and up to 1"),
            ("eval_transform", self.eval_transform in EVAL_TRANSFORMS, f"one of {', '.join(EVAL_TRANSFORMS)}"),
        ):
            if not ok:
                raise ConfigError(f"the input setting {name} is {getattr(self, name)}", where=name, fix=f"give {need}")

    def to_dict(self) -> dict[str, str | float | list[float] | list[int]]:
        """The fields as JSON values; tuples become lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> InputConfig:
        """Reads what `to_dict` wrote, for example from a file's header.

        Raises:
            ConfigError: A field is missing, unknown or of the wrong type or range.
        """
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ values.keys()):
            raise ConfigError(
                f"the input settings have wrong or missing fields: {', '.join(wrong)}",
                where=wrong[0],
                fix=f"give exactly {', '.join(sorted(names))}",
            )
        try:
            return cls(
                mean=_numbers(values["mean"]),
                std=_numbers(values["std"]),
                image_size=_size(values["image_size"]),
                interpolation=str(values["interpolation"]),
                crop_pct=_numbers([values["crop_pct"]])[0],
                eval_transform=str(values["eval_transform"]),
            )
        except TypeError as error:
            raise ConfigError(f"the input settings do not read: {error}", fix="write them with to_dict") from error


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not all(type(v) in (int, float) for v in value):
        raise TypeError(f"{value!r} is not numbers")
    return tuple(float(v) for v in value)


def _size(value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(v) is int for v in value):
        raise TypeError(f"{value!r} is not a height and a width")
    return value[0], value[1]
