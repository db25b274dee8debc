"""Video files: readers that return exact frames, decoding in a process that can be killed, sampling in time.

Names are imported when they are first used (PEP 562): the process that only decodes starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_petl.data.video.decoding import Decoding, choose
    from lightning_petl.data.video.reader import VideoReader
    from lightning_petl.data.video.sampling import Clip, DenseSampling, SegmentSampling, TemporalSampling

_FILES = {
    "decoding": ("Decoding", "choose"),
    "reader": ("VideoReader",),
    "sampling": ("Clip", "DenseSampling", "SegmentSampling", "TemporalSampling"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = ["Clip", "Decoding", "DenseSampling", "SegmentSampling", "TemporalSampling", "VideoReader", "choose"]


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
