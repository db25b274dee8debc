"""`lightning-petl data verify`: bad files are found, each with its reason; good ones are left alone."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import media
import numpy as np
import pytest
from hanging import HangingReader
from PIL import Image

from lightning_petl import cli
from lightning_petl.data import manifest, verification
from lightning_petl.data.verification import Check, Report, verify
from lightning_petl.data.video import Decoding, choose
from lightning_petl.data.video.decoding import READERS
from lightning_petl.data.video.decord_reader import DecordReader
from lightning_petl.data.video.pyav_reader import PyAVReader
from lightning_petl.errors import DataError

HANGING = Decoding((f"{HangingReader.__module__}:{HangingReader.__name__}",))


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8))


def tree(videos: Path, root: Path) -> Path:
    """Five good files, two folders deep, and one of another kind."""
    (root / "a" / "b").mkdir(parents=True)
    for kind in ("long.mp4", "vp9.webm", "plain.avi"):
        shutil.copy(videos / kind, root / "a" / kind)
    noise(0).save(root / "a" / "b" / "x.png")
    noise(1).save(root / "y.jpg", quality=90)
    (root / "labels.json").write_text("{}")
    return root


def spoil(root: Path) -> dict[str, str]:
    """Adds bad files; their names below the root with what is said of them."""
    (root / "a" / "empty.mp4").write_bytes(b"")
    (root / "a" / "text.webm").write_text("404 not found")
    (root / "cut.mp4").write_bytes((root / "a" / "long.mp4").read_bytes()[:-300])
    media.flipped(root / "a" / "long.mp4", root / "flipped.mp4", 16)
    media.write(root / "appended.mp4", 100, extra=[media.END_OF_SEQUENCE] * 40)
    media.sound(root / "sound.mp4")
    (root / "cut.png").write_bytes((root / "a" / "b" / "x.png").read_bytes()[:200])
    (root / "gif.jpg").write_bytes(b"GIF89a")
    return {
        "a/empty.mp4": "is empty",
        "a/text.webm": "no MP4, Matroska, WebM or AVI video",
        "cut.mp4": "is cut off",
        "flipped.mp4": "damaged",
        "appended.mp4": "counts 140 frames, and 100 can be decoded",
        "sound.mp4": "no video stream",
        "cut.png": "cannot be decoded",
        "gif.jpg": "is no JPEG, PNG, WEBP or BMP image",
    }


def run(*words: object) -> int:
    return cli.run(["data", "verify", *map(str, words)])


def test_a_good_tree(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(videos, tmp_path / "data")
    assert run(root, "--workers", 2, "--random-access") == 0
    printed = capsys.readouterr()
    assert printed.out == "5 files, 0 bad, 182 images and frames decoded\n"
    assert printed.err == ""


def test_bad_files_are_found_with_their_reasons(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(videos, tmp_path / "data")
    expected = spoil(root)
    assert run(root, "--workers", 2) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    found = dict(line.removeprefix(f"{root}/").split(": ", 1) for line in lines)
    assert found.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in found[name], name
    assert summary.startswith("13 files, 8 bad, 182 images and frames")


def test_one_file_and_lists(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(videos, tmp_path / "data")
    assert run(root / "a" / "long.mp4", "--workers", 1) == 0
    (tmp_path / "list.txt").write_text("a/long.mp4 0\na/gone.mp4 1\ny.jpg 1\na/long.mp4 1\n")
    assert run(tmp_path / "list.txt", "--root", root, "--workers", 1) == 1
    out = capsys.readouterr().out
    assert f"{root}/a/gone.mp4: the file does not exist" in out
    assert "3 files, 1 bad, 61 images" in out


def test_a_manifest_finds_what_changed(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, file = tree(videos, tmp_path / "data"), tmp_path / "manifest.json"
    assert run(root, "--workers", 1, "--manifest", file) == 0
    content = json.loads(file.read_text())
    assert content["files"]["a/long.mp4"]["frames"] == 60
    assert content["files"]["a/long.mp4"]["size"] == (root / "a" / "long.mp4").stat().st_size
    assert run(root, "--against", file, "--workers", 1) == 0
    assert run(root, "--against", file, "--quick") == 0

    capsys.readouterr()
    flip(root / "y.jpg")  # a byte of the pixels, under the same size and date: it decodes as before
    assert run(root, "--workers", 1) == 0
    assert run(root, "--against", file, "--quick") == 0
    capsys.readouterr()
    assert run(root, "--against", file, "--workers", 1) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{root}/y.jpg: the bytes of the file are not those of the manifest",
        "5 files, 1 bad",
    ]

    (root / "a" / "vp9.webm").unlink()
    shutil.copy(videos / "one.mp4", root / "new.mp4")
    (root / "a" / "plain.avi").write_bytes(b"RIFF")
    for more, changed in (((), "not those of the manifest"), (("--quick",), "has 4 bytes, and had")):
        assert run(root, "--against", file, "--workers", 1, *more) == 1
        out = capsys.readouterr().out
        assert f"{root}/a/vp9.webm: the file is missing" in out
        assert f"{root}/new.mp4: the file is not in the manifest" in out
        assert changed in out


def flip(path: Path) -> None:
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_manifest_holds_good_files_alone_and_is_not_written_over(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file = tree(videos, tmp_path / "data"), tmp_path / "manifest.json"
    (root / "bad.mp4").write_bytes(b"")
    assert run(root, "--workers", 1, "--manifest", file) == 1
    assert f"{file}: 5 good files" in capsys.readouterr().out
    assert "bad.mp4" not in json.loads(file.read_text())["files"]
    before = file.read_bytes()
    assert run(root, "--manifest", file) == 1
    assert "the manifest exists, and is not written over" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "cannot be read: No such file"),
        (["empty"], "there is no image and no video"),
        (["a", "--workers", "0"], "workers is 0 [--workers]"),
        (["a", "--timeout", "0"], "timeout is 0.0 [--timeout]"),
        (["a", "--reader", "ffmpeg"], "there is no video reader 'ffmpeg'"),
        (["a", "--quick"], "there is nothing to compare with [--quick]"),
        (["a", "--against", "a/x.png"], "the manifest does not read"),
        (["a", "--against", "a/x.png", "--manifest", "m"], "give one of the two"),
        (["a", "--wrkers", "2"], "did you mean workers?"),
    ],
)
def test_wrong_commands_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a").mkdir()
    noise(0).save(tmp_path / "a" / "x.png")
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_hangs_or_dies_is_ended_and_the_rest_is_checked(videos: Path, tmp_path: Path) -> None:
    names = ("crash.mp4", "good.mp4", "fine.mp4", "long.mp4")
    for name in names:
        shutil.copy(videos / "long.mp4", tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    start = time.monotonic()
    reports = {Path(report.path).name: report for report in verify(paths, Check(Hangs(HANGING.readers)), 2, 3.0)}
    assert reports.keys() == set(names)
    assert reports["crash.mp4"].fault == "the process that decoded the file ended by SIGSEGV"
    assert reports["long.mp4"].fault == "decoding made no progress for 3 seconds and was ended"
    for name in ("good.mp4", "fine.mp4"):
        assert (reports[name].fault, reports[name].frames) == ("", 60)
    assert time.monotonic() - start < 120


class Hangs(Decoding):
    """Opens with the reader that hangs and dies, which it does where frames are read by index."""

    def open(self, path: str) -> HangingReader:
        video = HangingReader(path)
        if path.endswith("long.mp4"):
            import ctypes

            ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock: no thread and no handler runs
        if path.endswith("crash.mp4"):
            video.frames([0])
        return video


def test_random_access_that_is_wrong_is_found(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(videos / "open.mp4")
    check = Check(Decoding((READERS["pyav"],)), random_access=True)
    media.rotated(videos / "open.mp4", tmp_path / "rotated.mp4", 90)
    for sound in (path, str(tmp_path / "rotated.mp4")):
        assert check(sound, lambda: None).fault == ""

    class Shifted(PyAVReader):
        """Seeks one frame too far now and then, as decord's own seeking does."""

        def _read(self, indices: list[int]) -> np.ndarray:
            return super()._read([index - (index % 5 == 4) for index in indices])

    monkeypatch.setattr("lightning_petl.data.video.pyav_reader.PyAVReader", Shifted)
    assert "is another when it is sought" in check(path, lambda: None).fault


