"""HMDB51 (Kuehne et al., ICCV 2011): three splits, each told by one list a class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.data.video.files import VIDEOS, VideoFolder
from lightning_petl.data.video.module import VideoDataModule, VideoOptions
from lightning_petl.data.video.splits import Entry, locate, read_lines, require_one_of_three
from lightning_petl.errors import DataError

_LINE = re.compile(r"(?P<name>[^/\\]+)\.\w+\s+(?P<part>[012])")
_PARTS = {"train": "1", "test": "2"}


class HMDB51Data(VideoDataModule):
    """HMDB51 or another set in its layout: lists ``<splits>/<class>_test_split<N>.txt``, files ``<videos>/<class>/``.

    A line is ``name.avi 1`` for training, 2 for test, and 0 for neither. The suffix is that of the copy at hand.
    There is no validation split.

    Args:
        root: Folder of the data set; everything else is relative to it.
        split: Which of the three splits, 1, 2 or 3. A score of HMDB51 is the mean over the three, or says which.
        videos: Folder of the class folders.
        splits: Folder of the lists.
        val_on_test: Validate on the test split, as the published recipes do: the best epoch is then chosen by the
            samples that are scored.
        predict: Folder of videos to predict, any tree, or one video, below ``root`` unless absolute; null predicts the
            test split.
        limits: Sizes of frames to refuse before decoding.
        **options: See `VideoOptions`.

    Raises:
        DataError: A folder, lists or videos are missing, lines are bad, a class has none, or a class folder no list.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        split: int = 1,
        videos: str = "videos",
        splits: str = "testTrainMulti_7030_splits",
        val_on_test: bool = False,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(limits=limits, **options)
        require_one_of_three(split)
        base = Path(root).expanduser()
        for option, folder in (("root", base), ("videos", base / videos), ("splits", base / splits)):
            require_folder(folder, f"data.{option}")
        ending = f"_test_split{split}.txt"
        lists = {path.name.removesuffix(ending): path for path in (base / splits).glob(f"*{ending}")}
        if not lists:
            raise DataError(
                f"{base / splits} has no lists of split {split}", where="data.splits", fix=f"they end in {ending}"
            )
        _require_lists(base / videos, lists, base / splits, ending)
        classes = sorted(lists)
        parts: dict[str, list[Entry]] = {name: [] for name in _PARTS}
        for label, name in enumerate(classes):
            for part, entries in _read(lists[name], name, label).items():
                parts[part] += entries
        found = {
            name: locate(entries, VideoFolder(base / videos), base / splits, "data.splits")
            for name, entries in parts.items()
        }
        if val_on_test:
            found["val"] = found["test"]
        self.fill(found, classes, predict=None if predict is None else base / predict)


def _require_lists(videos: Path, lists: Mapping[str, Path], splits: Path, ending: str) -> None:
    """Refuses folders of videos without a list: without its class, the labels behind it would be others."""
    for name in sorted(path.name for path in videos.iterdir() if path.is_dir()):
        if name in lists or name.startswith("."):
            continue
        if any(path.suffix.lower() in VIDEOS.extensions for path in (videos / name).iterdir()):
            raise DataError(
                f"the class folder {videos / name} has no list {splits / (name + ending)}",
                where="data.splits",
                fix="add the list, or move the folder elsewhere",
            )


def _read(file: Path, folder: str, label: int) -> dict[str, list[Entry]]:
    """The training and test videos of a class."""
    entries: dict[str, list[Entry]] = {name: [] for name in _PARTS}
    faults: list[str] = []
    for number, line in enumerate(read_lines(file), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            if line.strip():
                faults.append(f"{file.name}:{number}: {line.strip()[:80]!r} is not `name.avi 0|1|2`")
            continue
        for name, part in _PARTS.items():
            if match["part"] == part:
                entries[name].append(Entry((f"{folder}/{match['name']}",), label))
    if faults:
        raise DataError(f"{len(faults)} bad lines: {listed(faults, '; ')}", where=str(file), fix="correct these lines")
    if not entries["train"] or not entries["test"]:
        raise DataError("the list has no training or no test videos", where=str(file), fix="replace it")
    return entries
