"""Scenes of handwritten digits over photographs, with exact masks: a small segmentation data set, made on the spot.

A scene is a part of a photograph with a paper note on it, sometimes two, each with a handwritten digit. A note is of
any place, size, angle and colour. The mask says for each pixel which digit's note it shows, or that it shows the
photograph; it follows from the plan of the scene, not from the picture, and so is exact. The layout of the files is
ADE20K's.

The digits are scikit-learn's, the photographs its two samples. What is held out: the validation and the test split show
other handwritten digits than training (see `digits.split`), over other parts of the photographs: the left 60 percent of
each photograph is training's, the next 20 percent validation's, the last 20 percent the test split's. No pixel of a
photograph is in two splits, but what neighbouring parts show is alike.

``lightning-petl data make digit-scenes OUT`` writes the files; see `make`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_petl.cli.arguments import Parser
from lightning_petl.data.randomness import mixed
from lightning_petl.demo.digits import load_digits, split
from lightning_petl.errors import ConfigError

PARTS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
"""Which columns of a photograph a split shows, of its width."""

FOLDERS = {"train": "training", "val": "validation", "test": "test"}
"""The names of the splits in the files' layout."""

CLASS_FILE = "classes.txt"

NOTES = 2
"""Most notes in a scene; one at least."""

SIZES = 0.4375, 0.625
"""Smallest and largest side of a note, of the side of the scene: 28 and 40 of 64 pixels."""

ANGLE = 10.0
"""Largest turn of a note to either side, degrees."""

PAPER, INK = (170.0, 255.0), (0.0, 80.0)
"""Range of each channel of the paper and of the ink."""

SLANT, STRETCH = 0.25, 0.2
"""Largest change of the handwriting where `plan` is asked to vary it: shear, and logarithm of the width's factor."""

APART = 0.85
"""Least distance of two notes' centres, in rows or in columns, of half the sum of their sides: edges may overlap."""

_TRIES = 20


class Note(NamedTuple):
    """A note before it is drawn.

    Attributes:
        digit: Index of the image it shows.
        y: Centre, pixels from above.
        x: Centre, pixels from the left.
        size: Side, pixels.
        angle: Turn, radians.
        paper: Red, green and blue, 0 to 255.
        ink: As ``paper``.
        slant: Shear of the handwriting; 0 leaves it as it is.
        stretch: Factor of its width, and divisor of its height.
    """

    digit: int
    y: float
    x: float
    size: float
    angle: float
    paper: NDArray[np.float64]
    ink: NDArray[np.float64]
    slant: float = 0.0
    stretch: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A scene before it is drawn.

    Attributes:
        photo: Index of the photograph.
        top: First row of the square part that the scene shows.
        left: First column of it.
        side: Its side, pixels of the photograph.
        notes: What lies on it, a later one over an earlier one where they overlap.
    """

    photo: int
    top: int
    left: int
    side: int
    notes: tuple[Note, ...]


def load_photos(name: str) -> list[NDArray[np.uint8]]:
    """Reads the part of each photograph that a split shows, ``(h, w, 3)``; both are 427 pixels high.

    They are china.jpg and flower.jpg of scikit-learn, both CC BY 2.0, of 640x427 pixels.

    Args:
        name: "train", "val" or "test".

    Raises:
        ConfigError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ConfigError(
            "the photographs come with scikit-learn, which is not installed",
            fix="pip install 'lightning-petl[demo]'",
        ) from error
    start, end = PARTS[name]
    return [
        photo[:, round(start * photo.shape[1]) : round(end * photo.shape[1])] for photo in load_sample_images().images
    ]


def plan(
    digits: NDArray[np.int64],
    photos: Sequence[NDArray[np.uint8]],
    side: int,
    rng: np.random.Generator,
    sizes: tuple[float, float] = SIZES,
    vary: float = 0,
) -> Plan:
    """Draws a scene.

    Args:
        digits: Indices of the images to choose from.
        photos: The photographs.
        side: Height and width of the scene.
        rng: All of the choices.
        sizes: Smallest and largest side of a note, of the side of the scene.
        vary: How much the handwriting is slanted and stretched, of the largest amounts; 0 leaves it as it is.
    """
    photo = int(rng.integers(len(photos)))
    height, width = photos[photo].shape[:2]
    part = int(rng.integers(min(side, height, width), min(2 * side, height, width) + 1))
    top, left = int(rng.integers(height - part + 1)), int(rng.integers(width - part + 1))
    notes: list[Note] = []
    for _ in range(rng.integers(1, NOTES + 1)):
        note = _note(digits, notes, side, rng, sizes, vary)
        if note is not None:
            notes.append(note)
    return Plan(photo, top, left, part, tuple(notes))


def _note(
    digits: NDArray[np.int64],
    others: Sequence[Note],
    side: int,
    rng: np.random.Generator,
    sizes: tuple[float, float],
    vary: float,
) -> Note | None:
    """A note apart from the others; None where no free place is found."""
    digit, size, angle = int(rng.choice(digits)), rng.uniform(*sizes) * side, np.deg2rad(rng.uniform(-ANGLE, ANGLE))
    paper, ink = rng.uniform(*PAPER, 3), rng.uniform(*INK, 3)
    slant, stretch = vary * rng.uniform(-SLANT, SLANT), float(np.exp(vary * rng.uniform(-STRETCH, STRETCH)))
    reach = size / 2 * (abs(np.cos(angle)) + abs(np.sin(angle)))  # of the turned square, in rows and in columns
    for _ in range(_TRIES):
        y, x = rng.uniform(reach, side - reach, 2)
        if all(max(abs(y - o.y), abs(x - o.x)) >= APART * (size + o.size) / 2 for o in others):
            return Note(digit, y, x, size, angle, paper, ink, slant, stretch)
    return None


