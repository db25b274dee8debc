"""Video transformers of Hugging Face's transformers library: VideoMAE, TimeSformer and ViViT."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lightning_petl.backbones.transformers_files import load_weights
from lightning_petl.backbones.video import HEAD, VideoArchitecture
from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError
from lightning_petl.heads import video_head


class Family(NamedTuple):
    """One of the library's video transformers.

    Attributes:
        model: Its class.
        config: The class of its configuration.
        hub: The checkpoint that the library documents it with; ``pretrained=True`` takes it.
        mean: Of each channel, as the authors' code subtracts it.
        std: Of each channel.
        crop_pct: Part of the resized shorter side that the authors' code crops.
    """

    model: str
    config: str
    hub: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float


FAMILIES = {
    "videomae": Family(
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        "MCG-NJU/videomae-base",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        1.0,
    ),
    "timesformer": Family(
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        "facebook/timesformer-base-finetuned-k600",
        (0.45,) * 3,
        (0.225,) * 3,
        1.0,
    ),
    "vivit": Family(
        "VivitForVideoClassification",
        "VivitConfig",
        "google/vivit-b-16x2-kinetics400",
        (0.5,) * 3,
        (0.5,) * 3,
        0.875,
    ),
}
"""Names that ``model.backbone`` takes beside timm's."""

_CLASSIFIER = "classifier"


@dataclass(frozen=True)
class VideoTransformer(VideoArchitecture):
    """A video transformer with the library's own classifier, or with the paper's head over the feature it pools.

    ``arguments`` are values of the library's configuration, whose defaults are the base sizes. Without ``head_name``
    the classifier is the library's. With "mean" it is the child ``video_head``, which may have a BatchNorm, and the
    library's classifier lets the pooled feature through; the other heads need features of single frames, and are
    refused.
    """

    kind: ClassVar[str] = "transformers-video"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in FAMILIES:
            raise ValueError(f"{self.name!r} is none of {', '.join(FAMILIES)}")
        if self.head_name not in (None, "mean"):
            fix = "leave model.head out, or set it to mean for model.head_args.batch_norm"
            raise ConfigError(
                f"{self.name} has no features of frames for {self.head_name}", where="model.head", fix=fix
            )
        if self.head_name is None and self.head_arguments:
            fix = "set model.head to mean, or leave model.head_args out"
            raise ConfigError("the library's classifier takes no arguments", where="model.head_args", fix=fix)

    def build(self, pretrained: bool | str = False) -> nn.Module:
        """See `Architecture.build`.

        Args:
            pretrained: A file or folder in the library's layout, a file of VideoMAE's own code, an id on the hub, True
                for the checkpoint that the library documents the model with, False for none.

        Raises:
            ConfigError: transformers is not installed, an argument is wrong, or the weights are not this model's.
        """
        model = self._plain(self.num_classes if self.head_name is None else 0)
        if pretrained:
            source = FAMILIES[self.name].hub if pretrained is True else pretrained
            load_weights(model, self._plain(0), source, self.name)
        if self.head_name is not None:
            place = next(model.parameters())
            config: Any = model.config
            head = video_head(self.head_name, config.hidden_size, self.num_classes, 1, self.head_arguments)
            model.add_module(HEAD, head.to(place.device, place.dtype))
        return model

    def _plain(self, classes: int) -> nn.Module:
        """The library's model without weights of its own."""
        library, family = _library(), FAMILIES[self.name]
        config_class = getattr(library, family.config)
        # Nothing but what the model's own configuration declares: the rest of it runs code, or names files.
        known = sorted(set(config_class.__annotations__) - {"num_frames", "model_type"})
        for argument in self.arguments:
            if argument == "num_frames":
                fix = "set data.frames and model.frames"
                raise ConfigError("num_frames follows from model.frames", where=_at(argument), fix=fix)
            if argument not in known:
                near = difflib.get_close_matches(argument, known, n=3)
                fix = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(known)}"
                raise ConfigError(f"{self.name} has no argument {argument}", where=_at(argument), fix=fix)
        try:
            config = config_class(num_labels=classes, num_frames=self.frames, **self.arguments)
            self._check_tubelets(config)
            model: nn.Module = getattr(library, family.model)(config)
        except ConfigError:
            raise
        except Exception as error:  # the library's checks raise classes of their own
            reason = " ".join(str(error).split())
            raise ConfigError(f"cannot build {self.name}: {reason}", where="model.backbone_args") from error
        return model

    def _check_tubelets(self, config: Any) -> None:
        """Frames that fill no whole tubelet would be left out in silence."""
        size = getattr(config, "tubelet_size", 1)
        length = int(size if isinstance(size, int) else size[0])
        if self.frames % length:
            fix = f"choose a multiple of {length} for data.frames and model.frames"
            raise ConfigError(f"{self.frames} frames are no whole tubelets of {length}", where="model.frames", fix=fix)

    def scores(self, model: nn.Module, clips: Tensor) -> Tensor:
        """The library's logits, or the head's scores of the feature that stands in their place."""
        found: Tensor = model(clips).logits
        return found if self.head_name is None else model.get_submodule(HEAD)(found.unsqueeze(1))

    def head(self, model: nn.Module) -> str:
        """Module path of the head."""
        return _CLASSIFIER if self.head_name is None else HEAD

    def input_config(self, model: nn.Module) -> InputConfig:
        """How the authors' code normalises and crops; the size is the configuration's."""
        config: Any = model.config
        family, size = FAMILIES[self.name], config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return InputConfig(family.mean, family.std, (int(height), int(width)), "bilinear", family.crop_pct)


def _at(argument: str) -> str:
    return f"model.backbone_args.{argument}"


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "video transformers need the transformers library, which is not installed",
            where="model.backbone",
            fix="pip install 'lightning-petl[transformers]'",
        ) from error
    return transformers
