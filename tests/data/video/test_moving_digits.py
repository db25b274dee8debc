"""The moving digits: real files, right labels, and no class told by a single frame."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from lightning_petl.data.video import choose
from lightning_petl.demo import moving_digits
from lightning_petl.demo.digits import load_digits
from lightning_petl.demo.moving_digits import KINDS, Plan, draw, make, plan
from lightning_petl.errors import ConfigError

LABELS = range(len(KINDS))
ATTRIBUTES = ("x", "y", "size", "brightness")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make(folder, train=24, val=8, test=11, seed=3)
    return folder


def entries(folder: Path, split: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / f"{split}.json").read_text())
    return found


def test_layout_is_that_of_something_something(digits: Path) -> None:
    labels = json.loads((digits / "labels.json").read_text())
    assert labels["Moving something to the right"] == "0"
    assert sorted(labels.values()) == [str(label) for label in LABELS]
    every = [entry for split in ("train", "validation", "test") for entry in entries(digits, split)]
    assert [entry["id"] for entry in every] == [str(number) for number in range(1, 44)]
    assert {path.name for path in (digits / "videos").iterdir()} == {f"{number}.mp4" for number in range(1, 44)}
    assert {path.name for path in digits.iterdir()} == {
        "labels.json",
        "train.json",
        "validation.json",
        "test.json",
        "videos",
    }
    for entry in every:
        template, (thing,) = str(entry["template"]), entry["placeholders"]  # type: ignore[misc]
        assert template.replace("[", "").replace("]", "") in labels
        assert entry["label"] == template.lower().replace("[something]", thing)
        assert thing in {"an eight", *(f"a {numeral}" for numeral in moving_digits._NUMERALS)} - {"a eight"}


def test_classes_come_equally_often(digits: Path) -> None:
    for split, counts in (("train", [3] * 8), ("validation", [1] * 8), ("test", [1] * 5 + [2] * 3)):
        assert sorted(Counter(entry["template"] for entry in entries(digits, split)).values()) == counts
    order = [entry["template"] for entry in entries(digits, "train")]
    assert order != sorted(order, key=[kind.template for kind in KINDS].index)


def test_same_arguments_same_bytes(digits: Path, tmp_path: Path) -> None:
    make(tmp_path / "again", train=24, val=8, test=11, seed=3)
    make(tmp_path / "other", train=24, val=8, test=11, seed=4)
    names = sorted(path.relative_to(digits) for path in digits.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (digits / name).read_bytes()
    assert (tmp_path / "other" / "train.json").read_bytes() != (digits / "train.json").read_bytes()


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_files_hold_what_was_drawn(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    keep = moving_digits.draw
    monkeypatch.setattr(moving_digits, "draw", lambda *a: drawn.append(keep(*a)) or drawn[-1])  # type: ignore[func-returns-value]
    make(tmp_path / "a", train=8, val=1, test=1, size=48, frames=10, fps=8)
    for number, frames in enumerate(drawn, start=1):
        with choose(reader).open(str(tmp_path / "a" / "videos" / f"{number}.mp4")) as video:
            assert (len(video), video.size, video.fps) == (10, (48, 48), 8)
            read = video.frames(range(10))
        assert np.abs(read.astype(int) - frames[..., None]).mean() < 2
        assert np.ptp(read.astype(int), axis=-1).max() <= 2  # grey


def test_splits_show_different_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr(
        moving_digits, "draw", lambda clip, *_: shown.append(clip.digit) or np.zeros((2, 16, 16), np.uint8)
    )
    make(tmp_path / "a", train=300, val=100, test=100)
    train, val, test = set(shown[:300]), set(shown[300:400]), set(shown[400:])
    assert not train & val
    assert not train & test
    assert not val & test
    assert min(map(len, (train, val, test))) > 60
    _, labels = load_digits(range(10))
    assert set(labels[sorted(train)]) == set(range(10))


def plans(label: int, count: int, frames: int = 16) -> list[Plan]:
    rng = np.random.default_rng((label, count))
    return [plan(label, np.arange(1797), frames, rng) for _ in range(count)]


@pytest.mark.parametrize(("one", "other"), [(4, 5), (6, 7)])
def test_opposites_show_the_same_frames_in_reverse(one: int, other: int) -> None:
    images, _ = load_digits(range(10))
    forwards, backwards = (plan(label, np.arange(1797), 16, np.random.default_rng(0)) for label in (one, other))
    assert np.array_equal(draw(forwards, images, 64), draw(backwards, images, 64)[::-1])


@pytest.mark.parametrize(("one", "other", "attribute"), [(0, 1, "x"), (2, 3, "y")])
def test_opposite_moves_mirror_each_other(one: int, other: int, attribute: str) -> None:
    forwards, backwards = (plan(label, np.arange(1797), 16, np.random.default_rng(0)) for label in (one, other))
    start = getattr(forwards, attribute)[0]
    there, back = ((getattr(clip, attribute) - start + 0.5) % 1 - 0.5 for clip in (forwards, backwards))
    # Up to half a turn the way is told; the same places, on the other side.
    told = np.abs(there) < 0.49
    np.testing.assert_allclose(there[told], -back[told], atol=1e-12)
    assert (there[1:6] > 0).all()


def test_one_attribute_runs_and_the_others_stay() -> None:
    for label in LABELS:
        for clip in plans(label, 20):
            moving = [name for name in ATTRIBUTES if np.ptp(getattr(clip, name)) > 0]
            assert moving == [KINDS[label].attribute]


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """What clips of each class go through, ``(classes, clips, attributes, frames)``."""
    return np.array([[[getattr(clip, name) for name in ATTRIBUTES] for clip in plans(label, 600)] for label in LABELS])


@pytest.mark.parametrize("frame", ["random", 0, 15], ids=str)
def test_a_frame_shows_the_digit_anywhere_in_every_class(states: np.ndarray, frame: int | str) -> None:
    for clips in states:
        for places in picked(clips, frame)[:, :2].T:
            shares = np.histogram(places, 5, range=(0, 1))[0] / len(places)
            np.testing.assert_allclose(shares, 0.2, atol=0.08)  # five standard deviations


def test_a_frame_at_random_has_any_size_and_brightness_in_every_class(states: np.ndarray) -> None:
    for clips in states:
        for attribute, (least, most) in ((2, moving_digits.SIZES), (3, moving_digits.BRIGHTNESSES)):
            values = picked(clips, "random")[:, attribute]
            levels = np.round(15 * np.log(values / least) / np.log(most / least), 6)  # 0 to 15, equally often
            assert set(levels) <= set(range(16))
            shares = np.histogram(levels, 4, range=(0, 16))[0] / len(levels)
            np.testing.assert_allclose(shares, 0.25, atol=0.09)


def picked(clips: np.ndarray, frame: int | str) -> np.ndarray:
    """One frame of each clip, ``(clips, attributes)``."""
    if isinstance(frame, int):
        return clips[:, :, frame]
    return clips[np.arange(len(clips)), :, np.random.default_rng(0).integers(16, size=len(clips))]


def test_one_frame_does_not_tell_the_class_and_two_do(states: np.ndarray) -> None:
    labels = np.repeat(LABELS, states.shape[1])
    every = states.reshape(-1, *states.shape[2:])
    one = picked(every, "random")
    steps = (every[:, :, 5] - every[:, :, 4] + 0.5) % 1 - 0.5  # from one frame to the next, on the torus
    chosen = np.random.default_rng(1).random(len(every)) < 0.5

    def accuracy(features: np.ndarray) -> float:
        scaled = features / features.std(axis=0)
        nearest = KNeighborsClassifier(15).fit(scaled[chosen], labels[chosen])
        return float(nearest.score(scaled[~chosen], labels[~chosen]))

    assert accuracy(one) < 0.125 + 0.03  # four standard deviations
    assert accuracy(steps) > 0.99


def test_labels_are_what_is_seen() -> None:
    images, _ = load_digits(range(10))
    for label, kind in enumerate(KINDS):
        for clip in plans(label, 10, frames=8):
            frames = draw(clip, images, 64).astype(float)
            if kind.attribute == "brightness":
                seen = frames.max(axis=(1, 2))
            elif kind.attribute == "size":
                seen = (frames > frames.max(axis=(1, 2), keepdims=True) / 2).sum(axis=(1, 2)).astype(float)
            else:
                seen = unwrapped(frames.sum(axis=1 if kind.attribute == "x" else 2))
            assert (np.diff(seen) * kind.direction > 0).all(), kind


def unwrapped(profiles: np.ndarray) -> np.ndarray:
    """The way of a profile ``(frames, side)`` around the torus, by the angle of its first harmonic."""
    return np.unwrap(-np.angle(np.fft.fft(profiles, axis=1)[:, 1]))


def test_existing_files_are_left_alone(digits: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        make(digits)
    (digits.parent / "file").touch()
    with pytest.raises(ConfigError, match="exists"):
        make(digits.parent / "file")


@pytest.mark.parametrize(
    ("option", "value"), [("train", 0), ("size", 14), ("size", 33), ("frames", 1), ("fps", 0), ("seed", -1)]
)
def test_arguments_are_checked(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{option} is {value}"):
        make(tmp_path / "a", **{option: value})
    assert not list(tmp_path.iterdir())


def test_missing_pyav_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-petl\[video\]'"):
        make(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "digits"
    moving_digits.main([str(out), "--train", "2", "--val", "1", "--test", "1", "--frames", "4"])
    assert "4 clips of 8 classes" in capsys.readouterr().out
    assert len(list((out / "videos").iterdir())) == 4
    assert out.stat().st_mode & 0o777 == 0o755
