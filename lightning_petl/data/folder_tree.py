"""Scanning of class-folder trees: ``<tree>/<class name>/**/<image>``, labels in order of the sorted class names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_petl.data.images import EXTENSIONS
from lightning_petl.data.notices import DataWarning, listed
from lightning_petl.data.sources import Sample
from lightning_petl.errors import DataError


class FileKind(NamedTuple):
    """What a scan looks for.

    Attributes:
        noun: Its name in messages.
        extensions: Suffixes in lower case.
    """

    noun: str
    extensions: frozenset[str]


IMAGES = FileKind("image", EXTENSIONS)


def class_names(tree: Path, field: str) -> tuple[str, ...]:
    """Reads the names of the class folders, sorted by code point; hidden folders are none.

    Args:
        tree: Folder of one split.
        field: Configuration field that gave the folder, for messages.

    Raises:
        DataError: There is no such folder, it has no class folder, or two names differ by upper and lower case only.
    """
    require_folder(tree, field)
    names = sorted(path.name for path in tree.iterdir() if not path.name.startswith(".") and path.is_dir())
    if not names:
        raise DataError(
            f"{tree} has no class folders", where=field, fix="put the files of each class into a folder of its name"
        )
    spelt: dict[str, str] = {}
    for name in names:
        if (other := spelt.setdefault(name.casefold(), name)) != name:
            raise DataError(
                f"the class folders {other!r} and {name!r} of {tree} differ by upper and lower case only",
                where=field,
                fix="merge or rename them: they would be two classes here and one on other file systems",
            )
    return tuple(names)


def require_folder(folder: Path, field: str) -> None:
    """Raises a `DataError` that names the configuration field unless the folder exists."""
    if not folder.is_dir():
        missing = "does not exist" if not folder.exists() else "is not a folder"
        raise DataError(f"the folder {folder} {missing}", where=field, fix=f"correct {field}, or null if there is none")


def require_same_classes(first: Path, expected: Sequence[str], second: Path, found: Sequence[str], field: str) -> None:
    """Compares two trees by class name: with other names, the same label would mean another class.

    Raises:
        DataError: Naming the classes that only one of the trees has.
    """
    lacking, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if lacking or extra:
        only = [f"only in {tree}: {listed(names)}" for tree, names in ((first, lacking), (second, extra)) if names]
        raise DataError(
            f"the splits have different classes; {'; '.join(only)}", where=field, fix="give all splits the same folders"
        )


def scan_classes(tree: Path, classes: Sequence[str], field: str, kind: FileKind = IMAGES) -> list[Sample]:
    """Lists the files of all classes, ordered by class and by path, with labels ``0..len(classes) - 1``.

    Raises:
        DataError: Class folders without any image (all are named), or a folder that cannot be read.
    """
    left_out = [str(path) for path in tree.iterdir() if not path.name.startswith(".") and path.is_file()]
    samples: list[Sample] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        files = _matching(tree / name, kind, left_out)
        samples += [Sample(path, label) for path in files]
        if not files:
            empty.append(name)
    _warn_left_out(tree, kind, left_out)
    if empty:
        raise DataError(
            f"{len(empty)} class folders of {tree} have no {kind.noun}: {listed(empty)}",
            where=field,
            fix=f"fill or remove them; {kind.noun}s end in {', '.join(sorted(kind.extensions))}",
        )
    return samples


class Unlabelled(NamedTuple):
    """Files without labels, and the folder that their names are relative to."""

    samples: list[Sample]
    root: Path


def to_predict(place: Path, kind: FileKind = IMAGES) -> Unlabelled:
    """What ``data.predict`` asks for: all files of a kind below a folder, see `scan_files`, or one file.

    Raises:
        DataError: It is neither, or there is no such file below the folder.
    """
    field = "data.predict"
    if place.is_dir():
        return Unlabelled(scan_files(place, field, kind), place)
    one = f"{'an' if kind.noun[0] in 'aeiou' else 'a'} {kind.noun}"
    fix = f"give a folder, or one {kind.noun}, which ends in {', '.join(sorted(kind.extensions))}"
    if not place.exists():
        raise DataError(f"{place} does not exist", where=field, fix=fix)
    if place.suffix.lower() not in kind.extensions:
        fix += "; no list of files is taken: data modules that read lists take one as data.test_list"
        raise DataError(f"{place} is neither a folder nor {one} by its name", where=field, fix=fix)
    return Unlabelled([Sample(str(place), -1)], place.parent)


def scan_files(folder: Path, field: str, kind: FileKind) -> list[Sample]:
    """Lists all files of a kind below a folder, ordered by path, without labels (-1).

    Raises:
        DataError: There is no such folder or no such file below it.
    """
    require_folder(folder, field)
    left_out: list[str] = []
    files = _matching(folder, kind, left_out)
    _warn_left_out(folder, kind, left_out)
    if not files:
        endings = ", ".join(sorted(kind.extensions))
        raise DataError(f"{folder} has no {kind.noun}", where=field, fix=f"{kind.noun}s end in {endings}, at any depth")
    return [Sample(path, -1) for path in files]


def _matching(folder: Path, kind: FileKind, left_out: list[str]) -> list[str]:
    """Paths of the files below a folder, sorted; visible files of other kinds are appended to ``left_out``."""
    found: list[str] = []
    for path in files_below(folder):
        (found if os.path.splitext(path)[1].lower() in kind.extensions else left_out).append(path)  # noqa: PTH122
    return sorted(found)


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all visible files below a folder, links followed.

    Raises:
        DataError: A folder cannot be read, or a link leads in a circle.
    """
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:
            raise DataError("a link leads to a folder that was already read", where=parent, fix="remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))  # noqa: PTH118 - speed


def _refuse(error: OSError) -> None:
    """os.walk passes over a folder that it cannot list, with all samples in it, unless told otherwise."""
    raise DataError(
        f"the folder cannot be read: {error.strerror}", where=str(error.filename), fix="permit it"
    ) from error


def _warn_left_out(folder: Path, kind: FileKind, left_out: Sequence[str]) -> None:
    if left_out:
        warnings.warn(
            f"{len(left_out)} files of {folder} are left out, as no {kind.noun}s of a class by name or place: "
            f"{listed(sorted(left_out), shown=3)}",
            DataWarning,
            stacklevel=3,
        )
