"""The process that decodes for `watched`: ``python -m lightning_petl.data.video.decoder FD READER...``.

It reads requests ``(command, number of the file, argument, path, timeout_s)`` from the descriptor and answers each,
except "close", with a value or an error; after the answer to "frames", the frames follow as bytes. It ends with its
owner: when the other side of the descriptor is closed, or, if it hangs by then, by an alarm. The alarm's default action
is the kernel's, which no lock of the interpreter can hold up.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np

from lightning_petl.data.limits import ImageLimits
from lightning_petl.data.video.decoding import open_with
from lightning_petl.data.video.reader import VideoReader, undecodable
from lightning_petl.errors import DataError

_GRACE_S = 5.0
"""How long after the time-out the alarm goes: the owner kills first, and says why."""


def main(descriptor: int, readers: tuple[str, ...]) -> None:
    """Serves until the owner closes its side.

    Args:
        descriptor: This side of the connection.
        readers: See `Decoding`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard is the owner's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for place in readers:
        pkgutil.resolve_name(place)
    with Connection(descriptor) as channel:
        channel.send(None)  # ready
        _Server(readers, channel).run()


class _Server:
    def __init__(self, readers: tuple[str, ...], channel: Connection) -> None:
        self._places, self._channel = readers, channel
        self._open: dict[int, VideoReader] = {}

    def run(self) -> None:
        while True:
            try:
                command, number, argument, path, timeout_s = self._channel.recv()
            except (EOFError, OSError):
                return
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
            try:
                getattr(self, command)(number, argument)
            except DataError as error:
                self._channel.send(error)
            except Exception as error:
                self._channel.send(undecodable(path, error))
            signal.setitimer(signal.ITIMER_REAL, 0)

    def open(self, number: int, place: tuple[str, str | None, ImageLimits]) -> None:
        path, folder, limits = place
        if folder is not None:
            os.chdir(folder)  # the owner may have changed it since this process started
        self._open[number] = reader = open_with(self._places, path, limits)
        self._channel.send((reader.name, reader.fps, reader.timestamps))

    def size(self, number: int, _: None) -> None:
        self._channel.send(self._open[number].size)

    def frames(self, number: int, indices: list[int]) -> None:
        frames = np.ascontiguousarray(self._open[number].frames(indices))
        self._channel.send(frames.shape)
        rest = frames.data.cast("B")
        while rest:
            rest = rest[os.write(self._channel.fileno(), rest) :]

    def close(self, number: int, _: None) -> None:
        if number in self._open:
            self._open.pop(number).close()


if __name__ == "__main__":
    main(int(sys.argv[1]), tuple(sys.argv[2:]))
