"""Every file of configs/ opens with a command that the real parser takes, sets one axis, cites, and says what it gave.

The recipes below configs/paper have rules of their own, in test_paper_configs.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn

from lightning_petl import backbones
from lightning_petl.backbones.video_transformers import FAMILIES
from lightning_petl.cli import trainer
from lightning_petl.cli.trainer import PETLCLI

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if "paper" not in path.parts)
BACKBONES = [path for path in FILES if path.parent.name == "backbone"]

_MODEL = "model.init_args."
AXES = {
    "backbone": ("model.class_path", f"{_MODEL}backbone", f"{_MODEL}backbone_args", f"{_MODEL}pretrained"),
    "method": ("model.class_path", f"{_MODEL}method"),
    "data": ("data",),
    # How training runs: its length and its optimizer, whatever is trained.
    "trainer": (
        "trainer",
        f"{_MODEL}optimizer",
        *(f"{_MODEL}{name}" for name in ("warmup_epochs", "warmup_lr", "min_lr")),
    ),
}
SOURCE = re.compile(r"arXiv|official code|[Ss]ource|PEFT|\bours\b|[Ii]t has no settings")


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def opening(path: Path) -> list[str]:
    """Lines of the comment that a file opens with, without their mark."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def commands(path: Path) -> list[list[str]]:
    """The commands of the opening comment, each as the words that a shell would pass on."""
    text = "\n".join(opening(path)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.strip().startswith("lightning-petl ")]


def given(command: list[str]) -> list[str]:
    """The configuration files of a command."""
    return [value for option, value in pairwise(command) if option == "--config"]


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def settings(path: Path) -> dict[str, Any]:
    return dict(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))


class _ParsedError(Exception):
    """Ends a command once its settings are known."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command as far as its settings are complete and checked, and returns them."""

    def stop(self: PETLCLI) -> None:
        self._dump_config()
        raise _ParsedError(self.config_dump)

    def parse(command: list[str]) -> dict[str, Any]:
        with pytest.raises(_ParsedError) as stopped:
            trainer.run(command)
        return dict(leaves(stopped.value.args[0]))

    monkeypatch.setattr(PETLCLI, "before_instantiate_classes", stop)
    monkeypatch.chdir(ROOT)
    return parse


def test_the_files_are_found() -> None:
    assert {"quickstart.yaml", "backbone/vit_base.yaml", "trainer/default.yaml"} <= set(map(name, FILES))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_comment_keeps_the_rules(path: Path) -> None:
    lines = opening(path)
    assert commands(path), "the comment names no command"
    assert any(name(path) in file for command in commands(path) for file in given(command)), "its command leaves it out"
    result = [line for line in lines if line.strip()][-1]
    assert re.match(r"Result: (unmeasured\b|.*\d)", result), "the comment ends with the result"
    assert SOURCE.search(" ".join(lines)), "the comment says where nothing comes from"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != CONFIGS], ids=name)
def test_a_file_sets_its_axis_alone(path: Path) -> None:
    allowed = AXES[path.parent.name]
    strange = [key for key in settings(path) if not any(key == axis or key.startswith(f"{axis}.") for axis in allowed)]
    assert not strange


@pytest.mark.parametrize("path", FILES, ids=name)
def test_its_commands_are_parsed(path: Path, parsed: Any) -> None:
    for command in commands(path):
        found = parsed(command)
        overridden = {option.removeprefix("--") for option in command if option.startswith("--")}
        wanted: dict[str, Any] = {}
        for file in given(command):
            assert (ROOT / file).is_file(), file
            wanted |= settings(ROOT / file)
        for key, value in wanted.items():
            if key in overridden or value == {}:
                continue
            if key.endswith("class_path"):
                assert str(found[key]).rpartition(".")[2] == str(value).rpartition(".")[2]
            else:
                assert found[key] == value, key


def _headless(backbone: str, arguments: dict[str, Any]) -> nn.Module:
    if backbone in FAMILIES:
        return backbones.VideoTransformer(backbone, arguments, num_classes=0).build()
    return backbones.create(backbone, arguments, num_classes=0)


@pytest.mark.parametrize("path", BACKBONES, ids=name)
def test_a_backbone_is_what_its_comment_says(path: Path) -> None:
    """Built without memory: its tag and its arguments are timm's, and its size is the one in the comment."""
    arguments = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
    with torch.device("meta"):
        model = _headless(arguments["backbone"], arguments.get("backbone_args", {}))
    size = sum(parameter.numel() for parameter in model.parameters())
    told = re.search(r"Parameters without the head: ([\d,]+)", "\n".join(opening(path)))
    if arguments["pretrained"] is True:
        assert arguments["backbone"] in FAMILIES or timm.get_pretrained_cfg(arguments["backbone"]).tag
        assert told is not None
        assert int(told.group(1).replace(",", "")) == size
    else:
        assert backbones.timm_models.weights_file(arguments["pretrained"]).is_file()
