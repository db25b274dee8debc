"""The documentation runs as it is printed, names what there is, and builds."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import trees
import yaml

from lightning_petl import cli

ROOT = pages.ROOT
DOCS = ROOT / "docs"
PACKAGE = ROOT / "lightning_petl"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
SLOW = ("command-line.md", "getting-started.md", "plugins.md", "video.md")
"""Pages that take over ten seconds: real backbones at their real size, or processes of their own."""

PUBLIC = ("", ".backbones", ".callbacks", ".data", ".tasks", ".testing")
"""Packages whose ``__all__`` is the public interface."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user has after cloning, and the data of the pages."""
    for name in ("configs", "plugins", "benchmarks", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    trees.write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _page(path: Path) -> pytest.param:
    return pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])


@pytest.mark.parametrize("page", [_page(path) for path in PAGES])
def test_the_page_runs(page: Path, folder: Path) -> None:
    found = list(pages.blocks(page))
    installs = any(
        word.words[0] == "pip" for block in found if block.language == "console" for word in pages.commands(block)
    )
    session = pages.Session(folder, processes=installs)
    for block in found:
        session.run(block)


def test_pages_are_not_empty_of_code() -> None:
    counts = {path.name: [block.language for block in pages.blocks(path)] for path in PAGES}
    assert counts["README.md"].count("python") >= 2
    for name in ("README.md", "getting-started.md", "command-line.md", "configuration.md", "refusals.md", "files.md"):
        assert "console" in counts[name], name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_fences_are_of_known_kinds(page: Path) -> None:
    """A fence of another language would look like code and never run."""
    kinds = {"python", "console", "text", "yaml", "toml", "json", "mermaid"}
    strange = {block.language for block in pages.blocks(page)} - kinds
    assert not strange
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(list(pages.blocks(page)))


def test_every_command_has_an_example() -> None:
    shown = {
        command.words[1]
        for block in pages.blocks(DOCS / "command-line.md")
        if block.language == "console"
        for command in pages.commands(block)
        if command.words[0] == "lightning-petl"
    }
    assert {**cli.TRAINER_COMMANDS, **cli.COMMANDS}.keys() <= shown


def _listed(path: str) -> list[object]:
    """What an entry of the reference shows: one object, or all of a module's that are its own."""
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        return [getattr(importlib.import_module(parent), name)]
    return [value for name, value in vars(module).items() if not name.startswith("_")]


def test_every_public_name_is_in_the_reference() -> None:
    entries = re.findall(r"^::: ([\w.]+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.M)
    shown = [value for entry in entries for value in _listed(entry)]
    missing = []
    for package in PUBLIC:
        module = importlib.import_module(f"lightning_petl{package}")
        missing += [name for name in module.__all__ if not any(getattr(module, name) is value for value in shown)]
    assert not missing


def test_every_room_is_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not {room for room in rooms if not re.search(rf"\b{room}\b", text)}


def test_the_drawn_arrows_are_imports() -> None:
    """Each arrow of the diagram is an import, and no room is drawn that is not there."""
    diagram = next(block.text for block in pages.blocks(DOCS / "architecture.md") if block.language == "mermaid")
    drawn = set(re.findall(r"^\s*(\w+) --> (\w+)$", diagram, re.M))
    assert len(drawn) > 10
    real = set()
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lightning_petl":
                inside = (node.module or "").split(".")[1:2]
                real |= {(here, there) for there in inside or [alias.name for alias in node.names]}
    assert drawn <= real


def test_the_counts_of_the_readme_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["methods", "--count", "vit_base_patch16_224", "--json"]) == 0
    counts = {row["name"]: row["without_head"] for row in json.loads(capsys.readouterr().out)}
    rows = re.findall(r"^\| (`.*?) \| ([\d,; ]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    told = {
        name: int(number.replace(",", ""))
        for names, numbers in rows
        for name, number in zip(re.findall(r"`(\w+)`", names), numbers.split(";"), strict=True)
    }
    assert len(told) == 8
    assert told.items() <= counts.items()


def _tasks() -> list[type]:
    """The tasks that a configuration may name."""
    from lightning_petl import tasks

    found = [getattr(tasks, name) for name in tasks.__all__]
    return [task for task in found if not inspect.isabstract(task)]


def test_configurations_are_told_every_short_name() -> None:
    """Of a task and of a data module; and they are the names that the command takes."""
    from lightning_petl.cli.trainer import DATA_MODULES

    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    section = text.partition("## Names of classes")[2].partition("\n## ")[0]
    known = {cls.__name__ for cls in (*_tasks(), *DATA_MODULES)}
    assert len(known) >= 15
    assert known <= set(re.findall(r"`(\w+)`", section))
    named = set(re.findall(r"`(\w+(?:Task|Data))`", section))
    assert named == known


def test_the_page_of_videos_says_where_a_models_frames_come_from() -> None:
    from lightning_petl import ConfigError
    from lightning_petl.backbones import VideoTransformer

    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"num_frames follows from model\.frames"):
        VideoTransformer("videomae", {"num_frames": 4}, 5).build()
    assert re.search(r"`num_frames`[^.]*`backbone_args`", (DOCS / "video.md").read_text(encoding="utf-8"))


def test_files_that_pages_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"\b(?:configs|plugins|benchmarks|docs)/[\w./-]+\.(?:yaml|py|md)", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    named = {path for entry in settings["nav"] for path in entry.values()}
    assert named == {path.name for path in DOCS.glob("*.md")}


class _Loader(yaml.SafeLoader):
    """mkdocs.yml names Python functions by a tag."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "index.html").stat().st_size > 10_000
