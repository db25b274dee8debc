"""Which frames of a video make a clip: densely at a rate, or one of each segment; by index, or by time.

Training clips follow from ``(seed, epoch, index)`` alone, as all random choices of the data room do. Test clips follow
from the video.

A video may have fewer frames than a clip takes. Then frames come more than once, by a rule that is chosen
(``short``), and the clip says how many do (`Clip.repeated`); no other video takes its place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_petl.data.randomness import mixed
from lightning_petl.errors import ConfigError

Short = Literal["repeat_last", "loop"]
"""What fills a clip behind the end of its video: the last frame, or the video from the start again."""

_IN_TIME = 1
"""Last number of the seeds drawn from here; the transforms of the same sample draw from theirs."""

_MICROSECOND = 1e-6
"""What rounding may take off a moment at which a frame starts."""


class Clip(NamedTuple):
    """Frames of a video.

    Attributes:
        indices: ``(frames,)``, int64, for `VideoReader.get`.
        repeated: How many of them are there a second time or more.
    """

    indices: NDArray[np.int64]
    repeated: int


@dataclass(frozen=True)
class TemporalSampling(ABC):
    """How clips are taken from videos; a plain value.

    Args:
        frames: Frames of a clip.
        short: See `Short`.
    """

    frames: int = 16
    short: Short = "repeat_last"

    def __post_init__(self) -> None:
        _require(self.frames >= 1, "frames", self.frames, "give 1 or more")
        _require(self.short in ("repeat_last", "loop"), "short", self.short, "choose repeat_last or loop")

    def train(self, timestamps: NDArray[np.float64], seed: int, epoch: int, index: int) -> Clip:
        """A random clip.

        Args:
            timestamps: Of the video's frames, seconds ``(n,)``, increasing; n is 1 or more.
            seed: With the next two, what the choice follows from.
            epoch: The epoch.
            index: The sample's index in its data set.
        """
        return _clip(self._random(timestamps, np.random.default_rng(mixed(seed, epoch, index, _IN_TIME))))

    def test(self, timestamps: NDArray[np.float64], views: int = 1) -> tuple[Clip, ...]:
        """Clips spread evenly over a video; a single one is taken from its centre.

        Args:
            timestamps: Of the video's frames, seconds ``(n,)``, increasing; n is 1 or more.
            views: Number of clips.

        Raises:
            ConfigError: There is no view.
        """
        _require(views >= 1, "temporal_views", views, "give 1 or more")
        return tuple(_clip(self._view(timestamps, view, views)) for view in range(views))

    @abstractmethod
    def _random(self, timestamps: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]: ...

    @abstractmethod
    def _view(self, timestamps: NDArray[np.float64], view: int, views: int) -> NDArray[np.int64]: ...

    def _folded(self, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Puts places behind the end of a video of ``count`` frames back into it."""
        return places % count if self.short == "loop" else np.minimum(places, count - 1)


