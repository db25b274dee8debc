"""What `lightning-petl inspect` says of a file's backbone and head."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import FRAMES, VIT
from torch import nn

from lightning_petl import LoRA, cli, inject, save_adapter
from lightning_petl.backbones import Architecture, FrameClassifier, Segmenter


def told(backbone: Architecture, path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines about a file whose header says that it is for a backbone."""
    model = inject(nn.Sequential(nn.Linear(4, 4)), LoRA(targets=("0",), rank=1))
    save_adapter(model, path, (), {"classes": None}, backbone.record())
    capsys.readouterr()
    assert cli.run(["inspect", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [({}, "under the conv head"), ({"hidden": 16, "kernel": 3}, "under the conv head (hidden=16, kernel=3)")],
)
def test_a_head_over_frames(
    arguments: dict[str, int], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = FrameClassifier("vit_tiny_patch16_224", VIT, 6, FRAMES, "conv", arguments)
    assert f"frames    {FRAMES}, {line}" in told(backbone, tmp_path / "adapter.safetensors", capsys)


@pytest.mark.parametrize(
    ("channels", "layers", "auxiliary", "line"),
    [
        (None, None, (), "mla head on its own layers"),
        (64, (0, 1), (), "mla head of 64 channels on layers [0, 1]"),
        (8, None, (1,), "mla head of 8 channels on its own layers, auxiliary heads on layers [1]"),
    ],
)
def test_a_decode_head(
    channels: int | None,
    layers: tuple[int, ...] | None,
    auxiliary: tuple[int, ...],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = Segmenter("vit_tiny_patch16_224", VIT, 5, "mla", channels, layers, auxiliary)
    assert f"pixels    {line}" in told(backbone, tmp_path / "adapter.safetensors", capsys)
