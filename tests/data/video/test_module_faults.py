"""Files in fault, through a data module and its workers: the file is named, and no other takes its place."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import media
import pytest
from hanging import HangingReader

from lightning_petl.data import VideoListData
from lightning_petl.data.loading import Loader
from lightning_petl.data.video import Decoding
from lightning_petl.errors import DataError

HANGING = Decoding((f"{HangingReader.__module__}:{HangingReader.__name__}",), 1.0)
CLAIMED = "the container counts 140 frames, and 100 can be decoded"


def truncated(videos: Path, path: Path) -> None:
    media.write(path, 60, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-2000])


def without_index(videos: Path, path: Path) -> None:
    path.write_bytes((videos / "long.mp4").read_bytes().replace(b"moov", b"free"))


def corrupt_middle(videos: Path, path: Path) -> None:
    media.flipped(videos / "long.mp4", path, 8)


def over_reported(videos: Path, path: Path) -> None:
    media.hollowed(path)


FAULTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (truncated, "is cut off"),
    "without index": (without_index, r"no index \(moov\)"),
    "empty": (lambda _, path: path.write_bytes(b""), "is empty"),
    "text": (lambda _, path: path.write_text("404 not found"), "no MP4, Matroska, WebM or AVI"),
    "corrupt middle": (corrupt_middle, "damaged|cannot be decoded"),
    "sound only": (lambda _, path: media.sound(path), "no video stream"),
    "over-reported": (over_reported, CLAIMED),
}


def data_of(videos: Path, root: Path, split: str, **options: object) -> VideoListData:
    """One video in fault, the third of five, in one split; the others are in order."""
    for name in ("train", "val", "test"):
        lines = []
        for index in range(5):
            shutil.copy(videos / "long.mp4", root / f"{name}{index}.mp4")
            lines.append(f"{name}{index}.mp4 {index % 2}\n")
        (root / f"{name}.txt").write_text("\n" + "".join(lines))
    given = {"frames": 60, "rate": 1, "image_size": 32, "normalization": "imagenet", "batch_size": 1, **options}
    return VideoListData(str(root), "train.txt", "val.txt", "test.txt", **given)  # type: ignore[arg-type]


def loaded(data: VideoListData, split: str, start: str | None = None) -> tuple[DataError, list[int]]:
    """The error of an epoch, and the labels that came before it."""
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    assert isinstance(loader, Loader)
    loader.multiprocessing_context = start
    before: list[int] = []
    with pytest.raises(DataError) as caught:
        before.extend(int(labels) for _, labels in loader)
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)
    return caught.value, before


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_sample_and_line(videos: Path, tmp_path: Path, fault: str, split: str) -> None:
    frames = 140 if split == "train" else 60  # a random clip of fewer may lie where all is well
    data = data_of(videos, tmp_path, split, temporal_views=4, views_in_validation=True, frames=frames)
    bad = tmp_path / f"{split}2.mp4"
    make, message = FAULTS[fault]
    make(videos, bad)
    error, before = loaded(data, split)
    assert error.where == f"{bad}, sample 2 of {split}, {tmp_path}/{split}.txt:4"
    assert re.search(message, error.what)
    if split != "train":
        assert before == [0, 1]  # those in front of it, and nothing in its place


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("timeout_s", [None, 60.0], ids=["in the worker", "watched"])
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_faults_in_workers(videos: Path, tmp_path: Path, start: str, timeout_s: float | None, reader: str) -> None:
    data = data_of(videos, tmp_path, "test", num_workers=2, timeout_s=timeout_s, reader=reader, temporal_views=4)
    media.hollowed(tmp_path / "test2.mp4")
    error, before = loaded(data, "test", start)
    assert error.what == CLAIMED
    assert error.where == f"{tmp_path}/test2.mp4, sample 2 of test, {tmp_path}/test.txt:4"
    assert before == [0, 1]


def test_a_file_that_goes_after_the_start_is_missed_by_name(videos: Path, tmp_path: Path) -> None:
    data = data_of(videos, tmp_path, "val")
    (tmp_path / "val2.mp4").unlink()
    error, before = loaded(data, "val")
    assert error.what == "the video file does not exist"
    assert "val2.mp4, sample 2 of val" in error.where
    assert before == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoder_that_hangs_is_ended_and_its_file_named(
    videos: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_petl.data.video.module.choose", lambda *_: HANGING)
    shutil.copy(videos / "long.mp4", tmp_path / "hang.mp4")
    shutil.copy(videos / "long.mp4", tmp_path / "good.mp4")
    (tmp_path / "train.txt").write_text("good.mp4 0\n")
    shutil.copy(videos / "long.mp4", tmp_path / "fine.mp4")
    (tmp_path / "test.txt").write_text("fine.mp4 0\nhang.mp4 0\n")
    data = VideoListData(
        str(tmp_path), "train.txt", test_list="test.txt", image_size=32, normalization="imagenet", batch_size=1,
        num_workers=workers,
    )  # fmt: skip
    error, before = loaded(data, "test")
    assert error.what == "decoding took over 1 seconds and was ended"
    assert "hang.mp4, sample 1 of test" in error.where
    assert before == [0]
    assert len(list(data.train_dataloader())) == 1  # and the next file is read
