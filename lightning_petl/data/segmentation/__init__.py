"""Segmentation data: images with masks, read so that every pixel keeps the class that its file gives it.

Names are imported when they are first used (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

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
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

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


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
