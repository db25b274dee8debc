"""What a video file is, and whether all of it is there, read from its first bytes before a decoder sees it.

A decoder takes a file that was cut off for a shorter video, and opens whatever it can name: playlists that lead to
other files, pictures, text. So three families of containers are accepted, told by content: MP4 (with MOV and 3GP),
Matroska (with WebM) and AVI. Each states how long it is, and a shorter file is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from lightning_petl.errors import DataError

Container = Literal["mp4", "matroska", "avi"]

_MP4_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot"})
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_UNKNOWN_RIFF = (0, 0xFFFFFFFF)


def inspect(path: str) -> Container:
    """Tells the container of a video file, and that the file is complete.

    Args:
        path: The file.

    Returns:
        The family of the container.

    Raises:
        DataError: The file is missing, empty, of another format, or shorter than its header says.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _inspect(file, size, path)
    except FileNotFoundError as error:
        raise DataError("the video file does not exist", where=path, fix="correct the path") from error
    except OSError as error:
        raise DataError(f"the video file cannot be read: {error.strerror}", where=path, fix="permit it") from error


def _inspect(file: BinaryIO, size: int, path: str) -> Container:
    head = file.read(12)
    file.seek(0)
    if not head:
        raise DataError("the video file is empty", where=path, fix="replace the file or remove it from the data")
    if head[4:8] in _MP4_FIRST:
        end, has_index = _mp4_end(file, size)
        _require(end, size, path)
        if not has_index:
            raise DataError(
                "the MP4 file has no index (moov): its writing was never finished",
                where=path,
                fix="replace the file or remove it from the data",
            )
        return "mp4"
    if head[:4] == _EBML.to_bytes(4, "big"):
        _require(_matroska_end(file), size, path)
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        _require(_avi_end(file, size), size, path)
        return "avi"
    raise DataError("the file is no MP4, Matroska, WebM or AVI video", where=path, fix="convert or remove the file")


def _require(end: int, size: int, path: str) -> None:
    if end > size:
        raise DataError(
            f"the video file is cut off: it has {size} bytes, and its headers count {end}",
            where=path,
            fix="copy the file again or remove it from the data",
        )


def _mp4_end(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Where the last box ends (ISO/IEC 14496-12, 4.2), and whether there is an index."""
    at, has_index = 0, False
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # the length follows, in 64 bits
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # up to the end of the file
            length = size - at
        has_index |= header[4:8] == b"moov"
        if length < 8:  # padding behind the last box
            break
        at += length
    return at, has_index


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends (RFC 8794, 4 and RFC 9559, 5); 0 if the file leaves it open, as a live stream does."""
    while (identity := _element_id(file)) is not None:
        length, known = _element_size(file)
        if not known:
            return 0
        if identity == _SEGMENT:
            return file.tell() + length
        file.seek(length, 1)
    return 0


def _element_id(file: BinaryIO) -> int | None:
    first = file.read(1)
    if not first or not first[0]:
        return None
    return int.from_bytes(first + file.read(8 - first[0].bit_length()), "big")


def _element_size(file: BinaryIO) -> tuple[int, bool]:
    """A length of 1 to 8 bytes; the number of leading zero bits tells how many. All ones means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, False
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return value, value != (1 << bits) - 1


def _avi_end(file: BinaryIO, size: int) -> int:
    """Where the last RIFF chunk ends; files over one gigabyte have several (OpenDML)."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or length in _UNKNOWN_RIFF:
            break
        at += 8 + length
    return at
