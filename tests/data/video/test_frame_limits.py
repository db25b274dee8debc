"""Videos whose frames are too large are refused, by PyAV before there is a frame in memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import layouts
import pytest

from lightning_petl.data import ImageLimits, VideoListData
from lightning_petl.data.video.decoding import choose
from lightning_petl.data.video.decord_reader import DecordReader
from lightning_petl.data.video.pyav_reader import PyAVReader
from lightning_petl.errors import DataError

readers = pytest.mark.parametrize("reader", [DecordReader, PyAVReader], ids=lambda reader: reader.name)
Reader = type[DecordReader] | type[PyAVReader]

HUGE = 16_000
"""Side of frames that FFmpeg still decodes: 256 million pixels, which take 768 MB in RGB."""


def png(side: int) -> bytes:
    """A black picture of one bit a pixel, for which a thousandth of its bytes is enough."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(path: Path, sides: Sequence[int], claimed: int) -> None:
    """A video of square PNGs, whose container claims some size."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("png", rate=25)
        stream.width = stream.height = claimed
        stream.pix_fmt = "monob"
        for place, side in enumerate(sides):
            packet = av.Packet(png(side))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = place
            file.mux(packet)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of huge frames: some that say so, some whose container says something else, one that grows."""
    folder = tmp_path_factory.mktemp("bombs")
    for ending in ("avi", "mp4", "mov"):
        write(folder / f"honest.{ending}", [HUGE] * 2, HUGE)
        write(folder / f"lying.{ending}", [HUGE] * 2, 64)
    write(folder / "growing.mov", [64, HUGE], 64)
    assert all(path.stat().st_size < 80_000 for path in folder.iterdir())
    return folder


@pytest.mark.parametrize("ending", ["avi", "mp4", "mov"])
@pytest.mark.parametrize("kind", ["honest", "lying"])
def test_huge_frames_are_refused(bombs: Path, kind: str, ending: str) -> None:
    """Whatever the container says."""
    path = bombs / f"{kind}.{ending}"
    with pytest.raises(DataError) as caught:
        PyAVReader(str(path))
    assert "outside max_pixels=64000000" in caught.value.what
    assert caught.value.where == str(path)
    assert "data.limits.max_pixels" in caught.value.fix


def test_decord_refuses_them_when_it_has_one(bombs: Path) -> None:
    told = r"the video is 16000x16000 pixels, outside max_pixels=64000000 \[\S+honest\.mp4\]"
    with pytest.raises(DataError, match=told):
        DecordReader(str(bombs / "honest.mp4"))


@readers
@pytest.mark.parametrize("ending", ["avi", "mp4", "mov"])
def test_frames_are_measured_where_the_container_says_something_else(
    tmp_path: Path, reader: Reader, ending: str
) -> None:
    path = tmp_path / f"lying.{ending}"
    write(path, [512] * 2, 64)
    with pytest.raises(DataError, match=r"the video is 512x512 pixels, outside max_pixels=262143 \[\S+lying"):
        reader(str(path), ImageLimits(max_pixels=512 * 512 - 1))
    with reader(str(path), ImageLimits(max_pixels=512 * 512)) as video:
        assert video.frames([0, 1]).shape == (2, 512, 512, 3)


def test_frames_that_grow_are_refused(bombs: Path) -> None:
    with PyAVReader(str(bombs / "growing.mov")) as video:
        assert len(video) == 2
        assert video.size == (64, 64)
        with pytest.raises(DataError, match=r"cannot be decoded.*growing\.mov"):
            video.frames([0, 1])


PEAK = """
import pathlib, sys
from lightning_petl.data.video.decoding import choose
from lightning_petl.errors import DataError
import av, decord, numpy
def memory(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(field))
before = memory("VmRSS")
refused = 0
for path in sys.argv[2:]:
    try:
        with choose(sys.argv[1]).open(path) as video:
            video.frames(range(len(video)))
    except DataError:
        refused += 1
print(refused, memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_frame_gets_into_memory(bombs: Path) -> None:
    """A frame of one bit a pixel is 32 MB, and in RGB 768 MB."""
    paths = list(map(str, bombs.iterdir()))
    shown = subprocess.run([sys.executable, "-c", PEAK, "pyav", *paths], check=True, capture_output=True, timeout=120)
    refused, grown = map(int, shown.stdout.split())
    assert refused == len(paths)
    assert grown < 30


@readers
@pytest.mark.parametrize("name", ["long.mp4", "vp9.webm", "vp8.mkv", "plain.avi", "h264.avi"])
def test_the_limit_is_a_choice(videos: Path, reader: Reader, name: str) -> None:
    path = str(videos / name)
    with reader(path, ImageLimits(max_pixels=64 * 80)) as video:
        assert video.size == (64, 80)
    with pytest.raises(DataError, match=r"the video is 80x64 pixels, outside max_pixels=5119 .*data.limits.max_pixels"):
        reader(path, ImageLimits(max_pixels=64 * 80 - 1))
    with pytest.raises(DataError, match=r"outside min_side=65 .*data.limits.min_side"):
        reader(path, ImageLimits(min_side=65))


@pytest.mark.parametrize("timeout_s", [None, 60.0])
@pytest.mark.parametrize("reader", ["pyav", "decord", "auto"])
def test_the_limit_reaches_the_process_that_decodes(videos: Path, reader: str, timeout_s: float | None) -> None:
    path = str(videos / "long.mp4")
    with pytest.raises(DataError, match=r"80x64 pixels, outside max_pixels=100 \[\S+long\.mp4\]"):
        choose(reader, timeout_s, ImageLimits(max_pixels=100)).open(path)
    with choose(reader, timeout_s).open(path) as video:
        assert video.size == (64, 80)


def test_it_is_an_option_of_the_data(videos: Path, tmp_path: Path) -> None:
    root = layouts.lists(videos, tmp_path)
    options = {"image_size": 32, "normalization": "imagenet", "frames": 2, "rate": 1}
    data = VideoListData(str(root), "train.txt", limits=ImageLimits(max_pixels=100), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"outside max_pixels=100 \[.*\.mp4, sample \d+ of train, \S+train.txt:\d+\]"):
        list(data.train_dataloader())