@dataclass(frozen=True)
class DenseSampling(TemporalSampling):
    """Frames at a fixed distance from each other, as for Kinetics (SlowFast, VideoMAE).

    By index (``fps`` null), a clip takes every ``rate``-th frame from a start. By time, it takes the frames nearest to
    moments ``rate / fps`` seconds apart: the same span of time whatever the frame rate, constant or not.

    The start is uniform over all that leave the clip inside the video in training. In test, the first view starts with
    the video and the last ends with it. A video shorter than the span starts at its beginning.

    Args:
        frames: Frames of a clip.
        short: See `Short`.
        rate: Distance of neighbouring frames.
        fps: Frames per second that ``rate`` counts in, or null to count the video's own frames.
    """

    rate: int = 4
    fps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.rate >= 1, "rate", self.rate, "give 1 or more")
        _require(self.fps is None or 0 < self.fps < math.inf, "fps", self.fps, "give frames per second, or null")

    def _random(self, timestamps: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        if self.fps is None:
            return self._from(int(rng.integers(self._slack(len(timestamps)) + 1)), len(timestamps))
        return self._from_time(rng.uniform(0, self._time_left(timestamps)), timestamps)

    def _view(self, timestamps: NDArray[np.float64], view: int, views: int) -> NDArray[np.int64]:
        part, parts = (view, views - 1) if views > 1 else (1, 2)
        if self.fps is None:
            return self._from(self._slack(len(timestamps)) * part // parts, len(timestamps))
        return self._from_time(self._time_left(timestamps) * part / parts, timestamps)

    def _slack(self, count: int) -> int:
        """The last start, in frames, that leaves the clip inside the video."""
        return max(0, count - 1 - (self.frames - 1) * self.rate)

    def _from(self, start: int, count: int) -> NDArray[np.int64]:
        return self._folded(start + self.rate * np.arange(self.frames, dtype=np.int64), count)

    def _time_left(self, timestamps: NDArray[np.float64]) -> float:
        assert self.fps is not None
        return max(0.0, float(timestamps[-1] - timestamps[0]) - (self.frames - 1) * self.rate / self.fps)

    def _from_time(self, start: float, timestamps: NDArray[np.float64]) -> NDArray[np.int64]:
        assert self.fps is not None
        moments = start + np.arange(self.frames) * (self.rate / self.fps)
        if self.short == "loop":
            # Nearer to the first frame of the next round than to the last of this one: half a frame before the end.
            duration = _duration(timestamps)
            half = duration / (2 * len(timestamps))
            moments = (moments + half) % duration - half
        return nearest(timestamps, timestamps[0] + moments)


@dataclass(frozen=True)
class SegmentSampling(TemporalSampling):
    """One frame of each of equal segments, which cover the video (Temporal Segment Networks, arXiv 1608.00859).

    Training takes a random frame of each segment, test the one in its centre; of several views, view ``v`` of ``k`` the
    one at ``(v + 1/2) / k`` of the segment. Segments are whole frames, equally many but for one; or with ``by_time``
    equal in seconds, and then a frame on show at a border may stand for both sides. A video of fewer frames than
    segments gives all of its frames in order, then what ``short`` says.

    Args:
        frames: Segments, and frames of a clip.
        short: See `Short`.
        by_time: Cut segments by time.
    """

    by_time: bool = False

    def _random(self, timestamps: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        return self._at(rng.random(self.frames), timestamps)

    def _view(self, timestamps: NDArray[np.float64], view: int, views: int) -> NDArray[np.int64]:
        return self._at(np.full(self.frames, (view + 0.5) / views), timestamps)

    def _at(self, shares: NDArray[np.float64], timestamps: NDArray[np.float64]) -> NDArray[np.int64]:
        """The frames at a share, 0 to below 1, of each segment."""
        count = len(timestamps)
        if count < self.frames:
            return self._folded(np.arange(self.frames, dtype=np.int64), count)
        segments = np.arange(self.frames + 1)
        if not self.by_time:
            edges = segments * count // self.frames
            return edges[:-1] + (np.diff(edges) * shares).astype(np.int64)
        moments = (segments[:-1] + shares) * _duration(timestamps) / self.frames + _MICROSECOND
        on_show: NDArray[np.int64] = np.searchsorted(timestamps, timestamps[0] + moments, side="right").astype(np.int64)
        return on_show - 1


def nearest(timestamps: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames shown nearest to some moments, the earlier of two as near.

    Not the frames on show at a moment: containers round timestamps, and the frame meant to start there may start a
    millisecond later.

    Args:
        timestamps: ``(n,)``, increasing.
        moments: ``(m,)``.

    Returns:
        ``(m,)``, int64.
    """
    after = np.searchsorted(timestamps, moments).clip(1, max(1, len(timestamps) - 1))
    before = after - 1
    later = np.minimum(after, len(timestamps) - 1)
    closer = timestamps[later] - moments < moments - timestamps[before]
    chosen: NDArray[np.int64] = np.where(closer, later, before).astype(np.int64)
    return chosen


def _duration(timestamps: NDArray[np.float64]) -> float:
    """Seconds from the first frame to the end of the last, which is taken to stay as long as the mean of the others."""
    count = len(timestamps)
    return float(timestamps[-1] - timestamps[0]) * count / (count - 1) if count > 1 else 1.0


def _clip(indices: NDArray[np.int64]) -> Clip:
    return Clip(indices, len(indices) - len(np.unique(indices)))


def _require(holds: bool, option: str, value: object, fix: str) -> None:
    if not holds:
        raise ConfigError(f"{option} is {value}", where=f"data.{option}", fix=fix)
