"""The way of a task through the command line: trained, stored, tested from its file, and never merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lightning_petl import cli

METHODS = {
    "AdaptFormer": {"hidden_dim": 4},
    "Convpass": {"hidden_dim": 4},
    "HoulsbyAdapter": {"hidden_dim": 4},
    "VPT": {"tokens": 4, "patch_size": 8},
}
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
WEIGHTS = "lightning_petl:demo/vit_digits.safetensors"


def configuration(method: str, folder: Path) -> str:
    settings = {
        "model": {
            "class_path": "ClassificationTask",
            "init_args": {
                "backbone": "vit_tiny_patch16_224",
                "backbone_args": SIZES,
                "pretrained": WEIGHTS,
                "method": {"class_path": method, "init_args": METHODS[method]},
            },
        },
        "data": {"class_path": "DigitsData", "init_args": {"classes": [5, 6], "batch_size": 32}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.mark.parametrize("method", METHODS)
def test_fit_test_and_no_merge(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = configuration(method, tmp_path), tmp_path / "run"
    assert cli.run(["fit", "--config", config, "--trainer.default_root_dir", str(run)]) == 0
    adapter = run / "adapter.safetensors"
    assert adapter.exists()
    assert not (run / "merged.safetensors").exists()
    options = ["--ckpt_path", str(next((run / "checkpoints").glob("best-*.ckpt")))], ["--model.weights", str(adapter)]
    found = []
    for number, source in enumerate(options):
        folder = tmp_path / str(number)
        assert cli.run(["test", "--config", config, "--trainer.default_root_dir", str(folder), *source]) == 0
        found.append(json.loads((folder / "results.json").read_text()))
    assert found[0]["test/loss"] == pytest.approx(found[1]["test/loss"], rel=1e-6)
    assert found[0]["test/acc1"] == found[1]["test/acc1"]
    capsys.readouterr()
    out = tmp_path / "merged.safetensors"
    assert cli.run(["merge", str(adapter), "--backbone", WEIGHTS, "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"lightning-petl: error: {method} does not fold [method]")
    assert not out.exists()
