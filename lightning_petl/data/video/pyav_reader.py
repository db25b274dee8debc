"""Reading with PyAV. Every frame is known by its presentation timestamp, so that seeking cannot return another.

The packets are listed when the file is opened, without decoding. A frame is then sought from the key frame at or before
it, and taken only if it carries its timestamp; where that fails (a key frame from which decoding cannot start cleanly),
the file is decoded from the beginning; where that fails, the frame does not exist, and the file is in error.

Some files do not say when their frames are shown: AVI stores no presentation times, and others repeat them. There the
frames are counted by decoding once when the file is opened, and read from the beginning each time.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.video.container import inspect
from lightning_petl.data.video.reader import Unsupported, VideoReader, average_fps, overstated, undecodable
from lightning_petl.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MOST_PIXELS = 2**31 - 1
"""The largest limit that FFmpeg takes."""

_SMALL = 64
"""Bytes of a packet up to which it may be one without a picture: the end of a sequence, or padding."""

_DEMUXER = {"mp4": "mov", "matroska": "matroska", "avi": "avi"}
"""FFmpeg's name of the demuxer of each container; named, so that FFmpeg does not guess."""


class _Packet(NamedTuple):
    pts: int | None
    key: bool
    discarded: bool


def _prefix(stream: VideoStream) -> tuple[str, int]:
    """The codec, and the bytes in front of each NAL unit that say how long it is; 0 where there are none.

    They are told by the stream's own header (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1).
    """
    context = stream.codec_context
    header, at = context.extradata or b"", {"h264": 4, "hevc": 21}.get(context.name)
    told = at is not None and len(header) > at and header[0] == 1
    return context.name, (header[at] & 3) + 1 if told and at is not None else 0


def _holds_picture(packet: bytes, codec: str, prefix: int) -> bool:
    """Whether a packet has part of a picture: a NAL unit of types 1 to 5 in H.264, or below 32 in HEVC."""
    if not prefix:
        return True
    at = 0
    while at + prefix < len(packet):
        length, first = int.from_bytes(packet[at : at + prefix], "big"), packet[at + prefix]
        if (1 <= first & 31 <= 5) if codec == "h264" else (first >> 1 & 63 < 32):
            return True
        at += prefix + length
    return False


