"""Segmentation data: images with masks, read so that every pixel keeps the class that its file gives it.

Names are imported when they are first used (PEP 562).
"""

from typing import TYPE_CHECKING

from lightning_petl.lazy import attributes

if TYPE_CHECKING:
    from lightning_petl.data.segmentation.ade20k import ADE20KData
    from lightning_petl.data.segmentation.benchmarks import CityscapesData, PascalVOCData
    from lightning_petl.data.segmentation.folder import SegmentationFolderData
    from lightning_petl.data.segmentation.masks import IGNORED, MaskRule, read_mask
    from lightning_petl.data.segmentation.module import SegmentationDataModule, SegmentationOptions

_FILES = {
    "ade20k": ("ADE20KData",),
    "benchmarks": ("CityscapesData", "PascalVOCData"),
    "folder": ("SegmentationFolderData",),
    "masks": ("IGNORED", "MaskRule", "read_mask"),
    "module": ("SegmentationDataModule", "SegmentationOptions"),
}

__all__ = [
    "IGNORED",
    "ADE20KData",
    "CityscapesData",
    "MaskRule",
    "PascalVOCData",
    "SegmentationDataModule",
    "SegmentationFolderData",
    "SegmentationOptions",
    "read_mask",
]


__getattr__, __dir__ = attributes(globals(), _FILES)
