"""Files in fault: an error that names the file, on one line; never another frame."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import media
import pytest
from media import END_OF_SEQUENCE, FILLER, numbers

from lightning_petl.data.video.container import inspect
from lightning_petl.data.video.decord_reader import DecordReader
from lightning_petl.data.video.pyav_reader import PyAVReader
from lightning_petl.errors import DataError

readers = pytest.mark.parametrize("reader", [DecordReader, PyAVReader], ids=lambda reader: reader.name)
Reader = type[DecordReader] | type[PyAVReader]


def refused(reader: Reader, path: Path, message: str, indices: list[int] | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught, reader(str(path)) as video:
        video.frames(range(len(video)) if indices is None else indices)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.mp4": (lambda _: b"", "is empty"),
    "text.mp4": (lambda _: b"no video at all\n" * 9, "no MP4, Matroska, WebM or AVI"),
    "tiny.mp4": (lambda _: b"\0\0", "no MP4, Matroska, WebM or AVI"),
    # FFmpeg would open these by content, and follow where they lead.
    "playlist.mp4": (lambda _: b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n", "no MP4, Matroska, WebM or AVI"),
    "concat.mp4": (lambda _: b"ffconcat version 1.0\nfile /etc/hostname\n", "no MP4, Matroska, WebM or AVI"),
    "picture.mp4": (lambda _: b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "no MP4, Matroska, WebM or AVI"),
    "sound.avi": (lambda _: b"RIFF\x04\0\0\0WAVE", "no MP4, Matroska, WebM or AVI"),
    "unfinished.mp4": (
        lambda d: (d / "long.mp4").read_bytes().replace(b"moov", b"free"),
        r"no index \(moov\)",
    ),
    "half.mp4": (lambda d: half(d / "long.mp4"), "cut off"),
    "half_front.mp4": (lambda d: half(d / "front.mp4"), "cut off"),
    "last_byte.mp4": (lambda d: (d / "front.mp4").read_bytes()[:-1], "cut off"),
    "half.webm": (lambda d: half(d / "vp9.webm"), "cut off"),
    "half.mkv": (lambda d: half(d / "vp8.mkv"), "cut off"),
    "half.avi": (lambda d: half(d / "plain.avi"), "cut off"),
    "head.webm": (lambda d: (d / "vp9.webm").read_bytes()[:40], "cannot be decoded|no video stream"),
}


def half(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: len(data) * 2 // 3]


@pytest.fixture(scope="module")
def sources(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`videos`, and an MP4 with its index in front, so that half of it opens."""
    folder = tmp_path_factory.mktemp("sources")
    for path in videos.iterdir():
        (folder / path.name).symlink_to(path)
    media.write(folder / "front.mp4", 100, container={"movflags": "faststart"})
    return folder


@readers
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(sources: Path, tmp_path: Path, reader: Reader, name: str) -> None:
    make, message = BROKEN[name]
    (tmp_path / name).write_bytes(make(sources))
    refused(reader, tmp_path / name, message)


@readers
def test_missing_file_and_folder_are_told_apart(tmp_path: Path, reader: Reader) -> None:
    refused(reader, tmp_path / "gone.mp4", "does not exist")
    refused(reader, tmp_path, "cannot be read: Is a directory")


@readers
def test_file_with_sound_only(tmp_path: Path, reader: Reader) -> None:
    media.sound(tmp_path / "a.mp4")
    refused(reader, tmp_path / "a.mp4", "no video stream")


