"""LightningModules that train a method on a frozen backbone, one file a task."""

from lightning_petl.tasks.classification import ClassificationTask
from lightning_petl.tasks.segmentation import SegmentationTask
from lightning_petl.tasks.task import PETLTask
from lightning_petl.tasks.video import VideoClassificationTask

__all__ = ["ClassificationTask", "PETLTask", "SegmentationTask", "VideoClassificationTask"]
