"""Reading with decord 0.6, in the one way in which its frames are exact: forward, one after the other.

Decord's own random access returns wrong frames without an error where the order of packets is not the order of
frames: with B-frames in MPEG-4 and in open groups of pictures, a third of the frames and more were others. It seeks to
a packet by its number and counts frames from there. Decoded from the start its frames are right, so this reader never
lets it seek. Further:

- A frame that the stream does not hold is replaced by its neighbour, with return code 0; ``fault_tol`` makes that an
  error. The setting is a share of the frames, rounded down to a number of them: next to 0 allows none.
- ``get_batch`` fails on canvases whose rows are padded (16, 24, 48, 72 pixels wide among others), where decord takes
  the padding for channels. Frames are read one by one, and the padding is cut off.
- Frames are passed over by timestamp, which is quicker, only where timestamps tell them apart.
- Its decoding thread runs ahead: damage behind the last frame that is asked for may raise, or may go unseen.
- It does not tell the size of frames, and takes frames as large as FFmpeg does: the first one is decoded, and measured.
- Damage that FFmpeg conceals inside a frame is not reported at all. PyAV reports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.video.container import inspect
from lightning_petl.data.video.reader import Unsupported, VideoReader, average_fps, overstated, undecodable
from lightning_petl.errors import DataError

_NO_SUBSTITUTE = 1e-9
"""Share of the frames that decord may replace by others; as a number of frames, 0."""

_PYAV = "pip install 'lightning-petl[video]', and leave the reader to auto or set it to pyav"

_NOISE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: |Check failed: .*?\(-?\d+ vs\. -?\d+\) ")
"""Time, source line and condition that decord puts in front of a message, at every level it passes."""


class DecordReader(VideoReader):
    """A video file, read by decord on one thread; see `VideoReader`.

    Going back opens the file anew: ask for the frames of a clip in one call.
    """

    name: ClassVar[str] = "decord"
    _video: Any

    def __init__(self, path: str, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # its errors are raised too, and say the same
        self.path, self.limits, self._container, self._decord = path, limits, inspect(path), decord
        try:
            self._start()
            self.fps, self.timestamps = self._numbered()
            self._keys: list[int] = self._video.get_key_indices()
        except BaseException as error:
            self.close()
            if isinstance(error, (DataError, MemoryError)) or not isinstance(error, Exception):
                raise
            if "cannot find video stream" in str(error):  # or one of a codec that this decord lacks, such as AV1
                raise Unsupported("decord finds no video stream it can decode", where=path, fix=_PYAV) from error
            raise undecodable(path, _plain(error)) from error

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame; decord scales the others to it."""
        height, width, _ = self._first.shape
        return height, width

    def _start(self) -> None:
        """Opens the file and reads its first frame, without which decord does not notice when others are missing."""
        self.close()
        self._video = self._decord.VideoReader(self.path, num_threads=1, fault_tol=_NO_SUBSTITUTE)
        self._first = self._next()
        self.limits.check(self._first.shape[1], self._first.shape[0], self.path, "video")
        self._position = 1

    def _numbered(self) -> tuple[float, NDArray[np.float64]]:
        """Frame rate and timestamps; frames that timestamps do not tell apart are evenly spaced."""
        starts = self._video.get_frame_timestamp(list(range(len(self._video))))[:, 0].astype(np.float64)
        stated = float(self._video.get_avg_fps())
        self._timed = bool(starts[0] >= 0 and (np.diff(starts) > 0).all())
        if not self._timed and starts[0] < 0 and self._container != "avi":
            # Packets before the first frame that is shown: an MP4 names them by its edit list, and decord drops them.
            starts = starts[starts >= 0]
            if self._container != "mp4" or not len(starts) or not (np.diff(starts) > 0).all():
                raise Unsupported("decord cannot tell which frames of the file are shown", where=self.path, fix=_PYAV)
        elif not self._timed:
            if not 0 < stated < float("inf"):
                raise Unsupported("decord finds neither timestamps nor a frame rate", where=self.path, fix=_PYAV)
            starts = np.arange(len(starts)) / stated
        return average_fps(stated, starts), starts - starts[0]

    def _read(self, indices: list[int]) -> NDArray[np.uint8]:
        out = np.empty((len(indices), *self.size, 3), dtype=np.uint8)
        try:
            if any(0 < index < self._position for index in indices):
                self._start()
            for row, index in zip(out, indices, strict=True):
                row[:] = self._frame(index)
        except (self._decord.DECORDLimitReachedError, StopIteration) as error:
            raise overstated(self.path, len(self), self._count()) from error
        except self._decord.DECORDError as error:
            raise undecodable(self.path, _plain(error), f"a frame near {indices[-1]}") from error
        return out

    def _walk(self) -> Iterator[NDArray[np.uint8]]:
        self._start()
        yield self._first
        for index in range(1, len(self)):
            try:
                frame = self._next()
            except (self._decord.DECORDLimitReachedError, StopIteration) as error:
                raise overstated(self.path, len(self), index) from error
            except self._decord.DECORDError as error:
                raise undecodable(self.path, _plain(error), f"frame {index}") from error
            self._position = index + 1
            yield frame

    def _frame(self, index: int) -> NDArray[np.uint8]:
        if index == 0:
            return self._first
        self._skip_to(index)
        self._position = index + 1
        return self._next()

    def _skip_to(self, index: int) -> None:
        if not self._timed or self._container == "avi":  # the demuxer makes up AVI's timestamps, and may be wrong
            for _ in range(index - self._position):
                self._video.next()
            return
        for key in self._keys:
            if self._position < key <= index:
                # Across a key frame decord would seek. So it passes over frames up to there, and reads one.
                self._video.seek_accurate(key - 1)
                self._video.next()
                self._position = key
        self._video.seek_accurate(index)

    def _next(self) -> NDArray[np.uint8]:
        frame = self._video.next().asnumpy()
        height, width = frame.shape[:2]
        pixels: NDArray[np.uint8] = frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
        return pixels

    def _count(self) -> int:
        """Frames that can be decoded, one after the other."""
        self._start()
        count = 1
        try:
            while count < len(self):
                self._video.next()
                count += 1
        except (self._decord.DECORDError, self._decord.DECORDLimitReachedError, StopIteration):
            pass
        return count

    def close(self) -> None:
        """Releases decord's handle and its decoding thread."""
        self._video = None


def _plain(error: Exception) -> Exception:
    """Decord's message without what only its authors can use."""
    text = _NOISE.sub("", str(error).partition("\n")[0])
    return RuntimeError("the decoding thread ended" if "run_.load()" in text else text)
