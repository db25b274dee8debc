"""The segmentation quickstart, shortened: its commands run, its files agree, and the table is made of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_petl.demo import quickstart_segmentation as quickstart

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_segmentation.yaml"


@pytest.mark.slow
def test_it_fits_folds_and_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {
        name: ["--model.optimizer.lr", rate, "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "10"]
        for name, rate in (("LinearProbe", "0.01"), ("RepAdapter", "0.01"), ("FullFineTuning", "0.001"))
    }
    assert short.keys() == quickstart.METHODS.keys()
    monkeypatch.setattr(quickstart, "METHODS", short)
    out = tmp_path / "out"
    words = ["quickstart", "--config", str(CONFIG), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    quickstart.main()
    printed = capsys.readouterr().out
    assert "RepAdapter closes" in printed
    for method in short:
        results = {
            kind: json.loads((out / method / f"test_{kind}/results.json").read_text()) for kind in ("adapter", "merged")
        }
        assert results["adapter"]["test/miou"] == pytest.approx(results["merged"]["test/miou"], abs=1e-4)
        assert results["merged"]["n_scored"] == 300
        assert results["merged"]["test/iou/photograph"] > 0.7
        assert f"{100 * results['merged']['test/miou']:.2f}" in printed
        mask = out / method / "predict/masks/images/test/00001.png"
        with Image.open(mask) as image:
            assert (image.mode, image.size) == ("P", (64, 64))
    assert (out / "training_curves.png").stat().st_size > 0


def test_means_over_seeds_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"LinearProbe": (0.2, 0.3), "RepAdapter": (0.5, 0.6), "FullFineTuning": (0.6, 0.8)}
    rows = [
        quickstart.Row(method, seed, 10, 100, miou, miou, miou, 0.9, 5.0)
        for method, both in scores.items()
        for seed, miou in enumerate(both)
    ]
    quickstart.show(rows)
    printed = capsys.readouterr().out
    assert "mean: LinearProbe 25.00, RepAdapter 55.00, FullFineTuning 70.00" in printed
    assert "RepAdapter closes 67% of the way" in printed
