"""The choice of a reader; decoding in workers, and in a process that is killed when its time is over."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hanging import HangingReader
from media import END_OF_SEQUENCE, GOOD, flipped, numbers, write
from torch.utils.data import DataLoader, Dataset

from lightning_petl.data.video import Decoding, choose
from lightning_petl.data.video.decoding import READERS
from lightning_petl.data.video.watched import _Process
from lightning_petl.errors import ConfigError, DataError

HANGING = f"{HangingReader.__module__}:{HangingReader.__name__}"


def test_the_package_starts_without_torch() -> None:
    code = """
import sys
from lightning_petl.data.video import choose
import lightning_petl.data.video.decoder
choose()
loaded = {"torch", "decord", "av", "pytorch_lightning"} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "missing", "expected"),
    [
        ("auto", (), ("av", "decord")),
        ("auto", ("decord",), ("av",)),
        ("auto", ("av",), ("decord",)),
        ("decord", (), ("decord",)),
        ("pyav", (), ("av",)),
    ],
)
def test_choice(
    name: str, missing: tuple[str, ...], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, missing)
    chosen = choose(name, 3.0)
    record = chosen.record()
    assert [str(reader).split()[0] for reader in record["video_readers"]] == list(expected)  # type: ignore[attr-defined]
    assert all(str(reader).split()[1][0].isdigit() for reader in record["video_readers"])  # type: ignore[attr-defined]
    assert record["timeout_s"] == 3.0


def hide(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))


@pytest.mark.parametrize(("name", "missing"), [("auto", ("av", "decord")), ("decord", ("decord",)), ("pyav", ("av",))])
def test_missing_readers_are_named(name: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, missing)
    with pytest.raises(ConfigError, match=f"no video reader is installed, of {', '.join(missing)} .*data.reader"):
        choose(name)


