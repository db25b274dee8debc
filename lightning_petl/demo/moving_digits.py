"""Handwritten digits that move: a small video data set whose classes are told by time alone, made on the spot.

A clip shows one digit on a torus (what leaves at the right comes in at the left), with a place, a size and a
brightness. One of the three runs at an even pace and the others stay: the digit moves right, left, down or up, it
appears or disappears, it grows or shrinks. That is the kind of question of Something-Something v2, and the layout of
the files is that data set's.

A frame picked at random says nothing about the class. Whatever the class, its digit is as likely each digit, anywhere,
of each size and of each brightness: what stays is drawn from the very values that what runs goes through. Two opposite
classes have the same frames in reverse order.

``lightning-petl data make moving-digits OUT`` writes the files; see `make`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_petl.cli.arguments import Parser
from lightning_petl.data.randomness import mixed
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.errors import ConfigError


class Kind(NamedTuple):
    """What happens in a clip: the attribute that runs, and which way."""

    template: str
    attribute: str
    direction: int


KINDS = (
    Kind("Moving [something] to the right", "x", 1),
    Kind("Moving [something] to the left", "x", -1),
    Kind("Moving [something] down", "y", 1),
    Kind("Moving [something] up", "y", -1),
    Kind("[Something] appearing", "brightness", 1),
    Kind("[Something] disappearing", "brightness", -1),
    Kind("[Something] growing", "size", 1),
    Kind("[Something] shrinking", "size", -1),
)
"""The classes; label ``i`` is ``KINDS[i]``."""

SIZES = 0.3, 0.7
"""Smallest and largest side of the digit's square, of the side of the frame."""

BRIGHTNESSES = 0.12, 1.0
"""Faintest and full brightness: a digit appears out of near black, for black would give the class away."""

SHIFTS = 0.4, 0.8
"""Shortest and longest way of a moving digit, of the side of the frame."""

_NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FILES = {"train": "train.json", "val": "validation.json", "test": "test.json"}
_H264 = {"crf": "12", "preset": "veryfast", "threads": "1"}


@dataclass(frozen=True)
class Plan:
    """A clip before it is drawn.

    Attributes:
        label: Index into `KINDS`.
        digit: Index of the image it shows.
        x: Centre of the digit in each frame, of the side of the frame, ``(frames,)`` in 0 to below 1.
        y: As ``x``, downwards.
        size: Side of the digit's square in each frame, of the side of the frame.
        brightness: Of the digit in each frame, 0 to 1.
    """

    label: int
    digit: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    size: NDArray[np.float64]
    brightness: NDArray[np.float64]


def plan(label: int, digits: NDArray[np.int64], frames: int, rng: np.random.Generator) -> Plan:
    """Draws a clip of a class.

    Args:
        label: Index into `KINDS`.
        digits: Indices of the images to choose from.
        frames: Length of the clip.
        rng: All of the choices.
    """
    kind = KINDS[label]
    sizes, brightnesses = np.geomspace(*SIZES, frames), np.geomspace(*BRIGHTNESSES, frames)
    # The same draws for every class, in the same order: what a class does not use it draws all the same.
    digit, (x, y) = int(rng.choice(digits)), rng.random(2)
    size, brightness = rng.choice(sizes), rng.choice(brightnesses)
    shift = rng.uniform(*SHIFTS) * np.linspace(0, 1, frames)
    still = {"x": x, "y": y, "size": size, "brightness": brightness}
    states = {name: np.full(frames, value) for name, value in still.items()}
    if kind.attribute in ("x", "y"):
        states[kind.attribute] = (still[kind.attribute] + kind.direction * shift) % 1
    else:
        states[kind.attribute] = (sizes if kind.attribute == "size" else brightnesses)[:: kind.direction]
    return Plan(label, digit, **states)


