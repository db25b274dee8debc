"""Finding the bad files of a data set before a model meets them: every image and every frame is decoded.

Processes of their own decode; one that hangs or dies is ended, its file reported, and another takes its place. They
start without torch.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from lightning_petl.data.images import EXTENSIONS as IMAGE_EXTENSIONS
from lightning_petl.data.images import decode
from lightning_petl.data.video.decoding import Decoding
from lightning_petl.data.video.reader import VideoReader
from lightning_petl.errors import DataError

_BLOCK = 1 << 20
_GRACE_S = 5.0
"""How long after the time-out a process ends by itself: its owner ends it first, unless the owner is gone."""

_RANDOM_READS = 24
"""Frames of each video that are read again in random order; a wrong seek hits a third of the frames and more."""

_START_S = 120.0
"""Seconds that a process may take to start."""


@dataclass(frozen=True)
class Report:
    """What was found out about a file.

    Attributes:
        path: The file.
        fault: What is wrong with it, or "" if nothing is.
        size: Bytes.
        mtime_ns: When it was last written, nanoseconds.
        sha256: Of its bytes, in hexadecimal.
        frames: Frames that were decoded; 1 for an image.
    """

    path: str
    fault: str
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    frames: int = 0


@dataclass(frozen=True)
class Check:
    """What is done with each file; a plain value that travels to the processes.

    Attributes:
        decoding: What opens videos; without a time-out of its own.
        random_access: Whether frames of each video are read in random order, too, and compared.
        decode: Whether files are decoded; if not, their bytes alone are read.
    """

    decoding: Decoding
    random_access: bool = False
    decode: bool = True

    def __call__(self, path: str, beat: Callable[[], None]) -> Report:
        """Reads a file to its end.

        Args:
            path: An image, by its suffix, or a video.
            beat: Called while there is progress.
        """
        try:
            status = os.stat(path)  # noqa: PTH116 - paths are strings here
            digest = _sha256(path, beat)
            facts = (status.st_size, status.st_mtime_ns, digest)
        except OSError as error:
            return Report(path, f"the file cannot be read: {error.strerror}")
        if not self.decode:
            return Report(path, "", *facts)
        try:
            if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS:  # noqa: PTH122
                return Report(path, "", *facts, frames=decode(path).frames)
            return Report(path, "", *facts, frames=self._video(path, beat))
        except DataError as error:
            return Report(path, error.what, *facts)
        except MemoryError:
            return Report(path, "decoding takes more memory than there is", *facts)

    def _video(self, path: str, beat: Callable[[], None]) -> int:
        digests: list[bytes] = []
        with self.decoding.open(path) as video:
            for frame in video.walk():
                digests.append(hashlib.blake2b(frame.tobytes(), digest_size=8).digest() if self.random_access else b"")
                beat()
        if self.random_access:
            with self.decoding.open(path) as video:
                _compare(video, digests, beat)
        return len(digests)


def _compare(video: VideoReader, digests: Sequence[bytes], beat: Callable[[], None]) -> None:
    """Reads frames one by one in random order, and some of them together."""
    order = random.Random(0).sample(range(len(digests)), min(_RANDOM_READS, len(digests)))
    for asked in [*([index] for index in order), order[: _RANDOM_READS // 3]]:
        for index, frame in zip(asked, video.frames(asked), strict=True):
            if hashlib.blake2b(frame.tobytes(), digest_size=8).digest() != digests[index]:
                raise DataError(f"frame {index} is another when it is sought than when all are read", where=video.path)
        beat()


def _sha256(path: str, beat: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            beat()
    return digest.hexdigest()


def verify(paths: Sequence[str], check: Check, workers: int, timeout_s: float) -> Iterator[Report]:
    """Checks files in several processes.

    Args:
        paths: The files.
        check: What is done with each.
        workers: Number of processes.
        timeout_s: Seconds without progress, such as a decoded frame, after which a file is given up.

    Yields:
        A report for each file, as they get done.
    """
    waiting = list(reversed(paths))
    crew = [_Worker(check, timeout_s) for _ in range(min(workers, len(paths)))]
    try:
        while True:
            for worker in crew:
                if worker.path is None and waiting:
                    worker.take(waiting.pop())
            busy = [worker for worker in crew if worker.path is not None]
            if not busy:
                return
            soonest = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = set(wait([worker.channel for worker in busy], soonest))
            for worker in busy:
                report = worker.hear() if worker.channel in ready else worker.late()
                if report is not None:
                    yield report
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process that checks one file after the other, and the file that it is at."""

    def __init__(self, check: Check, timeout_s: float) -> None:
        self._check, self._timeout_s = check, timeout_s
        self.path: str | None = None
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of whatever runs here
        self.channel, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._check, self._timeout_s), daemon=True)
        self._process.start()
        theirs.close()
        self._fresh = True

    def take(self, path: str) -> None:
        self.path = path
        self.deadline = time.monotonic() + self._timeout_s + (_START_S if self._fresh else 0)
        with suppress(OSError):  # it has died: `hear` will say so
            self.channel.send(path)

    def hear(self) -> Report | None:
        """What the process said: nothing but that it goes on, or the report."""
        try:
            said = self.channel.recv()
        except (EOFError, OSError):
            return self._given_up()
        self.deadline, self._fresh = time.monotonic() + self._timeout_s, False
        if said is None:
            return None
        self.path = None
        assert isinstance(said, Report)
        return said

    def late(self) -> Report | None:
        if time.monotonic() < self.deadline:
            return None
        self._process.kill()
        return self._given_up(f"decoding made no progress for {self._timeout_s:g} seconds and was ended")

    def _given_up(self, fault: str = "") -> Report:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        path, self.path = self.path, None
        assert path is not None
        self.stop()
        self._start()
        return Report(path, fault or f"the process that decoded the file ended {how}")

    def stop(self) -> None:
        self.channel.close()
        self._process.kill()
        self._process.join()


def _serve(channel: Connection, check: Check, timeout_s: float) -> None:
    """Checks the files that come, until the owner closes its side; an alarm ends what hangs after the owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt from the keyboard is the owner's to handle
    told = 0.0

    def beat() -> None:
        nonlocal told
        if (now := time.monotonic()) - told > min(1.0, timeout_s / 4):
            told = now
            _alarm(timeout_s + _GRACE_S)
            channel.send(None)

    with suppress(EOFError, OSError):
        while True:
            path = channel.recv()
            _alarm(timeout_s + _GRACE_S)
            told = 0.0
            beat()
            try:
                report = check(path, beat)
            except Exception as error:  # of whatever kind: the file is at fault, and the next one is not
                reason = " ".join(str(error).split()) or type(error).__name__
                report = Report(path, f"{type(error).__name__}: {reason}")
            _alarm(0)
            channel.send(report)


def _alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)
