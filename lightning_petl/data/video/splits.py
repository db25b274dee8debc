"""From what lists say to the videos that are there, with the checks that all video data sets share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_petl.data.list_file import require_disjoint, warn_duplicates
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.sources import Sample
from lightning_petl.data.video.files import VideoFolder
from lightning_petl.errors import ConfigError, DataError

Missing = Literal["raise", "drop"]
"""What becomes of training videos that a list names and that are not there."""


class Entry(NamedTuple):
    """A video as a list names it.

    Attributes:
        names: Where it may lie, see `VideoFolder.find`; the first is what messages call it.
        label: Class index, or -1 where none is known.
        line: Line of the list, from 1; 0 where lines do not count.
    """

    names: tuple[str, ...]
    label: int
    line: int = 0


def require_one_of_three(split: int) -> None:
    """Refuses a number of a split that HMDB51 and UCF101 do not have.

    Raises:
        ConfigError: It is not 1, 2 or 3.
    """
    if split not in (1, 2, 3):
        raise ConfigError(f"split is {split}", where="data.split", fix="choose 1, 2 or 3")


@dataclass
class Split:
    """The videos of a split, as far as they are there.

    Attributes:
        samples: Those that are there.
        root: Folder that their names are relative to.
        list_file: The list that their lines count in.
        missing: Names of those that are not.
        option: Configuration field that gave the split, for messages.
    """

    samples: list[Sample]
    root: Path
    list_file: Path | None = None
    missing: list[str] = field(default_factory=list)
    option: str = "data"


def locate(entries: Sequence[Entry], folder: VideoFolder, list_file: Path, option: str) -> Split:
    """Looks for the videos of a list.

    Args:
        entries: The list.
        folder: Where they are.
        list_file: The list's file.
        option: Configuration field that gave the list.

    Raises:
        DataError: The list is empty, or a name stands for several files.
    """
    if not entries:
        raise DataError("the list has no videos", where=str(list_file), fix=f"correct {option}")
    split = Split([], folder.path, list_file, option=option)
    for entry in entries:
        path = folder.find(entry.names)
        if path is None:
            split.missing.append(entry.names[0])
        else:
            split.samples.append(Sample(path, entry.label, entry.line))
    return split


def read_lines(file: Path) -> list[str]:
    """The lines of a list that comes with a data set.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"the list cannot be read: {reason}", where=str(file), fix="replace it") from error


def check(splits: Mapping[str, Split], classes: Sequence[str], missing: Missing) -> int:
    """Checks the splits of a data set against each other, and that their videos are there.

    Args:
        splits: By the names "train", "val", "test" and "predict".
        classes: Names of the classes.
        missing: Whether training may go without the videos that are missing.

    Returns:
        How many training videos are missing.

    Raises:
        DataError: Videos are missing, of all splits at once; a split is empty; or training shares files with another.
    """
    lacking = {name: split for name, split in splits.items() if split.missing}
    dropped = len(lacking.pop("train").missing) if missing == "drop" and "train" in lacking else 0
    if lacking:
        raise _missing(lacking)
    for name, split in splits.items():
        if not split.samples:
            raise DataError(f"no video of {name} is there", where=str(split.root), fix=f"correct {split.option}")
        if name in ("train", "val", "test") and split.list_file is not None:
            warn_duplicates(split.list_file, split.samples)
    if "train" in splits:
        if dropped:
            _say_dropped(splits["train"], dropped)
        for name in ("val", "test"):
            if name in splits:
                require_disjoint(splits["train"].samples, splits[name].samples, splits[name].option)
        _say_unseen(splits["train"].samples, classes)
    return dropped


def _missing(lacking: Mapping[str, Split]) -> DataError:
    count = sum(len(split.missing) for split in lacking.values())
    told = "; ".join(
        f"{len(split.missing)} of {name} in {split.root}: {listed(split.missing, shown=5)}"
        for name, split in lacking.items()
    )
    only_train = list(lacking) == ["train"]
    return DataError(
        f"{count} videos are missing: {told}",
        where=next(iter(lacking.values())).option,
        fix="add them, or set data.missing to drop to train without them"
        if only_train
        else "add them, or take them off the lists: a score says what it was measured on",
    )


def _say_dropped(train: Split, dropped: int) -> None:
    warnings.warn(
        f"{dropped} of {dropped + len(train.samples)} training videos are missing and left out: "
        f"{listed(train.missing, shown=3)}",
        DataWarning,
        stacklevel=3,
    )


def _say_unseen(train: Sequence[Sample], classes: Sequence[str]) -> None:
    found = {sample.label for sample in train}
    unseen = [name for label, name in enumerate(classes) if label not in found]
    if unseen:
        text = f"{len(unseen)} of {len(classes)} classes have no training video: {listed(unseen)}"
        warnings.warn(text, DataWarning, stacklevel=3)
