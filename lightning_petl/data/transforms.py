"""From an RGB image to the tensor that a backbone takes. Three ways, for training and for evaluation.

- "resize": straight to the input size whatever the shape, no augmentation, no crop: the VTAB-1k protocol of
  Consolidator (2305.00603), RepAdapter (2302.08106) and ARC (2310.06234), in training too.
- "crop": the shorter side to ``image_size / crop_pct``, then the centre; in training a random resized crop and a flip.
- "timm": timm's own, in training with any of its augmentations (``timm_args``).

Every way ends with the pixels in 0 to 1, minus the mean, divided by the standard deviation.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]
"""Takes an RGB image and returns ``(3, H, W)``, float32."""

TimmArgs = Mapping[str, bool | int | float | str | Sequence[float] | None]

KINDS = ("resize", "crop", "timm")

# Ours to decide: a second value would contradict InputConfig, or change what the transform returns.
_RESERVED = frozenset({"input_size", "is_training", "mean", "std", "normalize", "use_prefetcher", "separate", "naflex"})


def train_transform(kind: str, config: InputConfig, timm_args: TimmArgs | None = None) -> Transform:
    """Builds the transform of training images.

    Args:
        kind: "resize", "crop" or "timm".
        config: Size, filter and normalisation.
        timm_args: Arguments of ``timm.data.create_transform`` for "timm", for example
            ``{"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25}``.

    Raises:
        ConfigError: ``kind`` is unknown, or ``timm_args`` has a wrong value, an unknown or reserved name, or no use.
    """
    require_kind(kind, "data.train_transform")
    if kind == "timm":
        return _timm(config, True, {"interpolation": config.interpolation, **(timm_args or {})})
    if timm_args:
        raise ConfigError(
            f"timm_args has no effect with train_transform={kind!r}",
            where="data.timm_args",
            fix="remove it or set data.train_transform to timm",
        )
    if kind == "resize":
        return _chain(config, _resize(config.image_size, config))
    crop = v2.RandomResizedCrop(config.image_size, interpolation=_filter(config), antialias=True)
    return _chain(config, crop, v2.RandomHorizontalFlip())


def eval_transform(config: InputConfig) -> Transform:
    """Builds the transform of validation, test and prediction images: the one that ``config`` describes.

    Raises:
        ConfigError: "crop" is asked for with an input that is not square.
    """
    require_kind(config.eval_transform, "data.eval_transform")
    if config.eval_transform == "timm":
        return _timm(config, False, {"interpolation": config.interpolation, "crop_pct": config.crop_pct})
    if config.eval_transform == "resize":
        return _chain(config, _resize(config.image_size, config))
    height, width = config.image_size
    if height != width:
        raise ConfigError(
            f"a centre crop to {height}x{width} pixels has no one shorter side to resize",
            where="data.eval_transform",
            fix="use resize or timm, or a square data.image_size",
        )
    # Rounded down, as timm does: 248 for 224 pixels and a crop_pct of 0.9.
    shorter = _resize([math.floor(height / config.crop_pct)], config)
    return _chain(config, shorter, v2.CenterCrop(height))


def require_kind(kind: str, option: str, kinds: Sequence[str] = KINDS) -> None:
    """Raises a `ConfigError` that names the option unless the kind of transform is one of the known."""
    if kind not in kinds:
        raise ConfigError(f"the transform is {kind!r}", where=option, fix=f"choose from {', '.join(kinds)}")


def _timm(config: InputConfig, training: bool, arguments: TimmArgs) -> Transform:
    # Imported here: it takes seconds, and only those who ask for timm's transforms need it.
    from timm.data.transforms_factory import create_transform

    _check_names(arguments, set(inspect.signature(create_transform).parameters))
    build: Callable[..., Transform] = create_transform
    try:
        return build(
            input_size=(3, *config.image_size), is_training=training, mean=config.mean, std=config.std, **arguments
        )
    except Exception as error:  # timm checks values by assertions and by tripping over them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"timm cannot make a transform of {dict(arguments)}: {reason}",
            where="data.timm_args",
            fix="see timm.data.create_transform",
        ) from error


def _check_names(arguments: TimmArgs, known: set[str]) -> None:
    for name in arguments:
        if name in _RESERVED:
            raise ConfigError(f"timm_args sets {name}", where="data.timm_args", fix="use the data module's own options")
        if name not in known:
            near = difflib.get_close_matches(name, known - _RESERVED)
            raise ConfigError(
                f"timm's create_transform has no argument {name}",
                where="data.timm_args",
                fix=f"did you mean {' or '.join(near)}?" if near else "see timm.data.create_transform",
            )


def _filter(config: InputConfig) -> v2.InterpolationMode:
    return v2.InterpolationMode(config.interpolation)


def _resize(size: Sequence[int], config: InputConfig) -> v2.Resize:
    return v2.Resize(size, interpolation=_filter(config), antialias=True)


def _chain(config: InputConfig, *steps: torch.nn.Module) -> Transform:
    normalize = v2.Normalize(list(config.mean), list(config.std))
    chain: Transform = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), normalize])
    return chain
