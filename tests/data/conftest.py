"""Files that the tests of this folder read, and warnings as errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import photo

from lightning_petl.data import InputConfig

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture
def config() -> InputConfig:
    """An input of 8x8 pixels that no library has for a default."""
    return InputConfig((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (8, 8), "bicubic", 0.8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders of three splits: classes "bee", "cat" and "dog" with 3, 4 and 5 images in training."""
    seed = 0
    for split, counts in (("train", (3, 4, 5)), ("val", (2, 2, 2)), ("test", (1, 2, 3))):
        for name, count in zip(("bee", "cat", "dog"), counts, strict=True):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                photo(seed).save(folder / f"{i}.png")
                seed += 1
    return tmp_path


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A root with images a.png to f.png and a list train.txt of four of them in two classes."""
    for i, name in enumerate("abcdef"):
        photo(i).save(tmp_path / f"{name}.png")
    (tmp_path / "train.txt").write_text("a.png 0\nb.png 1\nc.png 0\nd.png 1\n")
    return tmp_path
