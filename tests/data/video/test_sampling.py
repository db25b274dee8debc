"""Which frames: inside the video, the same for the same seed, counted where they repeat."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import media
import numpy as np
import pytest

from lightning_petl.data.video.sampling import Clip, DenseSampling, SegmentSampling, TemporalSampling, nearest
from lightning_petl.errors import ConfigError

IRREGULAR = np.array(media.IRREGULAR) / 1000


def at(fps: float, count: int) -> np.ndarray:
    return np.arange(count) / fps


def train(sampling: TemporalSampling, timestamps: np.ndarray, index: int = 0, epoch: int = 0, seed: int = 0) -> Clip:
    return sampling.train(timestamps, seed, epoch, index)


SAMPLINGS: list[TemporalSampling] = [
    DenseSampling(frames=8, rate=4),
    DenseSampling(frames=8, rate=4, short="loop"),
    DenseSampling(frames=8, rate=4, fps=12),
    DenseSampling(frames=8, rate=4, fps=12, short="loop"),
    SegmentSampling(frames=8),
    SegmentSampling(frames=8, short="loop"),
    SegmentSampling(frames=8, by_time=True),
]
VIDEOS: dict[str, np.ndarray] = {
    **{f"{count} frames": at(25, count) for count in (1, 2, 3, 7, 8, 9, 28, 29, 30, 300)},
    "irregular": IRREGULAR,
}


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("video", VIDEOS)
def test_clips_lie_in_the_video_and_count_what_repeats(sampling: TemporalSampling, video: str) -> None:
    timestamps = VIDEOS[video]
    clips = [train(sampling, timestamps, index) for index in range(40)] + [*sampling.test(timestamps, 5)]
    for indices, repeated in clips:
        assert (indices.shape, indices.dtype) == ((8,), np.int64)
        assert 0 <= indices.min() <= indices.max() < len(timestamps)
        assert repeated == 8 - len(set(indices.tolist()))
        if sampling.short == "repeat_last":
            assert (np.diff(indices) >= 0).all()
        if len(timestamps) >= needed(sampling) and video != "irregular":
            assert repeated == 0
        if len(timestamps) < 8:
            assert repeated > 0


def needed(sampling: TemporalSampling) -> int:
    """Frames of a video, 25 a second, of which every clip of eight is without repetition."""
    if isinstance(sampling, DenseSampling):
        return 29 if sampling.fps is None else 60  # 7 x 4 twelfths of a second
    return 1000 if sampling.by_time else 8  # borders between segments may cut any frame


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_training_follows_from_seed_epoch_and_index(sampling: TemporalSampling) -> None:
    timestamps = at(25, 300)
    keys = [(seed, epoch, index) for seed in range(2) for epoch in range(3) for index in range(20)]
    first = [sampling.train(timestamps, *key).indices.tolist() for key in keys]
    np.random.seed(1)  # no global state matters, nor what was drawn before
    again = [sampling.train(timestamps, *key).indices.tolist() for key in reversed(keys)]
    assert first == again[::-1]
    assert len({tuple(indices) for indices in first}) > 80


def test_training_is_the_same_on_every_machine() -> None:
    # Written out: a resumed run must continue with the very clips.
    code = """
