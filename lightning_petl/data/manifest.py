"""A manifest: what the files of a data set were when they were checked, to be compared with later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lightning_petl.data.verification import Report
from lightning_petl.errors import ConfigError, DataError

FORMAT = "lightning-petl.data-manifest/1"


class Entry(NamedTuple):
    """A file of the manifest; see `Report`."""

    size: int
    mtime_ns: int
    sha256: str
    frames: int


def write(file: Path, root: Path, reports: Iterable[Report]) -> None:
    """Writes a manifest.

    Args:
        file: Where to; there must be none yet.
        root: Folder that the names in it are relative to.
        reports: The files.

    Raises:
        ConfigError: The file exists, or cannot be written.
    """
    entries = {
        os.path.relpath(report.path, root): Entry(report.size, report.mtime_ns, report.sha256, report.frames)._asdict()
        for report in sorted(reports, key=lambda report: report.path)
    }
    try:
        with file.open("x", encoding="utf-8") as out:
            json.dump({"format": FORMAT, "files": entries}, out, indent=1, ensure_ascii=False)
            out.write("\n")
    except FileExistsError as error:
        raise exists(file) from error
    except OSError as error:
        raise ConfigError(
            f"the manifest cannot be written: {error.strerror}", where=str(file), fix="choose another place"
        ) from error


def exists(file: Path) -> ConfigError:
    """The error of a manifest that would be written over."""
    return ConfigError(
        "the manifest exists, and is not written over", where=str(file), fix="compare with --against, or remove it"
    )


def read(file: Path, root: Path) -> dict[str, Entry]:
    """Reads a manifest; the files come with their paths.

    Raises:
        DataError: It cannot be read, or is none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}")
        return {
            os.path.normpath(root / name): Entry(**{key: entry[key] for key in Entry._fields})
            for name, entry in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DataError(f"the manifest does not read: {reason}", where=str(file), fix="write one anew") from error


def changes(known: Mapping[str, Entry], path: str) -> str:
    """What the file's size and date say without reading it: "" if they are the known ones, or what differs."""
    entry = known.get(path)
    if entry is None:
        return "the file is not in the manifest"
    status = os.stat(path)  # noqa: PTH116 - paths are strings here
    if status.st_size != entry.size:
        return f"the file has {status.st_size} bytes, and had {entry.size}"
    return "" if status.st_mtime_ns == entry.mtime_ns else "the file was written after the manifest"


def judged(known: Mapping[str, Entry], report: Report) -> Report:
    """A report of a file that was read, with a fault if its bytes are not those of the manifest."""
    entry = known.get(report.path)
    if report.fault or (entry is not None and entry.sha256 == report.sha256):
        return report
    if entry is None:
        return replace(report, fault="the file is not in the manifest")
    return replace(report, fault="the bytes of the file are not those of the manifest")