def draw(clip: Plan, images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Draws the frames of a clip.

    Args:
        clip: What to draw.
        images: ``(n, 8, 8)``, ink bright on black.
        side: Height and width of the frames.

    Returns:
        ``(frames, side, side)``, grey.
    """
    rows, columns = _hats(clip.y, clip.size, side), _hats(clip.x, clip.size, side)
    # Bilinear enlargement on a grid is one small matrix for the rows and one for the columns.
    frames = np.einsum("fik,kl,fjl->fij", rows, images[clip.digit].astype(np.float64), columns, optimize=True)
    drawn: NDArray[np.uint8] = np.rint(frames * clip.brightness[:, None, None]).astype(np.uint8)
    return drawn


def _hats(centre: NDArray[np.float64], size: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """How much each of 8 image pixels adds to each of ``side`` frame pixels, ``(frames, side, 8)``."""
    pixels = (np.arange(side) + 0.5) / side
    away = (pixels - centre[:, None] + 0.5) % 1 - 0.5  # the short way around the torus
    places = 8 * away[:, :, None] / size[:, None, None] + 3.5
    hats: NDArray[np.float64] = np.maximum(0, 1 - np.abs(places - np.arange(8)))
    return hats


def make(
    out: Path,
    train: int = 1200,
    val: int = 200,
    test: int = 200,
    size: int = 64,
    frames: int = 16,
    fps: int = 12,
    seed: int = 0,
) -> None:
    """Writes the data set: ``labels.json``, ``train.json``, ``validation.json``, ``test.json`` and ``videos/<id>.mp4``.

    The splits show different handwritten digits. Every class comes equally often, but for a remainder. The same
    arguments give the same clips; the same libraries, the same bytes. Unlike Something-Something's, the test list says
    what happens.

    Args:
        out: The folder to make; it appears when it is complete.
        train: Clips of the training split.
        val: Clips of the validation split.
        test: Clips of the test split.
        size: Height and width, even, 16 or more.
        frames: Frames of each clip, 2 or more.
        fps: Frames per second.
        seed: Of all choices but the split of the digits.

    Raises:
        ConfigError: The folder has files, an argument is out of its range, or PyAV or scikit-learn is missing.
    """
    _check(out, {"train": train, "val": val, "test": test}, size, frames, fps, seed)
    images, digits = load_digits(range(10))
    pools = split(digits, train_per_class=100, val_per_class=30)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        (folder / "videos").mkdir()
        _write_json(folder / "labels.json", {_plain(kind): str(label) for label, kind in enumerate(KINDS)})
        first = 1
        for part, (name, count) in enumerate({"train": train, "val": val, "test": test}.items()):
            entries = []
            for number, clip in enumerate(_plans(count, pools[name], frames, mixed(seed, part)), start=first):
                _write_video(folder / "videos" / f"{number}.mp4", draw(clip, images, size), fps)
                entries.append(_entry(number, KINDS[clip.label], _NUMERALS[digits[clip.digit]]))
            _write_json(folder / _FILES[name], entries)
            first += count
        folder.chmod(0o755)  # a temporary folder is its owner's alone
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _plans(count: int, digits: NDArray[np.int64], frames: int, seed: int) -> Iterator[Plan]:
    rng = np.random.default_rng(seed)
    for label in rng.permutation(np.arange(count) % len(KINDS)).tolist():
        yield plan(label, digits, frames, rng)


def _check(out: Path, counts: dict[str, int], size: int, frames: int, fps: int, seed: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", where="out", fix="give a folder that does not exist yet")
    ranges = {**{name: (count, 1) for name, count in counts.items()}, "size": (size, 16), "frames": (frames, 2)}
    for name, (value, least) in {**ranges, "fps": (fps, 1), "seed": (seed, 0)}.items():
        if value < least:
            raise ConfigError(f"{name} is {value}", where=name, fix=f"give {least} or more")
    if size % 2:
        raise ConfigError(f"size is {size}", where="size", fix="give an even number: H.264 halves the colour planes")


def _plain(kind: Kind) -> str:
    return kind.template.replace("[", "").replace("]", "")


def _entry(number: int, kind: Kind, numeral: str) -> dict[str, object]:
    thing = f"{'an' if numeral == 'eight' else 'a'} {numeral}"
    text = kind.template.replace("[something]", thing).replace("[Something]", thing)
    return {
        "id": str(number),
        "label": text[0].lower() + text[1:],
        "template": kind.template,
        "placeholders": [thing],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_video(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    av = _av()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps), options=_H264)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        file.mux(stream.encode(None))


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "videos are written with PyAV, which is not installed", fix="pip install 'lightning-petl[video]'"
        ) from error
    return av


def main(arguments: list[str] | None = None, prog: str = "moving_digits") -> None:
    """The command: ``moving_digits OUT [--train N] [--val N] [--test N] [--size N] [--frames N] [--fps N] [--seed N]``.

    Args:
        arguments: In place of the command line's.
        prog: What the command is called.
    """
    parser = Parser(prog, description=__doc__, formatter_class=_Formatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    defaults = {"train": 1200, "val": 200, "test": 200, "size": 64, "frames": 16, "fps": 12, "seed": 0}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="see make()")
    options = vars(parser.parse_args(arguments))
    make(**options)
    print(f"{sum(options[name] for name in _FILES)} clips of {len(KINDS)} classes in {options['out']}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the module's text as it is written, and the defaults."""


if __name__ == "__main__":
    main()