def draw(
    scene: Plan,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    photos: Sequence[NDArray[np.uint8]],
    side: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws a scene and its mask.

    Args:
        scene: What to draw.
        images: ``(n, 8, 8)``, ink bright on black.
        labels: ``(n,)``, the class of each.
        photos: The photographs.
        side: Height and width.

    Returns:
        The scene ``(side, side, 3)``, and the mask ``(side, side)``: 1 for the photograph, 2 more than the label on a
        note, 0 nowhere, since ADE20K's files count classes from 1.
    """
    rows, columns = (slice(start, start + scene.side) for start in (scene.top, scene.left))
    ground = Image.fromarray(photos[scene.photo][rows, columns]).resize((side, side), Image.Resampling.BILINEAR)
    picture, mask = np.asarray(ground).astype(np.float64), np.ones((side, side), dtype=np.uint8)
    for note in scene.notes:
        u, v = _places(note, side)
        on = np.maximum(np.abs(u), np.abs(v)) < 0.5
        ink = _handwriting(images[note.digit], u[on], v[on], note)[:, None]
        picture[on] = note.paper + (note.ink - note.paper) * ink
        mask[on] = labels[note.digit] + 2
    return np.rint(picture).astype(np.uint8), mask


def _places(note: Note, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel's centre lies on a note, -0.5 to 0.5 inside, to the right and down: two of ``(side, side)``."""
    y, x = (np.arange(side) + 0.5 - centre for centre in (note.y, note.x))
    cos, sin = np.cos(note.angle) / note.size, np.sin(note.angle) / note.size
    return cos * x + sin * y[:, None], cos * y[:, None] - sin * x


def _handwriting(
    image: NDArray[np.uint8], u: NDArray[np.float64], v: NDArray[np.float64], note: Note
) -> NDArray[np.float64]:
    """How much ink is at places of a note, 0 to 1: the image bilinear, with none around it."""
    across, down = 8 * (u * note.stretch + note.slant * v) + 4.5, 8 * v / note.stretch + 4.5  # of a margin of 1
    padded = np.pad(image / 255, 1)
    left, top = (np.clip(np.floor(place).astype(int), 0, 8) for place in (across, down))
    right, below = (np.clip(place - start, 0, 1) for place, start in ((across, left), (down, top)))
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    ink: NDArray[np.float64] = upper * (1 - below) + lower * below
    return ink


def make(
    out: Path,
    classes: Sequence[int] = (5, 6, 7, 8, 9),
    train: int = 1000,
    val: int = 150,
    test: int = 300,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Writes the data set: ``images/<split>/<number>.png``, ``annotations/<split>/<number>.png`` and ``classes.txt``.

    The splits are ``training``, ``validation`` and ``test``. The same arguments give the same pictures; the same
    libraries, the same bytes.

    Args:
        out: The folder to make; it appears when it is complete.
        classes: Digits to show, each once.
        train: Scenes of the training split.
        val: Scenes of the validation split.
        test: Scenes of the test split.
        size: Height and width, 16 to 128.
        seed: Of all choices but the split of the digits.

    Raises:
        ConfigError: The folder has files, an argument is out of its range, or scikit-learn is missing.
    """
    counts = {"train": train, "val": val, "test": test}
    _check(out, counts, size, seed)
    images, labels = load_digits(classes)
    pools = split(labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        (folder / CLASS_FILE).write_text("".join(f"{name}\n" for name in ("photograph", *classes)), encoding="utf-8")
        for part, (name, count) in enumerate(counts.items()):
            places = [folder / kind / FOLDERS[name] for kind in ("images", "annotations")]
            for place in places:
                place.mkdir(parents=True)
            drawn = scenes(count, images, labels, pools[name], load_photos(name), size, mixed(seed, part))
            for number, pixels in enumerate(drawn, start=1):
                for place, array in zip(places, pixels, strict=True):
                    Image.fromarray(array).save(place / f"{number:05d}.png")
        folder.chmod(0o755)  # a temporary folder is its owner's alone
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def scenes(
    count: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    pool: NDArray[np.int64],
    photos: Sequence[NDArray[np.uint8]],
    side: int,
    seed: int,
    sizes: tuple[float, float] = SIZES,
    vary: float = 0,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Draws scenes and masks one after the other; see `plan` and `draw` for the arguments."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield draw(plan(pool, photos, side, rng, sizes, vary), images, labels, photos, side)


def _check(out: Path, counts: dict[str, int], size: int, seed: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists", where="out", fix="give a folder that does not exist yet")
    for name, value, least in [*((name, count, 1) for name, count in counts.items()), ("seed", seed, 0)]:
        if value < least:
            raise ConfigError(f"{name} is {value}", where=name, fix=f"give {least} or more")
    if not 16 <= size <= 128:
        raise ConfigError(f"size is {size}", where="size", fix="give 16 to 128: a fifth of a photograph is 128 wide")


def main(arguments: list[str] | None = None, prog: str = "digit_scenes") -> None:
    """The command: ``digit_scenes OUT [--classes D ...] [--train N] [--val N] [--test N] [--size N] [--seed N]``.

    Args:
        arguments: In place of the command line's.
        prog: What the command is called.
    """
    parser = Parser(prog, description=__doc__, formatter_class=_Formatter)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 6, 7, 8, 9], help="digits to show")
    for name, value in {"train": 1000, "val": 150, "test": 300, "size": 64, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="see make()")
    options = vars(parser.parse_args(arguments))
    make(**options)
    count = sum(options[name] for name in FOLDERS)
    print(f"{count} scenes of {len(options['classes'])} digits and the photograph in {options['out']}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the module's text as it is written, and the defaults."""


if __name__ == "__main__":
    main()
