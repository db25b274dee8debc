"""The README's code and commands run as they are printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lightning_petl import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    found = blocks("python")
    assert len(found) >= 2
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "task.safetensors").exists()


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [
        line for block in blocks("console") for line in block.splitlines() if line.startswith("lightning-petl ")
    ]
    assert len(commands) >= 4
    for line in commands:
        arguments = shlex.split(line.replace("runs/first", str(tmp_path / "first")))[1:]
        if arguments[0] in ("fit", "test"):
            arguments += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
        if arguments[0] == "test":
            arguments += ["--trainer.default_root_dir", str(tmp_path / "test")]
        assert cli.run(arguments) == 0, line
