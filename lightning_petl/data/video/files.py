"""Finding video files by what lists call them: most lists name a video, and the suffix is that of the copy at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lightning_petl.data.folder_tree import FileKind
from lightning_petl.errors import DataError

EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi"})
"""Names that a scan takes for videos, compared in lower case; the containers are told by content."""

VIDEOS = FileKind("video", EXTENSIONS)


@dataclass
class VideoFolder:
    """A folder of videos. Lists each folder once: a look-up a file is slow on network disks.

    Attributes:
        path: The folder.
    """

    path: Path
    _listed: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def find(self, names: Iterable[str]) -> str | None:
        """The file of the first name that is there.

        Args:
            names: Where the video may lie, as ``folder/name`` or ``name`` without suffix.

        Returns:
            Its path, or None.

        Raises:
            DataError: Several files have the name, with different suffixes.
        """
        for name in names:
            parent, stem = os.path.split(name)
            files = self._list(parent).get(stem, [])
            if len(files) > 1:
                raise DataError(
                    f"{name} is there more than once: {', '.join(sorted(files))}",
                    where=str(self.path / parent),
                    fix="remove all but one: which of them is meant is not said",
                )
            if files:
                return str(self.path / parent / files[0])
        return None

    def _list(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._listed:
            found: dict[str, list[str]] = {}
            self._listed[parent] = found
            try:
                with os.scandir(self.path / parent) as entries:
                    for entry in entries:
                        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - speed
                        if suffix.lower() in EXTENSIONS and entry.is_file():
                            found.setdefault(stem, []).append(entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise DataError(
                    f"the folder cannot be read: {error.strerror}", where=str(self.path / parent), fix="permit it"
                ) from error
        return self._listed[parent]
