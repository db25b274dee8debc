"""Video classification."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision.tv_tensors import Video

from lightning_petl.adapter import Method
from lightning_petl.backbones import Architecture, FrameClassifier, TimmArgument, VideoTransformer
from lightning_petl.backbones.video_transformers import FAMILIES
from lightning_petl.errors import ConfigError
from lightning_petl.heads.video import HeadArgument, VideoHeadName
from lightning_petl.tasks.classification import ClassificationTask


class VideoClassificationTask(ClassificationTask):
    """Trains a method on a frozen backbone to tell classes of videos apart.

    Training batches are ``(clips, labels)``: float ``(batch, frames, 3, height, width)``, normalised, and int64
    ``(batch,)``. Those of validation, test and prediction have views, ``(batch, views, frames, 3, height, width)``: a
    video's probabilities are the mean over its views, the loss is the negative logarithm of the mean, and videos are
    what is counted. Mixup and CutMix treat all frames of a clip alike. Logged is what `ClassificationTask` logs.

    Args:
        backbone: ``videomae``, ``timesformer`` or ``vivit`` for a video transformer of the transformers library, or
            timm's name of an image model, which is run on every frame.
        method: What adapts it.
        frames: Frames of a clip, the data module's ``frames``; 8 where left out. In the CLI it follows from there.
        head: What turns features into scores. With an image model, ``mean`` over the frames (where left out), ``conv``
            or ``attention`` over time. With a video transformer, the library's own classifier (where left out), or
            ``mean``, which takes ``batch_norm``. See `lightning_petl.heads`.
        head_args: Keyword arguments of the head, such as ``{"batch_norm": true}``.
        views_per_step: Views of each video that are run at once in evaluation; fewer need less memory.
        label_smoothing: See `ClassificationTask`.
        mixup: See `ClassificationTask`.
        cutmix: See `ClassificationTask`.
        mixup_switch: See `ClassificationTask`.
        **kwargs: See `PETLTask`. For a video transformer, ``backbone_args`` are values of the library's configuration,
            and ``pretrained`` names a folder or file in the library's layout, a file of VideoMAE's own code, or an id
            on the hub.
    """

    takes = "videos"

    def __init__(
        self,
        backbone: str,
        method: Method,
        frames: int | None = None,
        head: VideoHeadName | None = None,
        head_args: dict[str, HeadArgument] | None = None,
        views_per_step: int = 4,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_switch: float = 0.5,
        **kwargs: Any,
    ) -> None:
        if views_per_step < 1:
            raise ConfigError(f"views_per_step is {views_per_step}", where="model.views_per_step", fix="give 1 or more")
        frames = 8 if frames is None else frames
        self._video: dict[str, Any] = {"frames": frames, "head_name": head, "head_arguments": dict(head_args or {})}
        super().__init__(backbone, method, label_smoothing, mixup, cutmix, mixup_switch, **kwargs)
        self.frames, self.views_per_step = frames, views_per_step

    def choose_architecture(self, name: str, arguments: dict[str, TimmArgument], num_classes: int) -> Architecture:
        """A video transformer where the name is one's, else a timm model over frames."""
        kind = VideoTransformer if name in FAMILIES else FrameClassifier
        return kind(name, arguments, num_classes, **self._video)

    def setup(self, stage: str) -> None:
        """Compares the number of frames with that of the data module, where there is one.

        Raises:
            ConfigError: They differ.
        """
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "frames", self.frames)
        if found != self.frames:
            raise ConfigError(
                f"clips have {found} frames, and the model takes {self.frames}",
                where="data.frames, model.frames",
                fix="set both to one number",
            )
        super().setup(stage)

    def mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of a whole training batch of clips, the same for all frames of one."""
        mixed, labels = super().mixed(Video(inputs), labels)
        return mixed.as_subclass(Tensor), labels

    def scores(self, inputs: Tensor) -> Tensor:
        """Logarithms of the mean probabilities ``(batch, classes)`` over views, of ``(batch, views, frames, 3, h, w)``.

        Raises:
            ConfigError: The batch has no views.
        """
        if inputs.dim() != 6:
            shape = tuple(inputs.shape)
            raise ConfigError(
                f"an evaluation batch has the shape {shape}", where="data", fix="give (batch, views, frames, 3, h, w)"
            )
        clips, views = inputs.shape[:2]
        parts = [self(part.flatten(0, 1)).reshape(clips, -1, self.num_classes) for part in self._steps(inputs)]
        each = torch.cat(parts, dim=1).float().log_softmax(dim=-1)
        return each.logsumexp(dim=1) - math.log(views)

    def _steps(self, inputs: Tensor) -> Iterator[Tensor]:
        for start in range(0, inputs.shape[1], self.views_per_step):
            yield inputs[:, start : start + self.views_per_step]

    def inputs_of(self, batch: Any) -> Tensor:
        """The clips of an evaluation batch, every view for itself: ``(batch * views, frames, 3, height, width)``."""
        inputs: Tensor = batch[0]
        return inputs.flatten(0, 1) if inputs.dim() == 6 else inputs
