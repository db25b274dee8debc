"""What reads a video file: frames by index, exact, or an error that names the file; never another frame or file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_petl.data.notices import listed
from lightning_petl.errors import DataError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from torch import Tensor


class Unsupported(DataError):  # noqa: N818 - as the errors of errors.py
    """This reader cannot decode the file, or cannot tell which of its frames is which; another reader may."""


class VideoReader(ABC):
    """An open video file.

    The rules, one for each way in which frames could change without a word:

    - Frame ``i`` is the ``i``-th that a player shows, decoded from the start, whatever the order of access.
    - Rotation in the metadata is applied, by multiples of 90 degrees; pixel aspect ratio is not.
    - Pixels are 8-bit RGB by the matrix and range that the stream states. Readers agree to the bit on 8-bit streams of
      even size. On others (10 bits, odd sizes, BT.2020) their versions of libswscale differ, most at edges of colour.
    - Transparency is left out: pixels have the colour that is stored, as players without it show them.
    - Of several video streams, the one that FFmpeg ranks best is read.

    Instances hold native handles: open them in the process that reads, and close them. As a context manager, a reader
    closes itself.

    Args:
        path: The file.
        limits: Sizes of frames to refuse before they are decoded.

    Attributes:
        path: The file.
        fps: Frames per second, by the container, or if it does not say, by the timestamps; 0 if neither tells.
        timestamps: When each frame is shown, seconds ``(n,)``, float64, from 0 and increasing.

    Raises:
        DataError: The file is missing, empty, cut off, no video, outside the limits, or cannot be decoded.
    """

    name: ClassVar[str]
    """Name of the library, as `choose` takes it."""

    path: str
    fps: float
    timestamps: NDArray[np.float64]

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width, as frames come out of `get`."""

    def __len__(self) -> int:
        return len(self.timestamps)

    def get(self, indices: Sequence[int]) -> Tensor:
        """Reads frames.

        Args:
            indices: Frames, in any order, also repeated; each decoded once.

        Returns:
            ``(t, h, w, 3)``, uint8, RGB.

        Raises:
            DataError: An index is outside the video, or frames cannot be decoded or do not exist.
        """
        import torch  # here: a process that only decodes starts without it

        return torch.from_numpy(self.frames(indices))

    def frames(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Reads frames as `get` does, as an array.

        Raises:
            DataError: See `get`.
        """
        wanted, place = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if not len(wanted):
            raise DataError("no frames are asked for", where=self.path, fix="give at least one index")
        if wanted[0] < 0 or wanted[-1] >= len(self):
            outside = [str(i) for i in wanted if not 0 <= i < len(self)]
            raise DataError(
                f"the video has {len(self)} frames, and frames {listed(outside, shown=3)} are asked for",
                where=self.path,
                fix="give indices from 0 to the number of frames less 1",
            )
        try:
            read = self._read(wanted.tolist())
        except (DataError, MemoryError):
            raise
        except Exception as error:
            raise undecodable(self.path, error, f"frames {wanted[0]} to {wanted[-1]}") from error
        return read if np.array_equal(place, np.arange(len(place))) else read[place]

    def walk(self) -> Iterator[NDArray[np.uint8]]:
        """Decodes every frame once, in order, ``(h, w, 3)`` each, so that damage anywhere shows.

        Raises:
            DataError: See `get`; or there are other frames than the file counts.
        """
        try:
            yield from self._walk()
        except (DataError, MemoryError):
            raise
        except Exception as error:
            raise undecodable(self.path, error) from error

    def _walk(self) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self), 32):
            yield from self.frames(range(start, min(start + 32, len(self))))

    @abstractmethod
    def _read(self, indices: list[int]) -> NDArray[np.uint8]:
        """Reads the frames of ascending indices, each once, ``(t, h, w, 3)``; may raise what its library raises."""

    @abstractmethod
    def close(self) -> None:
        """Releases the native handles; more than once does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def undecodable(path: str, error: Exception, what: str = "the video") -> DataError:
    """The error of a file that the library fails on, with the library's reason on one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"{what} cannot be decoded: {reason}", where=path, fix="replace the file or remove it from the data"
    )


def overstated(path: str, claimed: int, held: int) -> DataError:
    """The error of a container that counts more frames than its stream gives."""
    return DataError(
        f"the container counts {claimed} frames, and {held} can be decoded",
        where=path,
        fix="replace the file, rewrite it (ffmpeg -i old -c:v libx264 new.mp4) or remove it from the data",
    )


def average_fps(stated: float | None, timestamps: NDArray[np.float64]) -> float:
    """The container's frame rate where it is one, else the mean rate of the timestamps; 0 for a single frame."""
    if stated is not None and 0 < stated < float("inf"):
        return float(stated)
    return (len(timestamps) - 1) / float(timestamps[-1] - timestamps[0]) if len(timestamps) > 1 else 0.0
