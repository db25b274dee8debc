"""Data modules: images and videos, in folders and lists, read so that no sample is lost, swapped or clipped.

Names are imported when they are first used (PEP 562): `InputConfig` is read by rooms that need neither Lightning nor
torchvision. A command line that resolves short class names imports the modules by name first.
"""

from typing import TYPE_CHECKING

from lightning_petl.lazy import attributes

if TYPE_CHECKING:
    from lightning_petl.data.digits import DigitsData
    from lightning_petl.data.image_folder import ImageFolderData
    from lightning_petl.data.image_list import ImageListData
    from lightning_petl.data.image_module import ImageDataModule, ImageOptions
    from lightning_petl.data.images import open_image
    from lightning_petl.data.input_config import InputConfig
    from lightning_petl.data.limits import ImageLimits
    from lightning_petl.data.module import PETLDataModule
    from lightning_petl.data.notices import DataWarning
    from lightning_petl.data.samplers import EpochSampler, UnpaddedSampler
    from lightning_petl.data.segmentation.ade20k import ADE20KData
    from lightning_petl.data.segmentation.benchmarks import CityscapesData, PascalVOCData
    from lightning_petl.data.segmentation.folder import SegmentationFolderData
    from lightning_petl.data.segmentation.module import SegmentationDataModule, SegmentationOptions
    from lightning_petl.data.transforms import eval_transform, train_transform
    from lightning_petl.data.video.hmdb51 import HMDB51Data
    from lightning_petl.data.video.kinetics import KineticsData
    from lightning_petl.data.video.list_data import VideoListData
    from lightning_petl.data.video.module import VideoDataModule, VideoOptions
    from lightning_petl.data.video.something import SomethingSomethingV2Data
    from lightning_petl.data.video.ucf101 import UCF101Data

_FILES = {
    "digits": ("DigitsData",),
    "image_folder": ("ImageFolderData",),
    "image_list": ("ImageListData",),
    "image_module": ("ImageDataModule", "ImageOptions"),
    "images": ("open_image",),
    "input_config": ("InputConfig",),
    "limits": ("ImageLimits",),
    "module": ("PETLDataModule",),
    "notices": ("DataWarning",),
    "samplers": ("EpochSampler", "UnpaddedSampler"),
    "segmentation.ade20k": ("ADE20KData",),
    "segmentation.benchmarks": ("CityscapesData", "PascalVOCData"),
    "segmentation.folder": ("SegmentationFolderData",),
    "segmentation.module": ("SegmentationDataModule", "SegmentationOptions"),
    "transforms": ("eval_transform", "train_transform"),
    "video.hmdb51": ("HMDB51Data",),
    "video.kinetics": ("KineticsData",),
    "video.list_data": ("VideoListData",),
    "video.module": ("VideoDataModule", "VideoOptions"),
    "video.something": ("SomethingSomethingV2Data",),
    "video.ucf101": ("UCF101Data",),
}

__all__ = [
    "ADE20KData",
    "CityscapesData",
    "DataWarning",
    "DigitsData",
    "EpochSampler",
    "HMDB51Data",
    "ImageDataModule",
    "ImageFolderData",
    "ImageLimits",
    "ImageListData",
    "ImageOptions",
    "InputConfig",
    "KineticsData",
    "PETLDataModule",
    "PascalVOCData",
    "SegmentationDataModule",
    "SegmentationFolderData",
    "SegmentationOptions",
    "SomethingSomethingV2Data",
    "UCF101Data",
    "UnpaddedSampler",
    "VideoDataModule",
    "VideoListData",
    "VideoOptions",
    "eval_transform",
    "open_image",
    "train_transform",
]


__getattr__, __dir__ = attributes(globals(), _FILES)
