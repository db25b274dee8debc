"""What the user chose about the input, and what the backbone's own settings make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_petl.data.input_config import INTERPOLATIONS, InputConfig
from lightning_petl.data.transforms import KINDS, require_kind
from lightning_petl.errors import ConfigError

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "backbone": None,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation by name; "backbone" leaves them to the backbone."""


@dataclass(frozen=True)
class InputChoice:
    """The options of a data module that decide its `InputConfig`; None is the backbone's own, see `ImageOptions`."""

    kinds: ClassVar[tuple[str, ...]] = KINDS
    """What ``eval_transform`` may be."""

    image_size: int | None
    normalization: str
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    interpolation: str
    crop_pct: float | None
    eval_transform: str

    def __post_init__(self) -> None:
        require_kind(self.eval_transform, "data.eval_transform", self.kinds)
        self._check_normalization()
        for option, ok, need in (
            ("image_size", self.image_size is None or self.image_size >= 1, "give pixels of 1 or more"),
            ("interpolation", self.interpolation in INTERPOLATIONS, f"choose from {', '.join(INTERPOLATIONS)}"),
            ("crop_pct", self.crop_pct is None or 0 < self.crop_pct <= 1, "give a number above 0 and up to 1"),
            ("crop_pct", self.crop_pct is None or self.eval_transform != "resize", "use it with crop or timm only"),
        ):
            if not ok:
                raise ConfigError(f"{option} is {getattr(self, option)}", where=f"data.{option}", fix=need)

    def _check_normalization(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            names = ", ".join(NORMALIZATIONS)
            raise ConfigError(
                f"the normalization is {self.normalization!r}",
                where="data.normalization",
                fix=f"choose from {names}, or give data.mean and data.std",
            )
        if (self.mean is None) != (self.std is None):
            lacking = "std" if self.std is None else "mean"
            raise ConfigError(
                f"{lacking} is missing", where=f"data.{lacking}", fix="give data.mean and data.std together"
            )
        if self.mean is not None and self.normalization != "backbone":
            raise ConfigError(
                f"mean and std are given beside normalization={self.normalization!r}",
                where="data.normalization",
                fix="give one or the other",
            )
        if any(len(values) != 3 for values in (self.mean, self.std) if values is not None):
            raise ConfigError("images have three channels", where="data.mean", fix="give three numbers")

    def resolve(self, backbone: InputConfig | None) -> InputConfig:
        """Fills what was left to the backbone.

        Raises:
            ConfigError: Something was left to the backbone, and none is known; or it does not take RGB images.
        """
        mean, std = self._normalization(backbone)
        if len(mean) != 3:
            raise ConfigError(
                f"the backbone takes {len(mean)} channels, and images have three",
                where="data.normalization",
                fix="give data.mean and data.std of three numbers if it takes RGB after all",
            )
        side = self.image_size
        size = (side, side) if side is not None else _known(backbone, "image_size").image_size
        if self.eval_transform == "resize":
            crop_pct = 1.0  # nothing is cut
        else:
            crop_pct = self.crop_pct if self.crop_pct is not None else _known(backbone, "crop_pct").crop_pct
        return InputConfig(mean, std, size, self.interpolation, crop_pct, self.eval_transform)

    def _normalization(self, backbone: InputConfig | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        if (named := NORMALIZATIONS[self.normalization]) is not None:
            return named
        own = _known(backbone, "normalization")
        return own.mean, own.std


def _known(backbone: InputConfig | None, option: str) -> InputConfig:
    if backbone is None:
        raise ConfigError(
            f"{option} is left to the backbone, whose input settings are not known",
            where=f"data.{option}",
            fix=f"train with a task that has a backbone, set the module's input_config, or give data.{option}",
        )
    return backbone
