"""Where frozen backbones come from: timm's models by name, with weights of its own or from a file."""

from lightning_petl.backbones.timm_models import TimmArgument, create, head_path, input_config

__all__ = ["TimmArgument", "create", "head_path", "input_config"]