@contextmanager
def _errors() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg reports as errors inside the block, ``(level, who, text)``; PyAV keeps all of it to itself else."""
    from av import logging

    level = logging.get_level()
    logging.set_level(logging.ERROR)
    try:
        with logging.Capture() as told:
            yield told
    finally:
        logging.set_level(level)


class PyAVReader(VideoReader):
    """A video file, read by PyAV on one thread; see `VideoReader`."""

    name: ClassVar[str] = "pyav"

    def __init__(self, path: str, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.path, self.limits, self._container = path, limits, inspect(path)
        self._file: InputContainer | None = None
        self._size: tuple[int, int] | None = None
        try:
            self._open()
            stated = self._stream.average_rate
            self._number(self._packets())
            self.fps = average_fps(float(stated) if stated else None, self.timestamps)
        except BaseException as error:
            self.close()
            if isinstance(error, (DataError, MemoryError)) or not isinstance(error, Exception):
                raise
            raise undecodable(path, error) from error

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, known from the first frame that is decoded."""
        if self._size is None:
            self.frames([0])
            assert self._size is not None  # set by the frame just read
        return self._size

    def _open(self) -> None:
        import av

        self.close()
        # For the decoders that opening runs, too: they make room for frames of the size that the stream claims. Room
        # has a margin, up to 63 columns and rows, which counts in FFmpeg's limit.
        guard = {"max_pixels": str(min(2 * self.limits.max_pixels + 2**20, _MOST_PIXELS))}
        self._file = av.open(self.path, format=_DEMUXER[self._container], options=guard, metadata_errors="ignore")
        stream: Any = self._file.streams.best("video")
        if stream is None:
            raise DataError("the file has no video stream", where=self.path, fix="remove it from the data")
        if stream.codec_context is None:
            raise Unsupported("the codec of the video stream is unknown", where=self.path, fix="convert the file")
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "NONE"  # the workers are the threads
        stream.codec_context.thread_count = 1
        stream.codec_context.options = guard
        self._stream: VideoStream = stream

    def _check_size(self, width: int, height: int) -> None:
        """What the stream itself says, which may be something else than the container; 0 where a decoder refused it."""
        if not width or not height:
            limit = f"max_pixels={self.limits.max_pixels}"
            fix = "resize or remove the file, or set data.limits.max_pixels"
            raise DataError(f"the stream states no size of frames, or one outside {limit}", where=self.path, fix=fix)
        self.limits.check(width, height, self.path, "video")

    def _packets(self) -> list[_Packet]:
        assert self._file is not None
        packets, empty, prefix = list[_Packet](), list[bool](), _prefix(self._stream)
        with _errors() as told:
            for packet in self._file.demux(self._stream):
                if packet.size:  # the last, which flushes the decoder, is empty
                    packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard))
                    empty.append(packet.size <= _SMALL and not _holds_picture(bytes(packet), *prefix))
        damage = [text for _, name, text in told if _DEMUXER[self._container] in name.split(",")]
        count = len(empty) - sum(empty)
        if any(empty[:count]):
            damage.append(f"{sum(empty)} of {len(empty)} packets hold no picture")
        if damage:
            raise DataError(
                f"the file is damaged, and frames are lost: {' '.join(damage[0].split())}",
                where=self.path,
                fix="replace the file or remove it from the data",
            )
        if any(empty):  # behind all others: they are claimed alone
            raise overstated(self.path, len(packets), count)
        # MP4 alone counts what it holds; a trimmed one counts what was trimmed, too.
        if self._container == "mp4" and self._stream.frames > len(packets) and not any(p.discarded for p in packets):
            raise overstated(self.path, self._stream.frames, len(packets))
        return packets

    def _number(self, packets: list[_Packet]) -> None:
        """Gives each frame its index: the rank of its timestamp, or where timestamps say little, its place."""
        self._times: list[int] = sorted(p.pts for p in packets if p.pts is not None and not p.discarded)
        self._keys = sorted(p.pts for p in packets if p.pts is not None and p.key)
        made_up = self._container == "avi" and self._stream.codec_context.has_b_frames
        missing = any(packet.pts is None for packet in packets)
        if made_up or missing or len(set(self._times)) < len(self._times) or not self._keys:
            self._times = []
            self.timestamps = self._counted()
        else:
            assert self._stream.time_base is not None
            since = np.asarray(self._times, dtype=np.int64) - self._times[0]
            self.timestamps = since.astype(np.float64) * float(self._stream.time_base)

    def _counted(self) -> NDArray[np.float64]:
        """Timestamps of frames that are known by their place: evenly spaced."""
        self._open()
        count = sum(1 for _ in self._decoded())
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not count or not rate:
            raise DataError("the video has no frames or no frame rate", where=self.path, fix="remove it from the data")
        return np.arange(count, dtype=np.float64) / float(rate)

    def _decoded(self, key: int | None = None) -> Iterator[VideoFrame]:
        """Frames from where the file is: the beginning, or a key frame, known by its timestamp.

        Damage counts in frames that nobody asked for, too: those behind build on them.

        Not every key frame is a clean start: one may be shown later, or be the first of several that refresh the
        picture part by part. Then there are no frames, and the beginning must do. Frames that come before the key frame
        build on what was not decoded, and are left out.
        """
        clean = False
        for frame in self._every():
            if key is not None:
                if frame.pts is None or frame.pts < key:
                    continue
                clean = clean or frame.pts == key
                if frame.is_corrupt or not clean:
                    return
            elif frame.is_corrupt:
                raise DataError(
                    "the stream is damaged: a frame can be decoded in part only",
                    where=self.path,
                    fix="replace the file or remove it from the data",
                )
            yield frame

    def _every(self) -> Iterator[VideoFrame]:
        assert self._file is not None
        packets: Any = self._file.demux(self._stream)
        with closing(packets):  # a generator of PyAV that is only dropped in the middle never frees its packet
            for packet in packets:
                yield from packet.decode()

    def _read(self, indices: list[int]) -> NDArray[np.uint8]:
        if not self._times:
            self._open()
            return self._stacked(self._by_place(indices))
        times = [self._times[index] for index in indices]
        found: dict[int, NDArray[np.uint8]] = {}
        for key, group in groupby(times, key=self._key_before):
            found |= self._from_key(key, list(group))
        if missing := [time for time in times if time not in found]:
            self._open()
            found |= self._until(missing)
        if len(found) < len(times):
            self._open()
            raise overstated(self.path, len(self), sum(1 for _ in self._decoded()))
        return self._stacked(found[time] for time in times)

    def _walk(self) -> Iterator[NDArray[np.uint8]]:
        self._open()
        count = 0
        for frame in self._decoded():
            if self._times and (count == len(self) or frame.pts != self._times[count]):
                raise DataError(
                    f"frame {count} is not shown when the container says", where=self.path, fix="rewrite or remove it"
                )
            count += 1
            yield self._pixels(frame)
        if count < len(self):
            raise overstated(self.path, len(self), count)

    def _key_before(self, time: int) -> int:
        return self._keys[max(bisect_right(self._keys, time) - 1, 0)]

    def _from_key(self, key: int, times: list[int]) -> dict[int, NDArray[np.uint8]]:
        assert self._file is not None
        self._file.seek(key, stream=self._stream, backward=True)
        return self._until(times, key)

    def _until(self, times: list[int], key: int | None = None) -> dict[int, NDArray[np.uint8]]:
        """Decodes from where the file is up to the last of some ascending timestamps; keeps those."""
        wanted, found = set(times), dict[int, NDArray[np.uint8]]()
        before = None
        for frame in self._decoded(key):
            if frame.pts is None or (before is not None and frame.pts <= before):
                raise DataError(
                    "the timestamps of the frames do not increase", where=self.path, fix="rewrite or remove the file"
                )
            before = frame.pts
            if frame.pts in wanted:
                found[frame.pts] = self._pixels(frame)
            if frame.pts >= times[-1]:
                break
        return found

    def _by_place(self, indices: list[int]) -> Iterator[NDArray[np.uint8]]:
        wanted = set(indices)
        for place, frame in enumerate(self._decoded()):
            if place in wanted:
                yield self._pixels(frame)
            if place == indices[-1]:
                return

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._size is None and _is_mirrored(frame):
            raise DataError("the video is to be shown mirrored", where=self.path, fix="rewrite it as it is to be seen")
        # On one thread: others are missing in a forked process, which would wait for them when it frees such a frame.
        stored: Any = frame.reformat(format="rgb24", threads=1).to_ndarray()
        pixels: NDArray[np.uint8] = np.rot90(stored, _quarter_turns(frame.rotation))
        self._size = pixels.shape[0], pixels.shape[1]
        return pixels

    def _stacked(self, frames: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        every = list(frames)
        if len({frame.shape for frame in every}) > 1:
            raise DataError("the frames change their size", where=self.path, fix="rewrite the file at one size")
        return np.stack(every)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_mirrored(frame: Any) -> bool:
    """Whether the matrix that turns a frame reflects it, too, which FFmpeg would take for a turn."""
    matrices = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    a, b, _, c, d = struct.unpack_from("5i", matrices[0]) if matrices else (1, 0, 0, 0, 1)
    return bool(a * d < b * c)


def _quarter_turns(degrees: int) -> int:
    """Anticlockwise quarter turns for `numpy.rot90`; decord, too, leaves other angles alone."""
    return degrees // 90 if degrees % 90 == 0 else 0
