"""Reading and running of the documentation's pages: what a fence holds, and what a test has to add to a command.

A page is one session, from top to bottom, in one folder with the data that it speaks of:

- ``python`` blocks run in one namespace. A ``text`` block right below one is what it prints.
- ``console`` blocks hold commands, and below a command that is to fail the last line that it prints, in which ``…``
  stands for any text.
- A block with ``title="NAME"`` is the content of that file, whatever its language.
- Everything else only shows something.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import timm
import yaml
from safetensors.torch import save_file

from lightning_petl import cli

ROOT = Path(__file__).parents[2]
ERROR = "lightning-petl: error: "
_FENCE = re.compile(r"^```(?P<language>[\w-]*)(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.S | re.M)
_QUICK = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.enable_progress_bar", "false")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str
    text: str
    line: int
    follows: bool
    """Whether nothing stands between it and the block before it."""


class Command(NamedTuple):
    """A command of a console block, and the last line that it is to fail with, if it is."""

    words: list[str]
    error: str


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    end = 0
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        follows = end > 0 and not text[end : match.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], title.group(1) if title else "", match["text"], line, follows)
        end = match.end()


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith(ERROR):
            found[-1] = found[-1]._replace(error=line)
        elif line.strip():
            found.append(Command(shlex.split(line, comments=True), ""))
    return [command for command in found if command.words]


@dataclass
class Session:
    """One page, run in a folder.

    Attributes:
        folder: The working directory, which holds what the page's commands read.
        processes: Whether commands run as processes of their own, which see what the page installs.
    """

    folder: Path
    processes: bool
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    printed: str = ""

    def run(self, block: Block) -> None:
        """Runs one block.

        Raises:
            AssertionError: It does something else than the page says.
        """
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.text, f"block in line {block.line}", "exec"), self.names)
            self.printed = output.getvalue()
        elif block.language == "text" and block.follows and self.printed:
            assert self.printed.strip() == block.text.strip(), f"line {block.line}: this is not what the code prints"
        elif block.language == "console":
            for command in commands(block):
                self._command(command)
        if block.language != "python":
            self.printed = ""

    def _command(self, command: Command) -> None:
        program, *arguments = command.words
        shown = shlex.join(command.words)
        if program == "lightning-petl":
            status, errors = self._petl(adapted(arguments, self.folder))
            last = errors.strip().splitlines()[-1] if errors.strip() else ""
            if command.error:
                assert status > 0, shown
                pattern = re.escape(command.error).replace("…", ".*")
                assert re.fullmatch(pattern, last), f"{shown}\n{last}"
            else:
                assert status == 0, f"{shown}\n{errors}"
            return
        process = {
            # A make inside of a test would run the tests. Dry, it still knows its targets.
            "make": lambda: ["make", "--dry-run", *arguments],
            "pip": lambda: [sys.executable, "-m", *_pip(arguments, self.folder)],
            "python": lambda: [sys.executable, *arguments],
        }[program]()
        done = subprocess.run(process, cwd=self.folder, env=self._environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{shown}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def _petl(self, arguments: list[str]) -> tuple[int, str]:
        if self.processes:
            words = [sys.executable, "-m", "lightning_petl", *arguments]
            done = subprocess.run(words, cwd=self.folder, env=self._environment(), capture_output=True, text=True)
            return done.returncode, done.stderr
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = cli.run(arguments)
        return status, errors.getvalue()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{self.folder / 'installed'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def _pip(arguments: list[str], folder: Path) -> list[str]:
    """An installation without a network, into a folder that only the page's own processes see."""
    what = [re.sub(r"\[[\w,]+\]$", "", word) for word in arguments[1:] if not word.startswith("-")]
    target = ["--target", str(folder / "installed")]
    return ["pip", arguments[0], "--quiet", "--no-deps", "--no-build-isolation", *target, *what]


def adapted(arguments: list[str], folder: Path) -> list[str]:
    """What a test adds to a command: one epoch, small batches, and random weights in place of a download."""
    if arguments[0] not in cli.TRAINER_COMMANDS or {"--help", "--print_config"} & set(arguments):
        return arguments
    files = [value for option, value in pairwise(arguments) if option == "--config"]
    settings = [yaml.safe_load((folder / file).read_text()) for file in files if (folder / file).is_file()]
    added = [*_QUICK, "--trainer.max_epochs", "1"]
    if any("Image" in str(each.get("data", {}).get("class_path", "")) for each in settings):
        added += ["--data.batch_size", "4", "--data.num_workers", "0"]
    if "--model.pretrained" not in arguments:
        for each in settings:
            model = each.get("model", {}).get("init_args", {})
            if model.get("pretrained") is True:
                added += ["--model.pretrained", str(_weights(model["backbone"], folder))]
    return [*arguments, *added]


def _weights(backbone: str, folder: Path) -> Path:
    """A file of random weights that stands for the one that timm would download."""
    path = folder / f"{backbone}.safetensors"
    if not path.exists():
        save_file(timm.create_model(backbone, pretrained=False).state_dict(), path)
    return path
