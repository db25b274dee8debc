"""RepAdapter's recipes of video: their values, what they build, and that they train on a small new model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from lightning_petl import RepAdapter, cli, trainable
from lightning_petl.tasks import VideoClassificationTask
from lightning_petl.tensorfile import read_header

PAPER = Path(__file__).parents[1] / "configs" / "paper"
CLASSES = {"ssv2": 174, "hmdb51": 51}
each_recipe = pytest.mark.parametrize("name", CLASSES)


def recipe(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PAPER / f"repadapter_{name}.yaml").read_text(encoding="utf-8"))
    return found


@each_recipe
def test_the_head_of_the_file(name: str) -> None:
    lines = (PAPER / f"repadapter_{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head
    assert max(map(len, lines)) <= 120
    assert head[-1] == "# Result: unmeasured"
    assert any(line.startswith("# Published: not found for RepAdapter.") for line in head)
    assert {"# Not expressed", "# Not from the code"} <= {line.partition(":")[0] for line in head}
    assert re.search(rf"lightning-petl fit --config configs/paper/repadapter_{name}\.yaml", "\n".join(head))


@each_recipe
def test_values_of_the_official_code(name: str) -> None:
    """Copied by hand from RepAdapter's video part and AdaptFormer's code, not from the recipes."""
    model, data = recipe(name)["model"]["init_args"], recipe(name)["data"]["init_args"]
    method = {"hidden_dim": 2, "groups": 2, "scale": 1.0, "dropout": 0.1, "sites": ["attn", "mlp"]}
    assert model["method"]["init_args"] == method
    assert model["backbone_args"] == {"tubelet_size": 2, "image_size": 224}
    assert (model["head"], model["head_args"]) == ("mean", {"batch_norm": True})
    trainer = recipe(name)["trainer"]
    batch = data["batch_size"] * trainer["accumulate_grad_batches"] * trainer["devices"]
    optimizer = model["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert optimizer["init_args"] == {"lr": 0.1 * batch / 256, "momentum": 0.9, "weight_decay": 0.0}
    assert (trainer["max_epochs"], model["warmup_epochs"], data["batch_size"]) == (90, 10, 16)
    assert "gradient_clip_val" not in trainer
    assert (data["frames"], data["rate"], data["image_size"]) == (8, 4, 224)
    assert (data["temporal_views"], data["spatial_views"]) == (4, 3)
    assert data["horizontal_flip"] is (name == "hmdb51")


@each_recipe
def test_what_it_builds(name: str) -> None:
    """73,776 numbers in the adapters of a ViT-B with h = 2, fc_norm's two vectors, and the linear layer of the head."""
    arguments = recipe(name)["model"]["init_args"]
    with torch.device("meta"):
        task = VideoClassificationTask(
            arguments["backbone"],
            RepAdapter(**arguments["method"]["init_args"]),
            frames=recipe(name)["data"]["init_args"]["frames"],
            head=arguments["head"],
            head_args=arguments["head_args"],
            backbone_args=arguments["backbone_args"],
            train_parameters=arguments["train_parameters"],
            pretrained=False,
            num_classes=CLASSES[name],
        )
    trained = trainable(task.backbone)
    assert sum(parameter.numel() for parameter in trained.values()) == 73_776 + 2 * 768 + 769 * CLASSES[name]
    assert task.trained_further == ("fc_norm.weight", "fc_norm.bias")
    assert isinstance(task.backbone.get_submodule("video_head.classifier.0"), nn.BatchNorm1d)


@pytest.mark.slow
def test_it_trains_folds_and_tests(tmp_path: Path) -> None:
    """On a small new model and drawn clips; everything else as it stands."""
    pytest.importorskip("av")
    from lightning_petl.demo.moving_digits import make

    make(tmp_path / "data", train=32, val=8, test=8)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    small = {
        "model.backbone_args": json.dumps(sizes | {"image_size": 32, "patch_size": 16, "tubelet_size": 2}),
        "model.pretrained": "false",
        "data.root": str(tmp_path / "data"),
        "data.labels": "labels.json",
        "data.train": "train.json",
        "data.val": "validation.json",
        "data.test": "test.json",
        "data.rate": "2",
        "data.image_size": "32",
        "data.short_side": "32",
        "data.num_workers": "0",
        "trainer.max_epochs": "2",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    file = str(PAPER / "repadapter_ssv2.yaml")
    words = ["--config", file, *(word for key, value in small.items() for word in (f"--{key}", value))]
    run = tmp_path / "run"
    assert cli.run(["fit", *words, "--trainer.default_root_dir", str(run)]) == 0
    extra = read_header(run / "adapter.safetensors")["extra"]
    assert {"fc_norm.bias", "video_head.classifier.0.running_var", "video_head.classifier.1.weight"} <= set(extra)  # type: ignore[arg-type]
    weights = ["--model.weights", str(run / "merged.safetensors"), "--trainer.default_root_dir", str(tmp_path / "test")]
    assert cli.run(["test", *words, *weights]) == 0
    assert json.loads((tmp_path / "test" / "results.json").read_text())["n_scored"] == 8
