"""A timm model with its own classifier, over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

from torch import nn

from lightning_petl.adapter import JSON
from lightning_petl.backbones import timm_models
from lightning_petl.backbones.architecture import Architecture
from lightning_petl.backbones.timm_models import TimmArgument
from lightning_petl.data.input_config import InputConfig


@dataclass(frozen=True)
class TimmClassifier(Architecture):
    """A timm model with the classifier that timm gives it.

    Args:
        name: timm's name of a model.
        arguments: Keyword arguments of the model.
        num_classes: Outputs of the classifier; 0 for none.
    """

    kind: ClassVar[str] = "images"

    name: str
    arguments: Mapping[str, TimmArgument] = field(default_factory=dict)
    num_classes: int = 0

    def build(self, pretrained: bool | str = False) -> nn.Module:
        """See `Architecture.build` and `timm_models.create`."""
        return timm_models.create(self.name, self.arguments, self.num_classes, pretrained)

    def head(self, model: nn.Module) -> str:
        """Module path of timm's classifier."""
        return timm_models.head_path(model)

    def input_config(self, model: nn.Module) -> InputConfig:
        """See `timm_models.input_config`."""
        return timm_models.input_config(model)

    def record(self) -> dict[str, JSON]:
        """``kind``, ``name`` and ``arguments``, the number of classes among these."""
        arguments = cast(dict[str, JSON], {**self.arguments, "num_classes": self.num_classes})
        return {"kind": self.kind, "name": self.name, "arguments": arguments}

    @classmethod
    def from_record(cls, record: Mapping[str, JSON]) -> Self:
        """See `Architecture.from_record`."""
        arguments: dict[str, Any] = dict(cast(Mapping[str, JSON], record["arguments"]))
        return cls(str(record["name"]), arguments, int(arguments.pop("num_classes", 0)))