import numpy as np
from lightning_petl.data.video.sampling import DenseSampling, SegmentSampling
times = np.arange(300) / 25
print(DenseSampling(frames=4, rate=4).train(times, 1, 2, 3).indices.tolist())
print(SegmentSampling(frames=4).train(times, 1, 2, 3).indices.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == EXPECTED


EXPECTED = ["[194, 198, 202, 206]", "[17, 76, 150, 242]"]


def test_dense_training_starts_anywhere_equally_often() -> None:
    sampling, timestamps = DenseSampling(frames=4, rate=3), at(25, 14)  # a span of 10: starts 0 to 4
    starts = Counter(int(train(sampling, timestamps, index).indices[0]) for index in range(2000))
    assert sorted(starts) == [0, 1, 2, 3, 4]
    assert min(starts.values()) > 330  # of 400; five standard deviations are 89
    for index in range(50):
        assert (np.diff(train(sampling, timestamps, index).indices) == 3).all()


def test_dense_views_run_from_the_start_to_the_end() -> None:
    sampling, timestamps = DenseSampling(frames=4, rate=2), at(25, 20)  # a span of 7
    assert [clip.indices.tolist() for clip in sampling.test(timestamps, 1)] == [[6, 8, 10, 12]]
    assert [int(clip.indices[0]) for clip in sampling.test(timestamps, 4)] == [0, 4, 8, 13]
    assert [int(clip.indices[-1]) for clip in sampling.test(timestamps, 4)][-1] == 19
    assert len(sampling.test(timestamps, 30)) == 30


@pytest.mark.parametrize(
    ("short", "expected", "repeated"), [("repeat_last", [0, 2, 4, 4, 4], 2), ("loop", [0, 2, 4, 1, 3], 0)]
)
@pytest.mark.parametrize("fps", [None, 25.0], ids=["by index", "by time"])
def test_dense_clip_of_a_short_video(short: str, expected: list[int], repeated: int, fps: float | None) -> None:
    sampling = DenseSampling(frames=5, rate=2, short=short, fps=fps)  # type: ignore[arg-type]
    for clip in (train(sampling, at(25, 5)), *sampling.test(at(25, 5), 3)):
        assert (clip.indices.tolist(), clip.repeated) == (expected, repeated)


@pytest.mark.parametrize("milliseconds", [False, True], ids=["exact", "rounded to milliseconds"])
@pytest.mark.parametrize("fps", [12, 25, 29.97, 30, 60])
def test_by_time_is_by_index_at_the_rate_of_the_video(fps: float, milliseconds: bool) -> None:
    for count in (1, 3, 20, 100):
        timestamps = at(fps, count).round(3) if milliseconds else at(fps, count)
        for short in ("repeat_last", "loop"):
            index, time = (DenseSampling(8, short, rate=4, fps=f) for f in (None, fps))  # type: ignore[arg-type]
            # Of several views, the first and last only: the others start between two frames.
            for one, other in ((0, 0), (-1, -1)):
                expected = index.test(timestamps, 2)[one].indices.tolist()
                assert time.test(timestamps, 2)[other].indices.tolist() == expected


@pytest.mark.parametrize("fps", [15, 25, 50])
def test_by_time_the_span_is_the_same_at_any_rate(fps: float) -> None:
    timestamps = at(fps, int(10 * fps))
    sampling = DenseSampling(frames=6, rate=3, fps=10)  # 0.3 seconds apart
    for clip in (*sampling.test(timestamps, 5), *(train(sampling, timestamps, index) for index in range(20))):
        np.testing.assert_allclose(np.diff(timestamps[clip.indices]), 0.3, atol=1 / fps + 1e-9)
        assert np.ptp(timestamps[clip.indices]) == pytest.approx(1.5, abs=1 / fps)


def test_by_time_on_a_variable_rate() -> None:
    longest = np.diff(IRREGULAR).max()
    by_time, by_index = DenseSampling(frames=8, rate=5, fps=10), DenseSampling(frames=8, rate=5)
    for clip in by_time.test(IRREGULAR, 3):
        moments = IRREGULAR[clip.indices]
        np.testing.assert_allclose(np.diff(moments), 0.5, atol=longest + 1e-9)
        np.testing.assert_allclose(moments, moments[0] + 0.5 * np.arange(8), atol=longest)
    # By index it would not be: the same number of frames takes from 100 milliseconds to over a second.
    gaps = np.diff(IRREGULAR[by_index.test(IRREGULAR)[0].indices])
    assert gaps.max() > 2 * gaps.min()


def test_segments_give_one_frame_each() -> None:
    sampling, timestamps = SegmentSampling(frames=5), at(25, 23)
    edges = [0, 4, 9, 13, 18, 23]
    seen = [set[int]() for _ in range(5)]
    for index in range(400):
        for segment, frame in enumerate(train(sampling, timestamps, index).indices.tolist()):
            assert edges[segment] <= frame < edges[segment + 1]
            seen[segment].add(frame)
    for segment, (start, end) in enumerate(pairwise(edges)):
        assert seen[segment] == set(range(start, end))
    assert sampling.test(timestamps)[0].indices.tolist() == [2, 6, 11, 15, 20]


def test_segments_of_whole_frames_are_exact() -> None:
    for frames in range(1, 33):
        for length in (1, 2, 3, 5, 8):
            clip = SegmentSampling(frames=frames).test(at(25, frames * length))[0]
            assert clip.indices.tolist() == [segment * length + length // 2 for segment in range(frames)]


def test_views_of_segments_share_them_out() -> None:
    clips = SegmentSampling(frames=3).test(at(25, 18), 2)  # segments of six frames, at a quarter and three quarters
    assert [clip.indices.tolist() for clip in clips] == [[1, 7, 13], [4, 10, 16]]


@pytest.mark.parametrize("short", ["repeat_last", "loop"])
def test_segments_of_a_short_video(short: str) -> None:
    expected = {"repeat_last": [0, 1, 2, 2, 2], "loop": [0, 1, 2, 0, 1]}[short]
    sampling = SegmentSampling(frames=5, short=short)  # type: ignore[arg-type]
    for clip in (train(sampling, at(25, 3)), *sampling.test(at(25, 3), 2)):
        assert (clip.indices.tolist(), clip.repeated) == (expected, 2)


def test_segments_by_time() -> None:
    timestamps = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 1.4, 2.4, 3.4])  # the last frame is taken to last half a second
    clip = SegmentSampling(frames=4, by_time=True).test(timestamps)[0]
    assert clip.indices.tolist() == [4, 5, 6, 7]  # on show at 0.49, 1.46, 2.43, 3.40 seconds
    even = at(25, 40)
    for frames in (4, 5, 8, 10):
        by_index, by_time = (SegmentSampling(frames=frames, by_time=flag).test(even, 2) for flag in (False, True))
        assert [clip.indices.tolist() for clip in by_time] == [clip.indices.tolist() for clip in by_index]


def test_nearest_frames() -> None:
    timestamps = np.array([0.0, 0.4, 1.0])
    moments = np.array([-5.0, 0.0, 0.19, 0.2, 0.21, 0.69, 0.71, 1.0, 9.0])
    assert nearest(timestamps, moments).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert nearest(np.array([0.0]), moments).tolist() == [0] * 9


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: DenseSampling(frames=0), "frames"),
        (lambda: DenseSampling(rate=0), "rate"),
        (lambda: DenseSampling(fps=0.0), "fps"),
        (lambda: DenseSampling(fps=float("nan")), "fps"),
        (lambda: SegmentSampling(short="random"), "short"),  # type: ignore[arg-type]
        (lambda: SegmentSampling().test(at(25, 9), 0), "temporal_views"),
    ],
)
def test_options_are_checked(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .*data\.{field}"):
        make()
