"""Reading of list files, one ``path label`` a line, relative to a root folder: the form of VTAB-1k and many others.

The label is the last field, so paths may hold spaces; a comma may take the place of the space. UTF-8 with or without a
byte order mark, any line ends; empty lines do not count. All faults of a file are reported at once, by line.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.sources import Sample
from lightning_petl.errors import ConfigError, DataError

_LINE = re.compile(r"(?P<path>.*?)\s*[,\s]\s*(?P<label>[^,\s]+)")
_WHOLE = re.compile(r"[+-]?[0-9]+")


def read_list(
    file: Path,
    root: Path,
    num_classes: int | None,
    allow_outside_root: bool,
    option: str,
    missing: list[Sample] | None = None,
) -> list[Sample]:
    """Reads and checks a list file.

    Args:
        file: The list.
        root: Folder that the paths are relative to, and must stay in after links are followed.
        num_classes: Labels run from 0 to ``num_classes - 1``; None accepts every label from 0.
        allow_outside_root: Accept paths that lead out of ``root``.
        option: Configuration field that gave the list, for messages.
        missing: Takes the samples whose files do not exist, which are no faults then.

    Returns:
        The samples in the order of the list, with absolute paths and line numbers from 1.

    Raises:
        DataError: The list is missing, empty or not UTF-8; or lines are bad: the first 20, as ``file:line: fault``.
    """
    check = _PathCheck(os.path.realpath(root), allow_outside_root)
    samples: list[Sample] = []
    faults: list[str] = []
    for number, line in enumerate(_text(file, option).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            path, label = _fields(line.strip(), num_classes)
            sample = Sample(os.path.normpath(root / path), label, number)
            if check(sample.path):
                samples.append(sample)
            elif missing is None:
                faults.append(f"{file.name}:{number}: {sample.path} does not exist")
            else:
                missing.append(sample)
        except _BadLine as fault:
            faults.append(f"{file.name}:{number}: {fault}")
    if faults:
        raise DataError(f"{len(faults)} bad lines: {listed(faults, '; ')}", where=str(file), fix="correct these lines")
    if not samples and not missing:
        raise DataError("the list has no samples", where=str(file), fix="write one `path label` a line")
    if missing is None:
        warn_duplicates(file, samples)
    return samples


class _BadLine(Exception):  # noqa: N818 - never leaves this file
    """A fault of one line, in words."""


def _text(file: Path, option: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError("the list is not UTF-8 text", where=f"{file}:{line}", fix="save it as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"the list file {file} cannot be read: {error.strerror}", where=option, fix=f"correct {option}"
        ) from error


def _fields(line: str, num_classes: int | None) -> tuple[str, int]:
    match = _LINE.fullmatch(line)
    if match is None or not match["path"]:
        raise _BadLine(f"{line[:80]!r} is not `path label`")
    if not _WHOLE.fullmatch(match["label"]):
        raise _BadLine(f"the label {match['label'][:40]!r} is not a whole number")
    if "\0" in line:
        raise _BadLine("the path holds a zero byte")
    label = int(match["label"])
    if label < 0 or (num_classes is not None and label >= num_classes):
        raise _BadLine(f"the label {label} is not in 0..{'' if num_classes is None else num_classes - 1}")
    return match["path"], label


@dataclass
class _Folder:
    inside: bool
    names: dict[str, bool]  # file name -> whether it is a link


@dataclass
class _PathCheck:
    """Tells whether files exist, and checks that they stay in the root.

    Lists each folder once: a stat a file is slow on network disks.
    """

    root: str
    allow_outside: bool
    folders: dict[str, _Folder] = field(default_factory=dict)

    def __call__(self, path: str) -> bool:
        parent, name = os.path.split(path)
        if parent not in self.folders:
            self.folders[parent] = self._read(parent)
        folder = self.folders[parent]
        linked = folder.names.get(name)
        inside = self._contains(os.path.realpath(path)) if linked else folder.inside
        if not inside and not self.allow_outside:
            raise _BadLine(f"{path} leads out of {self.root} (data.allow_outside_root permits it)")
        return linked is not None and (not linked or os.path.isfile(path))  # noqa: PTH113 - paths are strings here

    def _read(self, folder: str) -> _Folder:
        inside = self._contains(os.path.realpath(folder))
        if not inside and not self.allow_outside:
            return _Folder(inside, {})  # not even listed
        try:
            with os.scandir(folder) as entries:
                return _Folder(inside, {e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()})
        except OSError:
            return _Folder(inside, {})

    def _contains(self, real: str) -> bool:
        return os.path.commonpath([self.root, real]) == self.root


def warn_duplicates(file: Path, samples: Sequence[Sample]) -> None:
    """Says how many files a list has more than once."""
    labels = dict[str, set[int]]()
    for sample in samples:
        labels.setdefault(sample.path, set()).add(sample.label)
    repeated = [path for path, count in Counter(sample.path for sample in samples).items() if count > 1]
    if repeated:
        torn = sum(len(labels[path]) > 1 for path in repeated)
        warnings.warn(
            f"{file}: {len(repeated)} files are listed more than once, {torn} of them with different labels: "
            f"{listed(repeated, shown=3)}",
            DataWarning,
            stacklevel=4,
        )


def require_disjoint(train: Sequence[Sample], other: Sequence[Sample], option: str) -> None:
    """Refuses a validation or test list that shares files with training, links followed.

    Raises:
        DataError: Naming the first shared files.
    """
    seen = _real_paths(train)
    if shared := sorted(_real_paths(other) & seen):
        raise DataError(
            f"{len(shared)} files are in the training list too: {listed(shared, shown=3)}",
            where=option,
            fix="remove them from one of the lists: scores on training samples mean nothing",
        )


def _real_paths(samples: Sequence[Sample]) -> set[str]:
    """The files behind the paths; each folder is resolved once."""
    folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(s.path) for s in samples}}  # noqa: PTH120
    paths = (os.path.join(folders[head], tail) for head, tail in (os.path.split(s.path) for s in samples))  # noqa: PTH118
    return {os.path.realpath(path) if os.path.islink(path) else path for path in paths}  # noqa: PTH114


def declared_classes(
    class_names: Sequence[str] | None, num_classes: int | None, train_list: str | None
) -> tuple[str, ...] | None:
    """The classes that the user names or counts; None leaves them to the labels of the training list.

    Raises:
        ConfigError: Names and number disagree, or are none; or there is nothing that tells the classes.
    """
    if class_names is None and num_classes is None and train_list is None:
        raise ConfigError(
            "there is no training list to tell the classes",
            where="data.class_names",
            fix="give data.class_names or data.num_classes, or data.train_list",
        )
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}", where="data.num_classes", fix="give 1 or more")
    if class_names is None:
        return None if num_classes is None else tuple(map(str, range(num_classes)))
    if len(set(class_names)) < len(class_names) or not class_names:
        raise ConfigError(
            "class_names is empty or repeats a name", where="data.class_names", fix="name each label once"
        )
    if num_classes not in (None, len(class_names)):
        raise ConfigError(
            f"num_classes is {num_classes}, and there are {len(class_names)} class_names",
            where="data.num_classes",
            fix="correct one of them",
        )
    return tuple(class_names)


def checked_classes(samples: Sequence[Sample], declared: tuple[str, ...] | None, file: Path) -> tuple[str, ...]:
    """The declared classes, or as many as the training labels show; labels without a sample do not pass in silence.

    Args:
        samples: Of the training list, whether their files are there or not.
        declared: See `declared_classes`.
        file: The training list, for messages.

    Raises:
        DataError: Nothing is declared, and a label below the largest has no sample.
    """
    found = {sample.label for sample in samples}
    names = declared if declared is not None else tuple(map(str, range(max(found) + 1)))
    unseen = [name for label, name in enumerate(names) if label not in found]
    if unseen and declared is None:
        raise DataError(
            f"the labels go up to {max(found)}, and {len(unseen)} below have no sample: {listed(unseen)}",
            where=str(file),
            fix="correct the labels, or give data.num_classes if that is how it is",
        )
    if unseen:
        text = f"{file}: {len(unseen)} of {len(names)} classes have no training sample: {listed(unseen)}"
        warnings.warn(text, DataWarning, stacklevel=3)
    return names
