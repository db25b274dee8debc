"""The size of a video's frames as its container states it, read before a decoder sees the file.

A decoder makes room for a frame of the stated size whatever the file holds, and FFmpeg decodes a frame to learn about a
stream as soon as it opens it. What the frames themselves say, if it is something else, the readers look at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Literal

Container = Literal["mp4", "matroska", "avi"]

_MP4 = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
"""The boxes that the sample entries are inside of (ISO/IEC 14496-12)."""

_SEGMENT, _TRACKS, _TRACK, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_MATROSKA = (_SEGMENT, _TRACKS, _TRACK, _VIDEO)
"""The elements that the size is inside of (RFC 9559, 5)."""

_WIDTH, _HEIGHT = 0xB0, 0xBA

_AVI = (b"AVI ", b"hdrl", b"strl")
"""The lists that the formats are inside of."""


def stated_sizes(file: BinaryIO, size: int, container: Container) -> list[tuple[int, int]]:
    """Width and height of the frames of each video track; of damaged headers, as much as can be read.

    Args:
        file: The file; it is left anywhere.
        size: Its number of bytes.
        container: What it is.
    """
    found = {"mp4": _mp4(file, 0, size), "matroska": _matroska(file, 0, size), "avi": _avi(file, 0, size)}[container]
    return [(width, height) for width, height in found if width and height]


def _mp4(file: BinaryIO, start: int, end: int, inside: int = 0) -> Iterator[tuple[int, int]]:
    """Of the sample entries of video tracks (ISO/IEC 14496-12, 8.5.2 and 12.1.3)."""
    video = True
    for kind, at, stop in _boxes(file, start, end):
        if kind == b"hdlr" and inside == _MP4.index(b"minf"):  # what a track is for, in front of what it holds
            video = _bytes(file, at + 8, 4) == b"vide"
        elif inside < len(_MP4) and kind == _MP4[inside] and video:
            yield from _mp4(file, at, stop, inside + 1)
        elif inside == len(_MP4) and kind == b"stsd":
            for _, entry, _ in _boxes(file, at + 8, stop):
                yield _numbers(file, entry + 24, ">HH")


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of each box."""
    while start + 8 <= end:
        header = _bytes(file, start, 16)
        length, first = int.from_bytes(header[:4], "big"), start + 8
        if length == 1:  # the length follows, in 64 bits
            length, first = int.from_bytes(header[8:16], "big"), start + 16
        elif length == 0:  # up to the end
            length = end - start
        if length < 8:
            return
        yield header[4:8], first, min(start + length, end)
        start += length


def _matroska(file: BinaryIO, start: int, end: int, inside: int = 0) -> Iterator[tuple[int, int]]:
    sides = dict[int, int]()
    for kind, at, stop in _elements(file, start, end):
        if inside < len(_MATROSKA) and kind == _MATROSKA[inside]:
            yield from _matroska(file, at, stop, inside + 1)
            if kind == _TRACKS:  # behind it are the frames
                return
        elif inside == len(_MATROSKA) and kind in (_WIDTH, _HEIGHT):
            sides[kind] = int.from_bytes(_bytes(file, at, min(stop - at, 8)), "big")
    yield sides.get(_WIDTH, 0), sides.get(_HEIGHT, 0)


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Identity, first byte and end of each element (RFC 8794, 4); one of unknown length is the last."""
    while start < end:
        head = _bytes(file, start, 12)
        more = 8 - head[0].bit_length() if head and head[0] else 8
        if more > 3 or len(head) < more + 2 or not head[more + 1]:
            return
        identity, rest = int.from_bytes(head[: more + 1], "big"), head[more + 1 :]
        wide = 9 - rest[0].bit_length()
        length = int.from_bytes(rest[:wide], "big") & ((1 << 7 * wide) - 1)
        first = start + more + 1 + wide
        unknown = length == (1 << 7 * wide) - 1
        yield identity, first, end if unknown else min(first + length, end)
        if unknown:
            return
        start = first + length


def _avi(file: BinaryIO, start: int, end: int, inside: int = 0) -> Iterator[tuple[int, int]]:
    """Of the formats (BITMAPINFOHEADER) of video streams."""
    video = False
    for kind, at, stop in _chunks(file, start, end):
        if kind == b"strh":  # what a stream is, in front of its format
            video = _bytes(file, at, 4) == b"vids"
        elif inside < len(_AVI) and kind in (b"RIFF", b"LIST") and _bytes(file, at, 4) == _AVI[inside]:
            yield from _avi(file, at + 4, stop, inside + 1)
        elif inside == len(_AVI) and kind == b"strf" and video:
            width, height = _numbers(file, at + 4, "<ii")
            yield abs(width), abs(height)  # a negative height turns the rows over


def _chunks(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and end of each chunk."""
    while start + 8 <= end:
        header = _bytes(file, start, 8)
        length = int.from_bytes(header[4:8], "little")
        stop = end if header[:4] == b"RIFF" and length in (0, 0xFFFFFFFF) else start + 8 + length
        yield header[:4], start + 8, min(stop, end)
        start = stop + stop % 2


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _numbers(file: BinaryIO, at: int, form: str) -> tuple[int, int]:
    """Two numbers; 0 and 0 where the file ends in front of them."""
    found = _bytes(file, at, struct.calcsize(form))
    first, second = struct.unpack(form, found) if len(found) == struct.calcsize(form) else (0, 0)
    return first, second
