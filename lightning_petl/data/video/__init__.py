"""Video files: readers that return exact frames, decoding in a process that can be killed, sampling in time.

Names are imported when they are first used (PEP 562): the process that only decodes starts without torch.
"""

from typing import TYPE_CHECKING

from lightning_petl.lazy import attributes

if TYPE_CHECKING:
    from lightning_petl.data.video.decoding import Decoding, choose
    from lightning_petl.data.video.reader import VideoReader
    from lightning_petl.data.video.sampling import Clip, DenseSampling, SegmentSampling, TemporalSampling

_FILES = {
    "decoding": ("Decoding", "choose"),
    "reader": ("VideoReader",),
    "sampling": ("Clip", "DenseSampling", "SegmentSampling", "TemporalSampling"),
}

__all__ = ["Clip", "Decoding", "DenseSampling", "SegmentSampling", "TemporalSampling", "VideoReader", "choose"]


__getattr__, __dir__ = attributes(globals(), _FILES)
