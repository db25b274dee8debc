"""A timm backbone with a decode head: feature maps of chosen layers, and a score for each class at each place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_petl import probe
from lightning_petl.adapter import JSON
from lightning_petl.backbones import timm_models
from lightning_petl.backbones.architecture import Architecture
from lightning_petl.backbones.timm_models import TimmArgument
from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError
from lightning_petl.heads.segmentation import SINGLE, DecodeHead, Feature, HeadKind, check, resized

ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Arguments that let timm's models take images of any size; the first that a model knows is set."""


@dataclass(frozen=True)
class Segmenter(Architecture):
    """A timm backbone without a classifier, and a `DecodeHead` as its child ``decode_head``.

    Feature maps come from timm's ``forward_intermediates``, before the backbone's last norm. Images of any size are
    taken: zeros, the mean after normalisation, fill them up on the right and below to a multiple of the coarsest map's
    reduction. A ViT's position embedding is resampled to the image's grid (bicubic, timm's own
    ``resample_abs_pos_embed``), and Swin fills up its windows itself. A backbone that timm gives one size alone (BEiT,
    Hiera, CoAtNet) takes images of that size: windows of it, in inference.

    Args:
        name: timm's name of a model.
        arguments: Keyword arguments of the model.
        num_classes: Number of classes.
        head: Kind of the head, see `lightning_petl.heads.segmentation`.
        channels: Width inside the head; None for the head's own.
        layers: The layers whose maps the head reads, from the first to the last: blocks of a ViT, stages of a
            hierarchical backbone, counted from 0, negative from the end. None for the last one (linear, naive, pup),
            or for four: all stages or every fourth part of the blocks (mla, upernet).
        auxiliary: The layers that have an auxiliary head, which only training runs.
        dropout: Probability of dropping a channel in front of a head's last convolution.
    """

    kind: ClassVar[str] = "segmentation"

    name: str
    arguments: Mapping[str, TimmArgument] = field(default_factory=dict)
    num_classes: int = 1
    head_kind: HeadKind = "linear"
    channels: int | None = None
    layers: tuple[int, ...] | None = None
    auxiliary: tuple[int, ...] = ()
    dropout: float = 0.1

    def build(self, pretrained: bool | str = False) -> nn.Module:
        """See `Architecture.build` and `timm_models.create`.

        Raises:
            ConfigError: Also where the backbone gives no feature maps, or lacks a layer.
        """
        check(self.head_kind, self.channels, self.dropout)
        model = timm_models.create(self.name, self._arguments(), 0, pretrained)
        levels = [Feature(int(level["num_chs"]), int(level["reduction"])) for level in _levels(model, self.name)]
        main, auxiliary = self._main(levels), _places(self.auxiliary, len(levels), "auxiliary_layers")
        taken = sorted({*main, *auxiliary})
        features = {layer: levels[layer] for layer in taken}
        settings = (self.num_classes, self.channels, self.dropout)
        model.add_module("decode_head", DecodeHead(self.head_kind, features, main, auxiliary, *settings))
        return model

    def _arguments(self) -> dict[str, TimmArgument]:
        """The arguments as given, and what makes the model take images of any size."""
        given = dict(self.arguments)
        with torch.device("meta"):  # no memory, and no weights: its class alone is asked for
            model = timm_models.create(self.name, given, 0)
        settings = next((setting for setting in ANY_SIZE if _takes(model, setting.keys())), {})
        return {**settings, **given}

    def _main(self, levels: Sequence[Feature]) -> tuple[int, ...]:
        if self.layers:
            return _places(self.layers, len(levels), "layers")
        if self.head_kind in SINGLE:
            return (len(levels) - 1,)
        count = min(4, len(levels))
        if len({level.reduction for level in levels}) > 1:
            return tuple(range(len(levels) - count, len(levels)))
        return tuple(round((part + 1) * len(levels) / count) - 1 for part in range(count))

    def run(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes, h, w)`` on the head's own grid, of images ``(batch, 3, height, width)``.

        The grid covers the image filled up to `grid_size`; `scores` gives them on the image's pixels.
        """
        return cast(Tensor, _head(model)(self.features(model, inputs)))

    def run_all(self, model: nn.Module, inputs: Tensor) -> list[Tensor]:
        """The scores of the head, then those of each auxiliary head, on their own grids."""
        features = self.features(model, inputs)
        return [_head(model)(features), *_head(model).auxiliary_scores(features)]

    def features(self, model: nn.Module, inputs: Tensor) -> list[Tensor]:
        """Feature maps ``(batch, width, h, w)`` of the layers that the heads read.

        Raises:
            ConfigError: The backbone takes images of one size alone, and these have another.
        """
        height, width = inputs.shape[-2:]
        rows, columns = self.grid_size(model, (height, width))
        padded = F.pad(inputs, (0, columns - width, 0, rows - height))
        try:
            return _maps(model, padded)
        except _SIZE_ERRORS as error:
            if (rows, columns) == self.input_config(model).image_size or not self.of_one_size(model):
                raise
            raise self._wrong_size(model, (rows, columns), error) from error

    def of_one_size(self, model: nn.Module) -> bool:
        """Whether the backbone takes a blank image of its own size, and fails on a larger one."""
        own, multiple = self.input_config(model).image_size, _head(model).multiple
        height, width = self.grid_size(model, own)
        return not _runs(model, (height + multiple, width + multiple)) and _runs(model, own)

    def _wrong_size(self, model: nn.Module, size: tuple[int, int], error: Exception) -> ConfigError:
        own = self.input_config(model).image_size
        if self.grid_size(model, own) != own:
            fix = f"choose model.layers whose reductions divide {own[0]} and {own[1]}, or another backbone"
        else:
            named = "or set model.backbone_args.img_size, " if _takes(model, {"img_size"}) else ""
            fix = (
                f"set data.image_size to {list(own)}, and model.inference to slide with model.window {list(own)} or "
                f"null, {named}or choose another backbone"
            )
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        what = f"{self.name} takes no images of {size[0]} x {size[1]}, its own size is {own[0]} x {own[1]} ({reason})"
        return ConfigError(what, where="model.backbone", fix=fix)

    def reads_last(self, model: nn.Module) -> bool:
        """Whether a head reads the last layer that gives a feature map."""
        return _head(model).taken[-1] == len(_levels(model, self.name)) - 1

    def grid_size(self, model: nn.Module, size: Sequence[int]) -> tuple[int, int]:
        """The height and width to which an image is filled up."""
        multiple = _head(model).multiple
        return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple

    def on_pixels(self, model: nn.Module, scores: Tensor, size: Sequence[int]) -> Tensor:
        """Scores of a head on the pixels of images ``(height, width)``: bilinear, and what filled up is cut off."""
        full = resized(scores, self.grid_size(model, size))
        return full[..., : size[0], : size[1]]

    def head(self, model: nn.Module) -> str:
        """Module path of the decode head."""
        return "decode_head"

    def input_config(self, model: nn.Module) -> InputConfig:
        """See `timm_models.input_config`."""
        return timm_models.input_config(model)

    def record(self) -> dict[str, JSON]:
        """What builds it again; ``head`` holds the settings of the decode head."""
        head: dict[str, JSON] = {
            "kind": self.head_kind,
            "channels": self.channels,
            "layers": None if self.layers is None else list(self.layers),
            "auxiliary": list(self.auxiliary),
            "dropout": self.dropout,
        }
        arguments = cast(dict[str, JSON], {**self.arguments, "num_classes": self.num_classes})
        return {"kind": self.kind, "name": self.name, "arguments": arguments, "head": head}

    @classmethod
    def from_record(cls, record: Mapping[str, JSON]) -> Self:
        """See `Architecture.from_record`."""
        arguments: dict[str, Any] = dict(cast(Mapping[str, JSON], record["arguments"]))
        head: dict[str, Any] = dict(cast(Mapping[str, JSON], record["head"]))
        layers = None if head["layers"] is None else tuple(map(int, head["layers"]))
        channels = None if head["channels"] is None else int(head["channels"])
        settings = (head["kind"], channels, layers, tuple(map(int, head["auxiliary"])), float(head["dropout"]))
        return cls(str(record["name"]), arguments, int(arguments.pop("num_classes")), *settings)


_SIZE_ERRORS = (AssertionError, RuntimeError)
"""What timm's models and torch raise at an image of a wrong size; they raise them for other reasons, too."""


