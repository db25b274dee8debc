"""RepAdapter's recipe of segmentation: its values, what they build, and that it trains on a small backbone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_petl import cli
from lightning_petl.tensorfile import read_header

RECIPE = Path(__file__).parents[1] / "configs" / "paper" / "repadapter_ade20k.yaml"


def settings(part: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))[part]["init_args"]
    return found


def test_the_head_of_the_file() -> None:
    lines = RECIPE.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head
    assert max(map(len, lines)) <= 120
    assert head[-2:] == ["# Published: not found", "# Result: unmeasured"]
    assert "Not found: " in " ".join(head)
    assert re.search(r"lightning-petl fit --config configs/paper/repadapter_ade20k\.yaml", "\n".join(head))


def test_values_of_the_official_codes() -> None:
    """Copied by hand from RepAdapter's segmentation_task and SETR_PUP_512x512_160k_ade20k_bs_16.py."""
    model, data = settings("model"), settings("data")
    method = {"hidden_dim": 8, "groups": 2, "scale": 1.0, "dropout": 0.1, "sites": ["attn", "mlp"]}
    assert model["method"]["init_args"] == method
    assert model["train_parameters"] == [".*bias"]
    assert (model["head"], model["auxiliary_layers"], model["auxiliary_weight"]) == ("pup", [9, 14, 19, 23], 0.4)
    assert model["optimizer"]["init_args"] == {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}
    rate = {"head_lr": 10.0, "min_lr": 1e-4, "annealing": "polynomial", "annealing_power": 0.9, "schedule": "step"}
    assert {name: model[name] for name in rate} == rate
    assert (model["inference"], model["window"], model["stride"]) == ("slide", [512, 512], [341, 341])
    assert (data["image_size"], data["batch_size"], data["cat_max_ratio"]) == (512, 16, 0.75)
    steps = (20210 // 16) * yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["trainer"]["max_epochs"]
    assert 160_000 <= steps < 160_000 + 20210 // 16


@pytest.mark.slow
def test_it_trains_folds_and_tests(tmp_path: Path) -> None:
    """On a small new ViT and six drawn scenes; everything else as it stands."""
    random = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 2)):
        for kind, shape in (("images", (40, 52, 3)), ("annotations", (40, 52))):
            folder = tmp_path / "data" / kind / split
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random.integers(0, 151, shape).astype(np.uint8)).save(folder / f"{index}.png")
    small = {
        "model.backbone": "vit_tiny_patch16_224",
        "model.backbone_args": "{img_size: 32, patch_size: 8, depth: 2, embed_dim: 64, num_heads: 2}",
        "model.pretrained": "false",
        "model.head_channels": "8",
        "model.layers": "[1]",
        "model.auxiliary_layers": "[0, 1]",
        "model.window": "[32, 32]",
        "model.stride": "[21, 21]",
        "data.root": str(tmp_path / "data"),
        "data.image_size": "32",
        "data.short_side": "32",
        "data.batch_size": "2",
        "data.num_workers": "0",
        "trainer.max_epochs": "1",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    words = ["--config", str(RECIPE), *(word for key, value in small.items() for word in (f"--{key}", value))]
    assert cli.run(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    extra = read_header(tmp_path / "run" / "adapter.safetensors")["extra"]
    assert isinstance(extra, list)
    assert {"blocks.0.attn.qkv.bias", "patch_embed.proj.bias", "decode_head.norms.0.bias"} <= set(map(str, extra))
    assert not any(str(name).endswith("qkv.weight") for name in extra)
    scores = []
    for kind in ("adapter", "merged"):
        weights = ["--model.weights", str(tmp_path / "run" / f"{kind}.safetensors")]
        assert cli.run(["test", *words, *weights, "--trainer.default_root_dir", str(tmp_path / kind)]) == 0
        scores.append(json.loads((tmp_path / kind / "results.json").read_text()))
    assert scores[0]["n_scored"] == 2
    assert scores[0]["test/loss"] == pytest.approx(scores[1]["test/loss"], rel=1e-4)
