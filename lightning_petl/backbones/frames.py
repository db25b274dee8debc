"""Any timm image model over the frames of a clip, under a head that turns their features into scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from lightning_petl import probe
from lightning_petl.backbones import timm_models
from lightning_petl.backbones.video import HEAD, VideoArchitecture
from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError
from lightning_petl.heads import video_head


@dataclass(frozen=True)
class FrameClassifier(VideoArchitecture):
    """A timm model without its classifier, run on every frame, with a head over the frames' pooled features.

    The head is the model's child ``video_head``, the mean of the frames where no other is named. All other tensors keep
    timm's names, and the model's own forward still takes images and gives their features.
    """

    kind: ClassVar[str] = "frames"

    def build(self, pretrained: bool | str = False) -> nn.Module:
        """See `Architecture.build` and `timm_models.create`.

        Raises:
            ConfigError: The backbone or the head cannot be built, or the backbone gives no features of images.
        """
        model = timm_models.create(self.name, self.arguments, 0, pretrained)
        place = next(model.parameters())
        head = video_head(
            self.head_name or "mean", self._width(model), self.num_classes, self.frames, self.head_arguments
        )
        model.add_module(HEAD, head.to(place.device, place.dtype))
        return model

    def _width(self, model: nn.Module) -> int:
        """Features of an image, seen in a run that costs nothing."""
        inputs = probe.usable_inputs(model)
        features = None if inputs is None else probe.forward(model, inputs)
        if not isinstance(features, Tensor) or features.dim() != 2:
            fix = "choose a model that pools its features, such as a ViT or a ConvNeXt"
            raise ConfigError(f"{self.name} gives no features (images, width)", where="model.backbone", fix=fix)
        return features.shape[1]

    def scores(self, model: nn.Module, clips: Tensor) -> Tensor:
        """All frames through the model as one batch of images, then the head."""
        features = cast(Tensor, model(clips.flatten(0, 1)))
        return cast(Tensor, model.get_submodule(HEAD)(features.reshape(*clips.shape[:2], -1)))

    def head(self, model: nn.Module) -> str:
        """Module path of the head."""
        return HEAD

    def input_config(self, model: nn.Module) -> InputConfig:
        """See `timm_models.input_config`."""
        return timm_models.input_config(model)