def _takes(model: nn.Module, arguments: Set[str]) -> bool:
    """Whether a model's class has these arguments."""
    return inspect.signature(type(model)).parameters.keys() >= arguments


def _maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps of the layers that the heads read."""
    layers = list(_head(model).taken)
    maps = model.forward_intermediates(  # type: ignore[operator]
        images, indices=layers, norm=False, stop_early=True, intermediates_only=True
    )
    return cast(list[Tensor], maps)


def _runs(model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether a model takes a blank image of a size."""
    blank = next(model.parameters()).new_zeros(1, 3, *size)
    with probe.mode(model, False), torch.no_grad():
        try:
            _maps(model, blank)
        except _SIZE_ERRORS:
            return False
    return True


def _levels(model: nn.Module, name: str) -> Sequence[Mapping[str, Any]]:
    """The model's own list of the layers that give feature maps.

    Raises:
        ConfigError: The model has none.
    """
    levels = getattr(model, "feature_info", None)
    if not levels or not hasattr(model, "forward_intermediates"):
        fix = "choose one with timm's forward_intermediates, such as a ViT, Swin or ConvNeXt"
        raise ConfigError(f"{name} gives no feature maps", where="model.backbone", fix=fix)
    return list(levels)


def _places(layers: Sequence[int], count: int, option: str) -> tuple[int, ...]:
    """Layers counted from 0.

    Raises:
        ConfigError: There is no such layer, or they do not ascend.
    """
    places = tuple(layer + count if layer < 0 else layer for layer in layers)
    if not all(0 <= place < count for place in places) or list(places) != sorted(set(places)):
        fix = f"give numbers from 0 to {count - 1}, each larger than the one before"
        raise ConfigError(f"{option} is {list(layers)}", where=f"model.{option}", fix=fix)
    return places


def _head(model: nn.Module) -> DecodeHead:
    return cast(DecodeHead, model.get_submodule("decode_head"))
