"""Where frozen backbones come from: timm's models and transformers' video models, with weights that are checked."""

from lightning_petl.backbones.architecture import Architecture, Run, architecture
from lightning_petl.backbones.classifier import TimmClassifier
from lightning_petl.backbones.frames import FrameClassifier
from lightning_petl.backbones.segmentation import Segmenter
from lightning_petl.backbones.timm_models import TimmArgument, create, head_path, input_config
from lightning_petl.backbones.video import VideoArchitecture
from lightning_petl.backbones.video_transformers import VideoTransformer

__all__ = [
    "Architecture",
    "FrameClassifier",
    "Run",
    "Segmenter",
    "TimmArgument",
    "TimmClassifier",
    "VideoArchitecture",
    "VideoTransformer",
    "architecture",
    "create",
    "head_path",
    "input_config",
]
