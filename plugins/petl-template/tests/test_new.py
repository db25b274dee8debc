"""A plugin that the template starts is installed with pip, passes its own tests, and is a method like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from new import new_plugin  # noqa: E402


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    done = run(HERE / "new.py", "LowPass", folder)
    assert done.returncode == 0, done.stderr
    assert f"pip install --editable '{folder / 'petl-lowpass'}[test]'" in done.stdout
    return folder / "petl-lowpass"


@pytest.fixture(scope="module")
def installed(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target]
    done = run("-m", "pip", "install", *options, plugin)
    assert done.returncode == 0, done.stderr
    return os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))


def test_the_name_is_in_every_place(plugin: Path) -> None:
    files = {path.relative_to(plugin).as_posix(): path for path in plugin.rglob("*") if path.is_file()}
    names = {"pyproject.toml", "README.md", "petl_lowpass/__init__.py", "petl_lowpass/py.typed"}
    assert files.keys() == names | {"tests/test_petl_lowpass.py"}
    for name, path in files.items():
        assert "template" not in path.read_text(encoding="utf-8").lower(), name
    project = tomllib.loads(files["pyproject.toml"].read_text(encoding="utf-8"))["project"]
    assert project["name"] == "petl-lowpass"
    assert project["entry-points"] == {"lightning_petl.methods": {"LowPass": "petl_lowpass:LowPass"}}


def test_it_passes_its_own_tests(plugin: Path, installed: str) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", plugin / "tests", PYTHONPATH=installed)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_it_is_listed_with_its_distribution_and_what_it_ships(installed: str) -> None:
    done = run("-m", "lightning_petl", "methods", "--json", "--check", PYTHONPATH=installed)
    found = {method["name"]: method for method in json.loads(done.stdout)}["LowPass"]
    assert (found["distribution"], found["version"], found["error"]) == ("petl-lowpass", "0.1.0", None)
    assert found["summary"].startswith("LowPass: ")
    assert (Path(installed.split(os.pathsep)[0]) / "petl_lowpass/py.typed").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lowpass", "no name of a class"),
        ("Low-Pass", "no name of a class"),
        ("None", "no name of a class"),
        ("Adapter", "is imported by the template"),
        ("Tensor", "is imported by the template"),
        ("RepAdapter", "of lightning-petl: choose another"),
        ("Repadapter", "of lightning-petl: choose another"),
    ],
)
def test_names_that_cannot_work_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    done = run(HERE / "new.py", name, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"new.py: error: {name!r}")
    assert reason in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "petl-lowpass").mkdir()
    with pytest.raises(FileExistsError, match="petl-lowpass is there already"):
        new_plugin("LowPass", tmp_path)
    assert not list((tmp_path / "petl-lowpass").iterdir())