@pytest.mark.parametrize("reader", [PyAVReader, DecordReader], ids=lambda reader: reader.name)
@pytest.mark.parametrize("name", media.GOOD)
def test_a_walk_gives_every_frame(videos: Path, name: str, reader: type[PyAVReader] | type[DecordReader]) -> None:
    with reader(str(videos / name)) as video:
        walked = list(video.walk())
        assert len(walked) == media.GOOD[name][0]
        assert np.array_equal(np.stack(walked), video.frames(range(len(video))))
    if not name.startswith("width_16"):  # too small to carry numbers
        assert media.numbers(walked) == list(range(len(walked)))


@pytest.mark.parametrize("reader", [PyAVReader, DecordReader], ids=lambda reader: reader.name)
def test_a_walk_through_a_trimmed_file(videos: Path, tmp_path: Path, reader: type[PyAVReader]) -> None:
    media.trimmed(videos / "short.mp4", tmp_path / "a.mp4", 5)
    with reader(str(tmp_path / "a.mp4")) as video:
        assert media.numbers(list(video.walk())) == list(range(5, 60))


def test_watched_files_can_be_walked(videos: Path) -> None:
    with choose("pyav", 60).open(str(videos / "long.mp4")) as video:
        assert media.numbers(list(video.walk())) == list(range(60))


def test_manifests_that_do_not_read(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"format": "other/1", "files": {}}', '{"format": "' + manifest.FORMAT + '"}'):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(DataError, match="the manifest does not read"):
            manifest.read(tmp_path / "m.json", tmp_path)
    with pytest.raises(DataError, match="No such file"):
        manifest.read(tmp_path / "none.json", tmp_path)


def test_reports_of_files_that_cannot_be_opened(tmp_path: Path) -> None:
    report = Check(choose("pyav"))(str(tmp_path / "gone.mp4"), lambda: None)
    assert report == Report(str(tmp_path / "gone.mp4"), "the file cannot be read: No such file or directory")
    assert list(verification.verify([], Check(choose("pyav")), 2, 1.0)) == []
