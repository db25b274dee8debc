"""What the architectures of video share: their fields, how a file's header names them, and the number of frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast, get_args

from torch import Tensor, nn

from lightning_petl.adapter import JSON
from lightning_petl.backbones.architecture import Architecture
from lightning_petl.backbones.timm_models import TimmArgument
from lightning_petl.errors import ConfigError
from lightning_petl.heads.video import HeadArgument, VideoHeadName

HEAD = "video_head"
"""Name of the child module that holds a head over frames."""


@dataclass(frozen=True)
class VideoArchitecture(Architecture):
    """A backbone that scores clips ``(batch, frames, 3, height, width)``.

    Args:
        name: Name of the backbone.
        arguments: Keyword arguments of the model.
        num_classes: Outputs of the head.
        frames: Frames of a clip.
        head_name: "mean", "conv" or "attention", see `lightning_petl.heads`; None for the backbone's usual head.
        head_arguments: Keyword arguments of the head.
    """

    name: str
    arguments: Mapping[str, TimmArgument] = field(default_factory=dict)
    num_classes: int = 1
    frames: int = 8
    head_name: VideoHeadName | None = None
    head_arguments: Mapping[str, HeadArgument] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames is {self.frames}", where="model.frames", fix="give 1 or more")

    def run(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of clips ``(batch, frames, 3, height, width)``.

        Raises:
            ConfigError: The clips have another number of frames, or are no clips.
        """
        if inputs.dim() != 5 or inputs.shape[1] != self.frames:
            found = f"{inputs.shape[1]} frames" if inputs.dim() == 5 else f"the shape {tuple(inputs.shape)}"
            raise ConfigError(
                f"clips have {found}, and the model takes {self.frames}",
                where="data.frames, model.frames",
                fix="set both to one number",
            )
        return self.scores(model, inputs)

    @abstractmethod
    def scores(self, model: nn.Module, clips: Tensor) -> Tensor:
        """What `run` gives for clips of the right number of frames."""

    def example(self, model: nn.Module, samples: int) -> Tensor:
        """Random clips, the same each time: ``(samples, frames, 3, height, width)``."""
        images = super().example(model, samples * self.frames)
        return images.reshape(samples, self.frames, *images.shape[1:])

    def record(self) -> dict[str, JSON]:
        """All fields, ``num_classes`` among the arguments."""
        arguments = cast(dict[str, JSON], {**self.arguments, "num_classes": self.num_classes})
        head: dict[str, JSON] = {"name": self.head_name, "arguments": dict(self.head_arguments)}
        return {"kind": self.kind, "name": self.name, "arguments": arguments, "frames": self.frames, "head": head}

    @classmethod
    def from_record(cls, record: Mapping[str, JSON]) -> Self:
        """See `Architecture.from_record`."""
        arguments: dict[str, Any] = dict(cast(Mapping[str, JSON], record["arguments"]))
        classes, frames = int(arguments.pop("num_classes")), int(cast(int, record["frames"]))
        head = cast(Mapping[str, JSON], record["head"])
        if head["name"] not in (None, *get_args(VideoHeadName)):
            raise ValueError(f"head {head['name']!r} is unknown")
        further: dict[str, Any] = dict(cast(Mapping[str, JSON], head["arguments"]))
        name = cast(VideoHeadName | None, head["name"])
        return cls(str(record["name"]), arguments, classes, frames, name, further)
