"""UCF101 (arXiv 1212.0402): three splits, each told by a list of training and a list of test videos."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from lightning_petl.data.folder_tree import require_folder
from lightning_petl.data.limits import DEFAULT_LIMITS, ImageLimits
from lightning_petl.data.notices import listed
from lightning_petl.data.video.files import VideoFolder
from lightning_petl.data.video.module import VideoDataModule, VideoOptions
from lightning_petl.data.video.splits import Entry, locate, read_lines, require_one_of_three
from lightning_petl.errors import DataError

_CLASS = re.compile(r"(?P<number>[0-9]+)\s+(?P<name>[^/\\\s]+)")
_VIDEO = re.compile(r"(?P<folder>[^/\\\s]+)/(?P<name>[^/\\\s]+)\.\w+(?:\s+(?P<number>[0-9]+))?")


class UCF101Data(VideoDataModule):
    """UCF101 or another set in its layout.

    ``<annotations>/classInd.txt`` numbers the classes from 1; ``trainlist0N.txt`` and ``testlist0N.txt`` name files
    ``<class>/<name>.avi`` below ``videos``. The suffix is that of the copy at hand. There is no validation split.

    Args:
        root: Folder of the data set; everything else is relative to it.
        split: Which of the three splits, 1, 2 or 3. A score of UCF101 is the mean over the three, or says which.
        videos: Folder of the class folders.
        annotations: Folder of the lists.
        val_on_test: Validate on the test split, as the published recipes do: the best epoch is then chosen by the
            samples that are scored.
        predict: Folder of videos to predict, any tree, or one video, below ``root`` unless absolute; null predicts the
            test split.
        limits: Sizes of frames to refuse before decoding.
        **options: See `VideoOptions`.

    Raises:
        DataError: A folder, a list or videos are missing, lines are bad, or name another class than their folder.
        ConfigError: An option is out of its range.
    """

    def __init__(
        self,
        root: str,
        split: int = 1,
        videos: str = "UCF-101",
        annotations: str = "ucfTrainTestlist",
        val_on_test: bool = False,
        predict: str | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(limits=limits, **options)
        require_one_of_three(split)
        base = Path(root).expanduser()
        for option, folder in (("root", base), ("videos", base / videos), ("annotations", base / annotations)):
            require_folder(folder, f"data.{option}")
        numbers = _numbers(base / annotations / "classInd.txt")
        found = {}
        for name in ("train", "test"):
            file = base / annotations / f"{name}list{split:02d}.txt"
            found[name] = locate(_entries(file, numbers), VideoFolder(base / videos), file, "data.annotations")
        if val_on_test:
            found["val"] = found["test"]
        self.fill(found, sorted(numbers, key=numbers.__getitem__), predict=None if predict is None else base / predict)


def _numbers(file: Path) -> dict[str, int]:
    """The label of each class, from 0."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        match = _CLASS.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"line {number} is not `number class`: {line.strip()[:80]!r}", where=str(file), fix="correct it"
            )
        numbers[match["name"]] = int(match["number"]) - 1
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(
            f"the numbers of {len(numbers)} classes do not run from 1", where=str(file), fix="correct the file"
        )
    return numbers


def _entries(file: Path, numbers: Mapping[str, int]) -> list[Entry]:
    entries: list[Entry] = []
    faults: list[str] = []
    for place, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        match = _VIDEO.fullmatch(line.strip())
        if match is None:
            faults.append(f"{file.name}:{place}: {line.strip()[:80]!r} is not `class/name.avi`, with or without number")
        elif (label := numbers.get(match["folder"])) is None:
            faults.append(f"{file.name}:{place}: {match['folder']} is no class")
        elif match["number"] is not None and int(match["number"]) - 1 != label:
            faults.append(f"{file.name}:{place}: {match['folder']} is class {label + 1}, not {match['number']}")
        else:
            entries.append(Entry((f"{match['folder']}/{match['name']}",), label, place))
    if faults:
        raise DataError(f"{len(faults)} bad lines: {listed(faults, '; ')}", where=str(file), fix="correct these lines")
    return entries
