"""Media, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import media
import pytest


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of `media.GOOD`."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (_, make) in media.GOOD.items():
        make(folder / name)
    return folder
