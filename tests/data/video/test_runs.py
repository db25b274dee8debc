"""Whole runs on videos: what results.json says, on one process and on two."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_petl.demo.moving_digits import make

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SETTINGS = """
model:
  class_path: VideoClassificationTask
  init_args:
    backbone: vit_tiny_patch16_224
    backbone_args: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 4, num_heads: 4, mlp_ratio: 2}
    pretrained: lightning_petl:demo/vit_digits.safetensors
    method: RepAdapter
    head: conv
data:
  class_path: SomethingSomethingV2Data
  init_args: {root: data, frames: 4, rate: 2, batch_size: 3, spatial_views: 3, short_side: 40}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    make(path / "data", train=12, val=4, test=7, frames=12, size=48)
    (path / "settings.yaml").write_text(SETTINGS)
    run(path, "fit", "fit", "--data.num_workers", "2", "--trainer.devices", "1")
    return path


def run(folder: Path, command: str, out: str, *words: str) -> None:
    given = ["--config", "settings.yaml", "--trainer.default_root_dir", out, *words]
    subprocess.run(
        [sys.executable, "-m", "lightning_petl", command, *given],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )


def results(folder: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "results.json").read_text())
    return found


def test_results_say_how_videos_were_read(folder: Path) -> None:
    found = results(folder, "fit")
    assert found["n_expected"] == found["n_scored"] == 4
    data = found["data"]
    assert [library.split()[0] for library in data["video_readers"]] == ["av", "decord"]
    assert data["timeout_s"] == 60
    assert data["sampling"] == {"kind": "DenseSampling", "frames": 4, "short": "repeat_last", "rate": 2, "fps": None}
    assert data["views"] == {"temporal": 1, "spatial": 3}
    nothing = {"videos": 0, "frames": 0}
    assert data["repeated_frames"] == {"train": {"videos_read": 12, **nothing}, "val": {"videos_read": 4, **nothing}}
    assert (folder / "fit" / "merged.safetensors").exists()


def test_two_processes_score_each_video_once(folder: Path) -> None:
    more = ("--model.weights", "fit/merged.safetensors", "--data.temporal_views", "2", "--data.rate", "6")
    run(folder, "test", "one", *more, "--trainer.devices", "1")
    run(folder, "test", "two", *more, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    one, two = results(folder, "one"), results(folder, "two")
    assert one["n_scored"] == two["n_scored"] == 7
    assert one["test/acc1"] == two["test/acc1"]
    assert one["test/loss"] == pytest.approx(two["test/loss"], rel=1e-6)
    # A clip takes frames 0, 6, 12 and 18 of 12, so the last one twice, in each of two views.
    assert one["data"] == two["data"]
    assert one["data"]["repeated_frames"] == {"test": {"videos_read": 7, "videos": 7, "frames": 14}}


def test_predictions_are_by_name(folder: Path) -> None:
    run(folder, "predict", "predicted", "--model.weights", "fit/merged.safetensors", "--trainer.devices", "1")
    with (folder / "predicted" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [next(iter(row.values())) for row in rows]
    assert names == [f"{number}.mp4" for number in range(17, 24)]