def test_unknown_reader() -> None:
    with pytest.raises(ConfigError, match=r"no video reader 'ffmpeg' .*choose auto, pyav or decord"):
        choose("ffmpeg")


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_time_out_is_checked(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.timeout_s"):
        choose("auto", seconds)


def av1(path: Path) -> None:
    """A codec that decord's FFmpeg does not know."""
    write(path, 12, codec="libsvtav1", options={"crf": "20", "preset": "12", "svtav1-params": "logical-processors=1"})


def test_auto_reads_with_pyav_first(tmp_path: Path) -> None:
    av1(tmp_path / "a.mp4")
    with choose("auto").open(str(tmp_path / "a.mp4")) as video:
        assert video.name == "pyav"
        assert numbers(video.frames([7, 3])) == [7, 3]
    with pytest.raises(DataError, match=r"decord finds no video stream it can decode .*pip install"):
        choose("decord").open(str(tmp_path / "a.mp4"))


def test_a_later_reader_reads_what_the_first_does_not_support(tmp_path: Path) -> None:
    av1(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4", 12)
    decoding = Decoding((READERS["decord"], READERS["pyav"]))
    for name, reader in (("a.mp4", "pyav"), ("b.mp4", "decord")):
        with decoding.open(str(tmp_path / name)) as video:
            assert video.name == reader
    with pytest.raises(DataError, match="decord finds no video stream"):  # of the first, where none can
        Decoding((READERS["decord"],) * 2).open(str(tmp_path / "a.mp4"))


@pytest.mark.parametrize("first", ["pyav", "decord"])
def test_no_reader_gets_around_what_another_found_damaged(tmp_path: Path, first: str) -> None:
    write(tmp_path / "a.mp4", 100, extra=[END_OF_SEQUENCE] * 40)
    places = sorted(READERS, key=lambda name: name != first)
    decoding = Decoding(tuple(READERS[name] for name in places))
    if first == "pyav":  # which finds it when it opens the file
        with pytest.raises(DataError, match="counts 140 frames, and 100"):
            decoding.open(str(tmp_path / "a.mp4"))
        return
    with decoding.open(str(tmp_path / "a.mp4")) as video:
        assert video.name == first
        with pytest.raises(DataError, match="counts 140 frames, and 100"):
            video.frames([139])


def test_auto_refuses_what_decord_conceals(videos: Path, tmp_path: Path) -> None:
    # The reason for the order: where decord refuses the file, too, it may come first again.
    flipped(videos / "long.mp4", tmp_path / "a.mp4", 16)
    with choose("decord").open(str(tmp_path / "a.mp4")) as video:
        assert len(video.frames([30])) == 1
    with choose("auto").open(str(tmp_path / "a.mp4")) as video, pytest.raises(DataError, match=r"damaged|decoded"):
        video.frames([30])


@pytest.mark.parametrize("name", GOOD)
def test_watched_frames_are_the_same(videos: Path, name: str) -> None:
    path, count = str(videos / name), GOOD[name][0]
    asked = [count - 1, 0, count // 2]
    with choose("auto").open(path) as plain, choose("auto", 60).open(path) as watched:
        assert watched.fps == plain.fps
        assert watched.size == plain.size
        assert np.array_equal(watched.timestamps, plain.timestamps)
        assert torch.equal(watched.get(asked), plain.get(asked))


def test_one_process_serves_several_open_files(videos: Path) -> None:
    decoding = choose("pyav", 60)
    with decoding.open(str(videos / "long.mp4")) as one, decoding.open(str(videos / "vp9.webm")) as other:
        for index in (5, 50, 20):
            assert numbers(one.frames([index])) == numbers(other.frames([index])) == [index]
    assert len(decoders(parent=os.getpid())) == 1


def test_relative_paths_start_from_the_folder_of_now(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that decodes lives on when its owner goes to another folder."""
    decoding = choose("auto", timeout_s=60)
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        shutil.copy(videos / "long.mp4", folder / f"{folder.name}.mp4")
        monkeypatch.chdir(folder)
        with decoding.open(f"{folder.name}.mp4") as reader:
            assert numbers(reader.get(range(3))) == [0, 1, 2]


def test_watched_errors_name_the_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"no MP4.*a\.mp4"):
        choose("auto", 60).open(str(tmp_path / "a.mp4"))
    with choose("auto", 60).open(str(videos / "one.mp4")) as video, pytest.raises(DataError, match=r"one\.mp4"):
        video.frames([1])


class Frames(Dataset[torch.Tensor]):
    """One frame of each file; no reader in it."""

    def __init__(self, paths: list[str], decoding: Decoding) -> None:
        self.paths, self.decoding = paths, decoding

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.decoding.open(self.paths[index]) as video:
            return video.get([0, len(video) - 1, len(video) // 2])


@pytest.mark.parametrize("timeout_s", [None, 60.0], ids=["in the worker", "watched"])
@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(videos: Path, start: str, reader: str, timeout_s: float | None) -> None:
    names = ["long.mp4", "open.mp4", "vp9.webm", "plain.avi", "mpeg4.mp4", "irregular.mp4"]
    dataset = Frames([str(videos / name) for name in names] * 2, choose(reader, timeout_s))
    dataset[0]  # in the parent first: its handles and its process must not follow the workers
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    for frames in loader:
        assert numbers(frames.numpy()) == [0, 59, 30]


def test_a_data_set_travels_as_a_few_bytes(videos: Path) -> None:
    dataset = Frames([str(videos / "long.mp4")], choose("auto", 60))
    dataset[0]
    assert len(pickle.dumps(dataset)) < 1000
    assert pickle.loads(pickle.dumps(dataset.decoding)) == dataset.decoding


@pytest.fixture
def hanging(videos: Path, tmp_path: Path) -> Path:
    for name in ("hang.mp4", "crash.mp4", "good.mp4"):
        shutil.copy(videos / "long.mp4", tmp_path / name)
    return tmp_path


def test_a_decoder_that_hangs_is_ended(hanging: Path) -> None:
    decoding = Decoding((HANGING,), 1.0)
    with decoding.open(str(hanging / "hang.mp4")) as video:
        child, start = _Process._mine._child, time.monotonic()
        with pytest.raises(DataError, match=r"took over 1 seconds and was ended \[.*hang\.mp4\]"):
            video.frames([3])
        assert 1 <= time.monotonic() - start < 3
        assert child.returncode == -signal.SIGKILL
        with pytest.raises(DataError, match=r"hang\.mp4"):  # the file is gone with its process
            video.frames([3])
    with decoding.open(str(hanging / "good.mp4")) as video:  # the next is not affected
        assert numbers(video.frames([3])) == [3]


def test_a_decoder_that_dies_is_reported(hanging: Path) -> None:
    video = Decoding((HANGING,), 60.0).open(str(hanging / "crash.mp4"))
    with video, pytest.raises(DataError, match=r"ended by SIGSEGV \[.*crash\.mp4\]"):
        video.frames([3])


def test_a_reader_that_does_not_exist_is_reported(hanging: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="ended with code 1"):
        Decoding(("hanging:Missing",), 60.0).open(str(hanging / "good.mp4"))
    assert "Missing" in capfd.readouterr().err


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_hang_in_a_worker_names_the_file(hanging: Path, start: str) -> None:
    dataset = Reported([str(hanging / "good.mp4"), str(hanging / "hang.mp4")], Decoding((HANGING,), 1.0))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=start)
    good, hung = list(loader)
    assert good == "[0, 59, 30]"
    assert "took over 1 seconds" in hung
    assert "hang.mp4" in hung
    assert ended(1)


class Reported(Frames):
    """What became of each file, in words."""

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        try:
            return str(numbers(super().__getitem__(index).numpy()))
        except DataError as error:
            return str(error)


def decoders(parent: int | None = None) -> list[int]:
    """Live decoding processes: the children of one, or those of the hanging reader that are not this one's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0")
            state, owner = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
        except OSError:  # it has ended
            continue
        if b"lightning_petl.data.video.decoder" not in line or state == "Z":
            continue
        if int(owner) == parent or (parent is None and HANGING.encode() in line and int(owner) != os.getpid()):
            found.append(int(folder.name))
    return found


def ended(seconds: float) -> bool:
    """Whether no orphan of the hanging reader is left within some seconds."""
    deadline = time.monotonic() + seconds
    while decoders() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not decoders()


@pytest.mark.slow
def test_a_decoder_that_hangs_ends_though_its_owner_was_killed(hanging: Path) -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from lightning_petl.data.video import Decoding
video = Decoding(({HANGING!r},), 3.0).open({str(hanging / "hang.mp4")!r})
print("open", flush=True)
video.frames([0])
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"open\n"
    time.sleep(0.5)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert decoders()
    assert ended(15)


def test_an_idle_decoder_ends_with_its_owner(hanging: Path) -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from lightning_petl.data.video import Decoding
video = Decoding(({HANGING!r},), 60.0).open({str(hanging / "good.mp4")!r})
print("open", flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"open\n"
    assert decoders()
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert ended(5)
