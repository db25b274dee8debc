"""Kinetics-400, -600 and -700 (arXiv 1705.06950, 1808.01340, 1907.06987): official lists, or class folders."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Unpack

from lightning_petl.data.folder_tree import class_names, require_folder, require_same_classes, scan_classes
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.data.video.files import VIDEOS, VideoFolder
from lightning_petl.data.video.module import VideoDataModule, VideoOptions
from lightning_petl.data.video.splits import Entry, Split, locate
from lightning_petl.errors import DataError

_YOUTUBE_ID = re.compile(r"[\w-]+", re.ASCII)
_VAL = frozenset({"val", "validate", "validation"})
# What the column `split` says in a list of each use. Scores are often of the validation split, for the test lists were
# once without labels.
_SPLITS = {"train": frozenset({"train"}), "val": _VAL, "test": _VAL | {"test", "holdout", "holdout_test"}}


class KineticsData(VideoDataModule):
    """Kinetics of any number of classes: they are those of the training list, or of the class folders, sorted.

    With lists (``train_csv`` and so on), a split is what the official CSV says: columns ``label``, ``youtube_id``,
    ``time_start``, ``time_end`` and, perhaps, ``split``. Its files are
    ``<youtube_id>_<start, 6 digits>_<end, 6 digits>.mp4`` or of another suffix, in the split's folder itself or in a
    folder of the class's name there, with spaces or underscores. Without lists, the class folders decide. A list whose
    column ``split`` names another split is refused; the validation list may be given as the test list, too.

    A test list without labels, as the official ones once were, serves prediction; one with labels in part is refused.

    Args:
        root: Folder of the data set; everything else is relative to it.
        train: Folder of the training videos.
        val: Folder of the validation videos, or null.
        test: Folder of the test videos, or null.
        train_csv: List of the training split, or null for class folders in all splits.
        val_csv: List of the validation split; needed beside ``train_csv``.
        test_csv: List of the test split; needed beside ``train_csv``.
        predict: Folder of videos to predict, any tree, or one video, below ``root`` unless absolute; null predicts the
            test split.
        limits: Sizes of frames to refuse before decoding.
        **options: See `VideoOptions`.

    Raises:
        DataError: A list, a folder or videos are missing, lines are bad, splits differ in their classes, or training
            shares files with another split.
        ConfigError: An option is out of its range.
    """

    give_labels = "give a list with the column label"

    def __init__(
        self,
        root: str,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        train_csv: str | None = None,
        val_csv: str | None = None,
        test_csv: str | None = None,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(limits=limits, **options)
        base = Path(root).expanduser()
        require_folder(base, "data.root")
        folders = {name: base / f for name, f in (("train", train), ("val", val), ("test", test)) if f is not None}
        lists = {"train": train_csv, "val": val_csv, "test": test_csv}
        if train_csv is None:
            splits, classes = _from_folders(folders, lists)
        else:
            splits, classes = _from_lists(folders, {name: base / f for name, f in lists.items() if f is not None})
        self.fill(splits, classes, predict=None if predict is None else base / predict)


def _from_folders(folders: dict[str, Path], lists: dict[str, str | None]) -> tuple[dict[str, Split], tuple[str, ...]]:
    for name, file in lists.items():
        if file is not None:
            raise DataError(
                f"{name}_csv is given without train_csv", where=f"data.{name}_csv", fix="give data.train_csv, too"
            )
    classes = class_names(folders["train"], "data.train")
    splits = {}
    for name, folder in folders.items():
        found = class_names(folder, f"data.{name}")
        require_same_classes(folders["train"], classes, folder, found, f"data.{name}")
        samples = scan_classes(folder, classes, f"data.{name}", VIDEOS)
        splits[name] = Split(samples, folder, option=f"data.{name}")
    return splits, classes


def _from_lists(folders: dict[str, Path], lists: dict[str, Path]) -> tuple[dict[str, Split], tuple[str, ...]]:
    for name in folders:
        if name not in lists:
            raise DataError(
                f"the {name} split has a folder and no list",
                where=f"data.{name}_csv",
                fix=f"give data.{name}_csv, or set data.{name} to null",
            )
    rows = {name: list(_rows(file, name)) for name, file in lists.items() if name in folders}
    classes = tuple(sorted({row.label for row in rows["train"]}))
    number = {label: i for i, label in enumerate(classes)}
    splits = {}
    for name, found in rows.items():
        unknown = sorted({row.label for row in found if row.label} - number.keys())
        if unknown:
            raise DataError(
                f"{len(unknown)} classes are not in the training list: {listed(unknown)}",
                where=str(lists[name]),
                fix="use lists of one edition of Kinetics",
            )
        _require_labels(found, name, lists[name])
        require_folder(folders[name], f"data.{name}")
        entries = [Entry(row.names, number.get(row.label, -1), row.line) for row in found]
        splits[name] = locate(entries, VideoFolder(folders[name]), lists[name], f"data.{name}_csv")
    return splits, classes


def _require_labels(rows: list[_Row], split: str, file: Path) -> None:
    """Refuses rows without a label, but for a test list that has none at all."""
    bare = [row.line for row in rows if not row.label]
    if bare and (split != "test" or len(bare) < len(rows)):
        raise DataError(
            f"line {bare[0]} of the {split} list has no label, the first of {len(bare)}",
            where=str(file),
            fix="add the labels, or use another list",
        )


class _Row(NamedTuple):
    label: str
    names: tuple[str, ...]
    line: int


def _rows(file: Path, split: str) -> Iterator[_Row]:
    """Reads an official list.

    Raises:
        DataError: It is missing, has no such columns, or rows are bad or of another split: the first are named.
    """
    option = f"data.{split}_csv"
    faults: list[str] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            lacking = {"youtube_id", "time_start", "time_end"} - set(reader.fieldnames or ())
            if lacking:
                columns = ", ".join(sorted(lacking))
                raise DataError(f"the list has no columns {columns}", where=str(file), fix=f"correct {option}")
            for row in reader:
                try:
                    name = _name(row)
                    _require_split(row, split)
                except (ValueError, TypeError) as fault:
                    faults.append(f"{file.name}:{reader.line_num}: {fault}")
                    continue
                label = (row.get("label") or "").strip().strip('"')
                spelt = dict.fromkeys((label, label.replace(" ", "_")))
                places = tuple(f"{folder}/{name}" for folder in spelt if folder and "/" not in folder)
                yield _Row(label, (name, *places), reader.line_num)
    except OSError as error:
        raise DataError(
            f"the list file {file} cannot be read: {error.strerror}", where=option, fix=f"correct {option}"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("the list is no CSV in UTF-8", where=str(file), fix="save it as such") from error
    if faults:
        raise DataError(f"{len(faults)} bad lines: {listed(faults, '; ')}", where=str(file), fix="correct these lines")


def _require_split(row: dict[str, str], split: str) -> None:
    found = (row.get("split") or "").strip()
    if found and found.lower() not in _SPLITS[split]:
        raise ValueError(f"its split is {found!r}, not {split}")


def _name(row: dict[str, str]) -> str:
    if not _YOUTUBE_ID.fullmatch(row["youtube_id"] or ""):
        raise ValueError(f"{row['youtube_id']!r} is no id of a video")
    start, end = (int(float(row[column])) for column in ("time_start", "time_end"))
    if not 0 <= start < end:
        raise ValueError(f"{row['time_start']} to {row['time_end']} is no span of time")
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"