@readers
def test_overwritten_middle(sources: Path, tmp_path: Path, reader: Reader) -> None:
    data = bytearray((sources / "front.mp4").read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    (tmp_path / "a.mp4").write_bytes(data)
    refused(reader, tmp_path / "a.mp4", "cannot be decoded|damaged")


@pytest.mark.parametrize("asked", [[20], [30], [20, 59]], ids=str)
def test_damage_inside_a_frame_counts_in_those_behind_it(videos: Path, tmp_path: Path, asked: list[int]) -> None:
    # Decord cannot tell: FFmpeg repairs what it can, and decord does not ask how.
    media.flipped(videos / "long.mp4", tmp_path / "a.mp4", 16)
    refused(PyAVReader, tmp_path / "a.mp4", "damaged|cannot be decoded", asked)


def test_frames_before_damage_are_read(videos: Path, tmp_path: Path) -> None:
    media.flipped(videos / "short.mp4", tmp_path / "a.mp4", 40)
    with PyAVReader(str(tmp_path / "a.mp4")) as video:
        assert numbers(video.frames([0, 13, 23])) == [0, 13, 23]


OVERSTATED: dict[str, Callable[[Path], None]] = {
    "appended": lambda p: media.write(p, 100, extra=[END_OF_SEQUENCE] * 40),
    "appended_without_b_frames": lambda p: media.write(
        p, 100, options={**media.X264, "bf": "0"}, extra=[END_OF_SEQUENCE] * 40
    ),
    "patched": media.hollowed,
}


@readers
@pytest.mark.parametrize("kind", OVERSTATED)
@pytest.mark.parametrize("asked", [[100], [105], [139], [0, 50, 99, 139], list(range(0, 140, 9))], ids=str)
def test_frames_that_are_only_claimed(tmp_path: Path, reader: Reader, kind: str, asked: list[int]) -> None:
    path = tmp_path / "a.mp4"
    OVERSTATED[kind](path)
    refused(reader, path, "counts 140 frames, and 100 can be decoded", asked)


@pytest.mark.parametrize("kind", OVERSTATED)
def test_frames_that_are_only_claimed_are_found_by_pyav_before_one_is_asked_for(tmp_path: Path, kind: str) -> None:
    """Frames are chosen by how many there are, so others would be taken, all of them held. Decord cannot tell."""
    path = tmp_path / "a.mp4"
    OVERSTATED[kind](path)
    with pytest.raises(DataError, match="counts 140 frames, and 100 can be decoded"):
        PyAVReader(str(path))
    with DecordReader(str(path)) as video:
        assert numbers(video.frames([0, 33, 99])) == [0, 33, 99]


def scribbled(path: Path, target: Path, data: bytes, part: float = 0.5) -> None:
    """A copy with other bytes from some part of it on."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * part)
    content[start : start + len(data)] = data
    target.write_bytes(content)


@pytest.mark.parametrize("name", ["vp9.webm", "vp8.mkv"])
@pytest.mark.parametrize("data", [bytes(400), random.Random(0).randbytes(400)], ids=["zeros", "noise"])
def test_frames_that_a_damaged_container_loses(videos: Path, tmp_path: Path, name: str, data: bytes) -> None:
    """FFmpeg goes on behind the damage, with fewer frames and a message that PyAV keeps to itself."""
    scribbled(videos / name, tmp_path / name, data)
    refused(PyAVReader, tmp_path / name, "the file is damaged, and frames are lost")


@readers
def test_empty_packets_are_no_frames(tmp_path: Path, reader: Reader) -> None:
    media.write(tmp_path / "a.mp4", 100, extra=[FILLER] * 40)
    refused(reader, tmp_path / "a.mp4", "counts 140 frames, and 100 can be decoded|cannot be decoded", [139])


def test_decord_alone_repeats_the_last_frame(tmp_path: Path) -> None:
    # What the reader guards against; where this fails, decord has been mended.
    import decord

    media.write(tmp_path / "a.mp4", 100, extra=[END_OF_SEQUENCE] * 40)
    video = decord.VideoReader(str(tmp_path / "a.mp4"), num_threads=1)
    assert numbers(video.get_batch([99, 120, 139]).asnumpy()) == [99, 99, 99]


def test_containers_are_told_by_content(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes((videos / "long.mp4").read_bytes())
    found = {name: inspect(str(videos / name)) for name in ("long.mp4", "vp9.webm", "vp8.mkv", "plain.avi")}
    assert found == {"long.mp4": "mp4", "vp9.webm": "matroska", "vp8.mkv": "matroska", "plain.avi": "avi"}
    assert inspect(str(tmp_path / "a.avi")) == "mp4"


def box(kind: bytes, payload: bytes, wide: bool = False, size: int | None = None) -> bytes:
    length = len(payload) + (16 if wide else 8) if size is None else size
    return struct.pack(">I", 1 if wide else length) + kind + (struct.pack(">Q", length) if wide else b"") + payload


@pytest.mark.parametrize(
    ("data", "accepted"),
    [
        (box(b"ftyp", b"isom") + box(b"moov", b"") + box(b"mdat", b"12345678", wide=True), True),
        (box(b"ftyp", b"isom") + box(b"moov", b"") + box(b"mdat", b"1234567", wide=True)[:-1], False),
        (box(b"ftyp", b"isom") + box(b"moov", b"") + box(b"mdat", b"to the end", size=0), True),
        (box(b"ftyp", b"isom") + box(b"moov", b"") + bytes(16), True),  # padding
        (box(b"moov", b"") + box(b"mdat", b"12", size=1 << 31), False),
    ],
    ids=["64 bits", "64 bits, cut", "open", "padded", "claims 2 GiB"],
)
def test_lengths_of_mp4_boxes(tmp_path: Path, data: bytes, accepted: bool) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    if accepted:
        assert inspect(str(tmp_path / "a.mp4")) == "mp4"
    else:
        with pytest.raises(DataError, match="cut off"):
            inspect(str(tmp_path / "a.mp4"))


EBML = bytes.fromhex("1a45dfa3 84 42868101")
SEGMENT = bytes.fromhex("18538067")


@pytest.mark.parametrize(
    ("data", "accepted"),
    [
        (EBML + SEGMENT + b"\x84" + b"1234", True),
        (EBML + SEGMENT + b"\x85" + b"1234", False),
        (EBML + SEGMENT + b"\x01\0\0\0\0\0\0\x05" + b"1234", False),
        (EBML + bytes.fromhex("ec 82 0000") + SEGMENT + b"\x85" + b"1234", False),  # behind a void element
        (EBML + SEGMENT + b"\x01" + b"\xff" * 7 + b"1234", True),  # a live stream, of unknown length
        (EBML + SEGMENT + b"\xff" + b"1234", True),
    ],
    ids=["whole", "cut", "cut, 8 bytes", "behind void", "unknown, 8 bytes", "unknown"],
)
def test_lengths_of_matroska_segments(tmp_path: Path, data: bytes, accepted: bool) -> None:
    (tmp_path / "a.mkv").write_bytes(data)
    if accepted:
        assert inspect(str(tmp_path / "a.mkv")) == "matroska"
    else:
        with pytest.raises(DataError, match="cut off"):
            inspect(str(tmp_path / "a.mkv"))


def test_avi_of_several_chunks_and_of_unknown_length(tmp_path: Path) -> None:
    first = b"RIFF\x08\0\0\0AVI 1234"
    path = tmp_path / "a.avi"
    for data, accepted in (
        (first + b"RIFF\x08\0\0\0AVIX1234", True),
        (first + b"RIFF\x09\0\0\0AVIX1234", False),
        (b"RIFF\0\0\0\0AVI 1234", True),
    ):
        path.write_bytes(data)
        if accepted:
            assert inspect(str(path)) == "avi"
        else:
            with pytest.raises(DataError, match="cut off"):
                inspect(str(path))
