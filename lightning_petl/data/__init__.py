"""Data modules: image folders, list files and the bundled digits, read so that no sample is lost, swapped or clipped.

Names are imported when they are first used (PEP 562): `InputConfig` is read by rooms that need neither Lightning nor
torchvision. A command line that resolves short class names imports the modules by name first.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_petl.data.digits import DigitsData
    from lightning_petl.data.image_folder import ImageFolderData
    from lightning_petl.data.image_list import ImageListData
    from lightning_petl.data.image_module import ImageDataModule, ImageOptions
    from lightning_petl.data.images import ImageLimits, open_image
    from lightning_petl.data.input_config import InputConfig
    from lightning_petl.data.notices import DataWarning
    from lightning_petl.data.samplers import EpochSampler, UnpaddedSampler
    from lightning_petl.data.transforms import eval_transform, train_transform

_FILES = {
    "digits": ("DigitsData",),
    "image_folder": ("ImageFolderData",),
    "image_list": ("ImageListData",),
    "image_module": ("ImageDataModule", "ImageOptions"),
    "images": ("ImageLimits", "open_image"),
    "input_config": ("InputConfig",),
    "notices": ("DataWarning",),
    "samplers": ("EpochSampler", "UnpaddedSampler"),
    "transforms": ("eval_transform", "train_transform"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "DataWarning",
    "DigitsData",
    "EpochSampler",
    "ImageDataModule",
    "ImageFolderData",
    "ImageLimits",
    "ImageListData",
    "ImageOptions",
    "InputConfig",
    "UnpaddedSampler",
    "eval_transform",
    "open_image",
    "train_transform",
]


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
