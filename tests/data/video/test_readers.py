"""Frames: the right ones, whatever the codec, the container and the order of access."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import pytest
import torch
from media import GOOD, numbers

from lightning_petl.data.video.decord_reader import DecordReader
from lightning_petl.data.video.pyav_reader import PyAVReader
from lightning_petl.data.video.reader import VideoReader
from lightning_petl.errors import DataError

READERS = (DecordReader, PyAVReader)
readers = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
Reader = type[DecordReader] | type[PyAVReader]


@readers
@pytest.mark.parametrize("name", GOOD)
def test_random_access_gives_the_frame_of_that_number(videos: Path, reader: Reader, name: str) -> None:
    count, draw = GOOD[name][0], random.Random(name)
    with reader(str(videos / name)) as video:
        assert len(video) == count
        assert numbers(video.frames(range(count))) == list(range(count))
        for _ in range(8):
            asked = [draw.randrange(count) for _ in range(draw.randrange(1, 9))]
            assert numbers(video.frames(asked)) == asked
    for start in {0, count // 3, count // 2, count - 1}:  # the first access of a new reader
        with reader(str(videos / name)) as video:
            assert numbers(video.frames([start])) == [start]


CONVERTED_OTHERWISE = ("odd.webm", "odd.avi", "ten_bit.mp4")
"""Odd sizes with subsampled colour, and ten bits: the two versions of libswscale differ."""


@pytest.mark.parametrize("name", sorted(GOOD.keys() - CONVERTED_OTHERWISE))
def test_readers_agree_to_the_bit(videos: Path, name: str) -> None:
    with DecordReader(str(videos / name)) as one, PyAVReader(str(videos / name)) as other:
        assert len(one) == len(other)
        assert one.fps == pytest.approx(other.fps, rel=1e-6)
        assert one.size == other.size
        np.testing.assert_allclose(one.timestamps, other.timestamps, atol=1e-5, rtol=1e-6)
        assert np.array_equal(one.frames(range(len(one))), other.frames(range(len(other))))


@pytest.mark.parametrize("name", CONVERTED_OTHERWISE)
def test_readers_agree_nearly_where_libraries_differ(videos: Path, name: str) -> None:
    with DecordReader(str(videos / name)) as one, PyAVReader(str(videos / name)) as other:
        difference = np.abs(one.frames(range(30)).astype(int) - other.frames(range(30)))
    assert difference.mean() < 2
    assert (difference > 8).mean() < 0.1


@readers
def test_shape_and_type(videos: Path, reader: Reader) -> None:
    with reader(str(videos / "odd.mp4")) as video:
        frames = video.get([3, 1, 3])
        assert (frames.shape, frames.dtype) == ((3, 67, 77, 3), torch.uint8)
        assert video.size == (67, 77)
        assert torch.equal(frames[0], frames[2])


@readers
def test_size_before_any_frame(videos: Path, reader: Reader) -> None:
    with reader(str(videos / "short.mp4")) as video:
        assert video.size == (64, 80)
        assert numbers(video.frames([5, 40])) == [5, 40]


@readers
@pytest.mark.parametrize("name", ["irregular.mp4", "irregular.webm"])
def test_timestamps_of_variable_rate(videos: Path, reader: Reader, name: str) -> None:
    with reader(str(videos / name)) as video:
        np.testing.assert_allclose(video.timestamps, np.array(media.IRREGULAR) / 1000, atol=1e-4)


@readers
@pytest.mark.parametrize("name", ["long.mp4", "vp9.webm", "plain.avi", "b_frames.avi", "packed.avi", "h264.avi"])
def test_timestamps_and_rate_of_constant_rate(videos: Path, reader: Reader, name: str) -> None:
    with reader(str(videos / name)) as video:
        np.testing.assert_allclose(video.timestamps, np.arange(60) / 25, atol=1e-4)
        assert video.timestamps.dtype == np.float64
        assert video.fps == pytest.approx(25)


@readers
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(videos: Path, tmp_path: Path, reader: Reader, degrees: int) -> None:
    media.rotated(videos / "long.mp4", tmp_path / "a.mp4", degrees)
    with reader(str(videos / "long.mp4")) as upright, reader(str(tmp_path / "a.mp4")) as video:
        expected = np.rot90(upright.frames([7, 30]), -degrees // 90, axes=(1, 2))
        assert video.size == expected.shape[1:3]
        assert np.array_equal(video.frames([7, 30]), expected)


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)], ids=str)
def test_a_mirrored_video_is_refused(videos: Path, tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    """FFmpeg would have it turned. Decord does not tell the matrix."""
    media.rotated(videos / "long.mp4", tmp_path / "a.mp4", 0)
    media.shown(tmp_path / "a.mp4", *matrix)
    with (
        PyAVReader(str(tmp_path / "a.mp4")) as video,
        pytest.raises(DataError, match=r"to be shown mirrored \[\S+a\.mp4\]"),
    ):
        video.frames([7])


@readers
@pytest.mark.parametrize(("codec", "pixels", "name"), [("png", "rgba", "a.mov"), ("libvpx-vp9", "yuva420p", "a.webm")])
def test_transparency_is_left_out(tmp_path: Path, reader: Reader, codec: str, pixels: str, name: str) -> None:
    colours = np.zeros((4, 64, 80, 4), np.uint8)
    colours[..., 0], colours[..., 3] = 200, np.linspace(0, 255, 80)
    colours[..., 1] = 60 * np.arange(4)[:, None, None]
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(codec, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 80, 64, pixels
        for frame in colours:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        file.mux(stream.encode(None))
    with reader(str(tmp_path / name)) as video:
        difference = video.frames(range(4)).astype(int) - colours[..., :3]
    assert np.abs(difference).max() <= 4


@readers
def test_trimmed_start_is_left_out(videos: Path, tmp_path: Path, reader: Reader) -> None:
    media.trimmed(videos / "short.mp4", tmp_path / "a.mp4", 5)
    with reader(str(tmp_path / "a.mp4")) as video:
        assert len(video) == 55
        assert video.timestamps[0] == 0
        assert numbers(video.frames(range(55))) == list(range(5, 60))
        assert numbers(video.frames([0, 6, 7, 40])) == [5, 11, 12, 45]


@readers
@pytest.mark.parametrize("indices", [[-1], [0, 60], [1000]])
def test_indices_outside_are_refused(videos: Path, reader: Reader, indices: list[int]) -> None:
    with reader(str(videos / "long.mp4")) as video, pytest.raises(DataError, match=r"has 60 frames.*long\.mp4"):
        video.get(indices)


@readers
def test_no_indices_are_refused(videos: Path, reader: Reader) -> None:
    with reader(str(videos / "long.mp4")) as video, pytest.raises(DataError, match="no frames are asked for"):
        video.get([])


@readers
def test_closing_twice_does_no_harm(videos: Path, reader: Reader) -> None:
    video: VideoReader = reader(str(videos / "one.mp4"))
    video.close()
    video.close()


def test_decords_own_random_access_is_why_it_is_not_used(videos: Path) -> None:
    # Where this fails, decord has been mended, and its reader may seek.
    import decord

    video = decord.VideoReader(str(videos / "open.mp4"), num_threads=1)
    asked = list(range(59, 0, -7))
    assert numbers(video.get_batch(asked).asnumpy()) != asked
