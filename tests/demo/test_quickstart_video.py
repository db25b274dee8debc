"""The video quickstart, shortened: its commands run, its files agree, and the control shuffles frames alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from lightning_petl.demo import quickstart_video as quickstart

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_video.yaml"


@pytest.mark.slow
def test_it_fits_folds_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from lightning_petl.demo.moving_digits import make

    make(tmp_path / "clips", train=64, val=16, test=24)
    limit = ["--trainer.max_epochs", "2", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]
    monkeypatch.setattr(quickstart, "RUNS", {run: [*words, *limit] for run, words in quickstart.RUNS.items()})
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["quickstart", "--config", str(CONFIG), "--out", str(out), "--clips", str(tmp_path / "clips")]
    )
    quickstart.main()
    printed = capsys.readouterr().out
    for run in quickstart.RUNS:
        adapter, merged = (
            json.loads((out / run / f"test_{kind}/results.json").read_text()) for kind in ("adapter", "merged")
        )
        assert adapter["test/acc1"] == merged["test/acc1"]
        assert adapter["test/loss"] == pytest.approx(merged["test/loss"], rel=1e-4)
        assert merged["n_scored"] == merged["n_expected"] == 24
        assert f"{merged['test/acc1']:.3f}" in printed
    assert (out / "training_curves.png").stat().st_size > 0


def test_means_over_seeds_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        quickstart.Row(run, seed, 5, accuracy, accuracy, 9.0, 12.0)
        for run in ("mean", "adapter")
        for seed, accuracy in enumerate((0.5, 0.6, 0.7))
    ]
    quickstart.show(rows)
    assert "mean: probe, mean of the frames 0.600, RepAdapter, convolution 0.600" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(5,), (5, 2)])
def test_the_control_shuffles_the_frames_of_each_clip_alone(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Every clip keeps its own frames, whole, in an order of its own."""
    data = _shuffled(seed=3)
    frames = torch.arange(40.0).reshape(5, 8, 1, 1, 1)
    clips = frames if len(shape) == 1 else torch.stack([frames, 100 + frames], dim=1)
    clips = clips.expand(*clips.shape[:-3], 3, 4, 4)
    labels = torch.arange(5)
    found, same = data.on_after_batch_transfer((clips, labels), 0)
    assert same is labels
    assert found.shape == clips.shape
    assert torch.equal(found.sort(dim=-4).values, clips)
    assert not torch.equal(found, clips)
    assert torch.equal(found[..., 0, 0, 0], found[..., 2, 3, 3])
    places = found[..., 0, 0, 0].flatten(0, -2) % 8
    assert len({tuple(order) for order in places.tolist()}) > 1
    again, _ = _shuffled(seed=3).on_after_batch_transfer((clips, labels), 0)
    assert torch.equal(found, again)
    more, _ = data.on_after_batch_transfer((clips, labels), 0)
    assert not torch.equal(found, more)


def _shuffled(seed: int):  # type: ignore[no-untyped-def]
    from lightning_petl.demo.shuffled_frames import ShuffledFramesData

    data = ShuffledFramesData.__new__(ShuffledFramesData)  # without files
    data.seed = seed
    return data
