"""The choice of the reader, and what opens files with it: a plain value that travels to the processes that decode.

PyAV comes before decord, because FFmpeg conceals damage inside a frame and decord passes on what it made up, as a frame
like any other. PyAV tells, and the file is refused. Decord is a dependency of the package, so that videos can be read
without PyAV (the extra ``video``); chosen by name it is used alone.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from dataclasses import dataclass

from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.video.reader import Unsupported, VideoReader
from lightning_petl.errors import ConfigError

READERS = {
    "pyav": "lightning_petl.data.video.pyav_reader:PyAVReader",
    "decord": "lightning_petl.data.video.decord_reader:DecordReader",
}
"""Where the readers are, in the order in which they are tried."""

_LIBRARY = {"pyav": "av", "decord": "decord"}


@dataclass(frozen=True)
class Decoding:
    """Opens video files. Holds no handle: send it to workers, by fork or spawn, and open files there.

    Args:
        readers: Classes, as ``module:name``, tried in this order. A later one is only used for files that the earlier
            ones cannot read exactly (`reader.Unsupported`), never to get around damage.
        timeout_s: Seconds that opening a file, and each call that reads its frames, may take; null for no limit.
        limits: Sizes of frames to refuse before they are decoded.
    """

    readers: tuple[str, ...]
    timeout_s: float | None = None
    limits: ImageLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.timeout_s is None:
            return
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}", where="data.timeout_s", fix="give seconds, or null")
        if sys.platform == "win32":
            raise ConfigError(
                "timeout_s needs processes that Windows does not have", where="data.timeout_s", fix="set it to null"
            )

    def open(self, path: str) -> VideoReader:
        """Opens a file for the process that calls.

        Without a time-out it decodes itself. With one, a process beside it decodes, which is killed when its time is
        over: a decoder that hangs in native code, holding the interpreter's lock, ends in no other way.

        Args:
            path: The file.

        Raises:
            DataError: The file cannot be read, or took too long.
        """
        if self.timeout_s is None:
            return open_with(self.readers, path, self.limits)
        from lightning_petl.data.video.watched import WatchedReader

        return WatchedReader(path, self.readers, self.timeout_s, self.limits)

    def record(self) -> dict[str, object]:
        """What frames were decoded with, for a results file: libraries in order with their versions, and the limit."""
        from importlib.metadata import version

        names = {place: name for name, place in READERS.items()}
        libraries = [
            f"{_LIBRARY[name]} {version(_LIBRARY[name])}" if (name := names.get(place)) else place
            for place in self.readers
        ]
        return {"video_readers": libraries, "timeout_s": self.timeout_s}


def choose(name: str = "auto", timeout_s: float | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> Decoding:
    """Chooses the readers by what is installed, without importing them.

    Args:
        name: "pyav", "decord", or "auto" for PyAV where it is installed, and decord where it is not or lacks a codec.
        timeout_s: See `Decoding`.
        limits: See `Decoding`.

    Raises:
        ConfigError: The reader is unknown or not installed.
    """
    if name != "auto" and name not in READERS:
        raise ConfigError(
            f"there is no video reader {name!r}", where="data.reader", fix=f"choose auto, {' or '.join(READERS)}"
        )
    wanted = list(READERS) if name == "auto" else [name]
    found = [reader for reader in wanted if importlib.util.find_spec(_LIBRARY[reader]) is not None]
    if not found:
        raise ConfigError(
            f"no video reader is installed, of {', '.join(_LIBRARY[reader] for reader in wanted)}",
            where="data.reader",
            fix="pip install 'lightning-petl[video]'",
        )
    return Decoding(tuple(READERS[reader] for reader in found), timeout_s, limits)


def open_with(readers: tuple[str, ...], path: str, limits: ImageLimits = DEFAULT_LIMITS) -> VideoReader:
    """Opens a file in this process with the first of some readers that can.

    Raises:
        DataError: See `VideoReader`; of the first reader, if none can.
    """
    reasons: list[Unsupported] = []
    for place in readers:
        try:
            opened: VideoReader = pkgutil.resolve_name(place)(path, limits)
            return opened
        except Unsupported as reason:
            reasons.append(reason)
    raise reasons[0]
