"""Where frozen backbones come from: timm's models by name, with weights of its own or from a file."""

from lightning_petl.backbones.architecture import Architecture, Run, architecture
from lightning_petl.backbones.classifier import TimmClassifier
from lightning_petl.backbones.timm_models import TimmArgument, create, head_path, input_config

__all__ = [
    "Architecture",
    "Run",
    "TimmArgument",
    "TimmClassifier",
    "architecture",
    "create",
    "head_path",
    "input_config",
]
