"""How a backbone and its head are built and run: one value that a task trains and a file's header can name again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lightning_petl.adapter import JSON
from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import AdapterFileError

KINDS = {
    "images": "lightning_petl.backbones.classifier:TimmClassifier",
    "segmentation": "lightning_petl.backbones.segmentation:Segmenter",
    "frames": "lightning_petl.backbones.frames:FrameClassifier",
    "transformers-video": "lightning_petl.backbones.video_transformers:VideoTransformer",
}
"""Where the architectures are; a file's header names one of these words, never a class."""


class Architecture(ABC):
    """A frozen backbone under its library's own names, and its head.

    What the library's model lacks, such as a head over frames, is one more child module of it. So the model's tensors
    keep the names that its library gives them, and the model's own forward still takes what it always took; `run`
    takes what the task gives.

    Attributes:
        kind: Word of the architecture in a file's header, of `KINDS`.
        name: Name of the backbone in its library.
    """

    kind: ClassVar[str]
    name: str

    @abstractmethod
    def build(self, pretrained: bool | str = False) -> nn.Module:
        """Builds the backbone with a new head.

        Args:
            pretrained: True for the library's own weights of that name, a file for others, False for none.

        Raises:
            ConfigError: The name, an argument or the file is wrong; the text says which.
        """

    def run(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Scores ``(batch, classes, ...)`` of the task's inputs ``(batch, ...)``; the model's own forward here."""
        return cast(Tensor, model(inputs))

    @abstractmethod
    def head(self, model: nn.Module) -> str:
        """Module path of the head."""

    @abstractmethod
    def input_config(self, model: nn.Module) -> InputConfig:
        """How the backbone's own weights want their input."""

    def example(self, model: nn.Module, samples: int) -> Tensor:
        """Random inputs, the same each time: ``(samples, 3, height, width)`` here."""
        size = self.input_config(model).image_size
        return torch.randn(samples, 3, *size, generator=torch.Generator().manual_seed(0))

    @abstractmethod
    def record(self) -> dict[str, JSON]:
        """What `architecture` builds this one from again, as JSON values; ``kind`` and ``name`` among them."""

    @classmethod
    @abstractmethod
    def from_record(cls, record: Mapping[str, JSON]) -> Architecture:
        """Reads what `record` wrote.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is of the wrong type.
            ValueError: A field's value is impossible.
        """


Run = Callable[[nn.Module, Tensor], Tensor]
"""What `Architecture.run` does, for code that needs no more of it."""


def architecture(record: Mapping[str, JSON], where: str) -> Architecture:
    """The architecture that a file's header names.

    Args:
        record: The header's ``backbone``.
        where: The file, for messages.

    Raises:
        AdapterFileError: The record does not say how to build it.
    """
    place = KINDS.get(str(record.get("kind", "images")))
    if place is None:
        raise AdapterFileError(f"backbones of kind {record['kind']!r} are unknown", where=f"{where}: backbone.kind")
    module, _, name = place.partition(":")
    cls: type[Architecture] = getattr(import_module(module), name)
    try:
        return cls.from_record(record)
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(
            f"the header does not say how to build the backbone: {type(error).__name__} {error}",
            where=f"{where}: backbone",
            fix="fold it in Python (load_adapter, merge), or save it with backbone={'name': …, 'arguments': {…}}",
        ) from None
