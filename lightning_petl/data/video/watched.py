"""Decoding with an end: in a process beside this one, killed when its time is over.

One such process serves all files that its owner opens, one after the other; it starts with the first and lives as long
as its owner. It imports neither torch nor Lightning.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.video.reader import VideoReader
from lightning_petl.errors import DataError

_START_S = 120.0
"""Seconds that the process may take to start; a cold network disk takes tens to import a library."""

_NUMBERS = count()
"""Numbers of the open files, never used twice."""


class WatchedReader(VideoReader):
    """A video file that another process reads.

    Args:
        path: The file.
        readers: See `Decoding`.
        timeout_s: Seconds for opening, and for each call of `get`.
        limits: Sizes of frames to refuse before they are decoded.

    Raises:
        DataError: As the reader raises it; or the process had to be killed, or ended.
    """

    name: ClassVar[str] = "watched"

    def __init__(
        self, path: str, readers: Sequence[str], timeout_s: float, limits: ImageLimits = DEFAULT_LIMITS
    ) -> None:
        self.path, self._timeout_s = path, timeout_s
        self._process = _Process.of_this_process(tuple(readers))
        self._number = next(_NUMBERS)
        self.reader, self.fps, self.timestamps = self._ask("open", (path, _folder(), limits))

    reader: str
    """Name of the reader that the other process reads the file with."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, as frames come out of `get`."""
        height, width = self._ask("size")
        return height, width

    def _read(self, indices: list[int]) -> NDArray[np.uint8]:
        return self._process.receive(self._ask("frames", indices), self.path)

    def _ask(self, command: str, argument: object = None) -> Any:
        return self._process.ask(command, self._number, argument, self.path, self._timeout_s)

    def close(self) -> None:
        """Closes the file in the other process."""
        self._process.close(self._number)


def _folder() -> str | None:
    """The folder that relative paths start from now; None where it was deleted."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


class _Process:
    """The decoding process of the process that made it."""

    _mine: ClassVar[_Process | None] = None

    def __init__(self, readers: tuple[str, ...]) -> None:
        self.readers, self._owner = readers, os.getpid()
        self._channel, theirs = Pipe()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "lightning_petl.data.video.decoder", str(theirs.fileno()), *readers],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._wait("no file yet", _START_S)

    @classmethod
    def of_this_process(cls, readers: tuple[str, ...]) -> _Process:
        """The running one, or a new one: after a fork, after a kill, or for other readers."""
        mine = cls._mine
        if mine is not None and mine._owner != os.getpid():  # a fork's copy of its parent's
            mine._channel.close()
            mine._child.returncode = 0  # not this process's child: nothing to wait for
            mine = None
        elif mine is not None and (mine.readers != readers or mine._channel.closed or mine._child.poll() is not None):
            mine.stop()
            mine = None
        cls._mine = mine or cls(readers)
        return cls._mine

    def ask(self, command: str, number: int, argument: object, path: str, timeout_s: float) -> Any:
        """Sends a request about a file and waits for the answer.

        Raises:
            DataError: It is the answer, or there is none in time.
        """
        try:
            self._channel.send((command, number, argument, path, timeout_s))
        except OSError as error:
            raise self._ended(path) from error
        return self._wait(path, timeout_s)

    def _wait(self, path: str, timeout_s: float) -> Any:
        try:
            if not self._channel.poll(timeout_s):
                self.stop()
                raise DataError(
                    f"decoding took over {timeout_s:g} seconds and was ended",
                    where=path,
                    fix="replace the file or remove it from the data, or raise data.timeout_s if the machine is slow",
                )
            answer = self._channel.recv()
        except (EOFError, OSError) as error:
            raise self._ended(path) from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def receive(self, shape: tuple[int, ...], path: str) -> NDArray[np.uint8]:
        """Takes the frames that follow an answer, without a copy in between."""
        frames = np.empty(shape, dtype=np.uint8)
        rest = frames.data.cast("B")
        while rest:
            count = os.readv(self._channel.fileno(), [rest])
            if not count:
                raise self._ended(path)
            rest = rest[count:]
        return frames

    def close(self, number: int) -> None:
        """Closes a file; without a word if the process is gone, for then the file is closed."""
        if self._owner == os.getpid() and not self._channel.closed:
            with suppress(OSError):
                self._channel.send(("close", number, None, "", _START_S))

    def _ended(self, path: str) -> DataError:
        self.stop()
        code = self._child.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return DataError(
            f"the process that decoded the file ended {how}",
            where=path,
            fix="replace the file or remove it from the data; if all files do it, check the machine's memory",
        )

    def stop(self) -> None:
        """Ends the process."""
        self._channel.close()
        self._child.kill()
        self._child.wait()


@atexit.register
def _stop() -> None:
    if _Process._mine is not None and _Process._mine._owner == os.getpid():
        _Process._mine.stop()
