"""timm models over frames: the head is one more child, and everything else is timm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from clips import CLASSES, FRAMES, VIT, clips
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_petl import (
    ARC,
    SSF,
    BitFit,
    ConfigError,
    Consolidator,
    FullFineTuning,
    LinearProbe,
    LoRA,
    Method,
    RepAdapter,
    adapted_layers,
    cli,
    inject,
    save_adapter,
    trainable,
)
from lightning_petl.backbones import FrameClassifier, architecture
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import add_noise

HEADS: dict[str, dict[str, Any]] = {
    "mean": {"batch_norm": True},
    "conv": {"hidden": 16, "dropout": 0.1},
    "attention": {"hidden": 16, "heads": 2, "depth": 2},
}
METHODS: tuple[Method, ...] = (
    RepAdapter(), ARC(rank=4), Consolidator(), Consolidator(train_norms_and_biases=True), LoRA(rank=2), SSF(), BitFit(),
    LinearProbe(), FullFineTuning(),
)  # fmt: skip


def new(head: str = "conv", name: str = "vit_tiny_patch16_224", **options: Any) -> FrameClassifier:
    arguments = VIT if name.startswith("vit") else {}
    return FrameClassifier(name, arguments | options, CLASSES, FRAMES, head, HEADS[head])  # type: ignore[arg-type]


def built(chosen: FrameClassifier, pretrained: bool | str = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return chosen.build(pretrained).eval()


def run(chosen: FrameClassifier, model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return chosen.run(model, x)


def test_all_names_but_the_heads_are_timms() -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)
    found = built(new()).state_dict()
    assert {name for name in found if not name.startswith("video_head.")} == plain.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_any_image_model_serves(name: str) -> None:
    with torch.device("meta"):
        model = new("mean", name).build()
    assert model.get_submodule("video_head.classifier.1").weight.shape[0] == CLASSES


def test_a_model_without_pooled_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gives no features \(images, width\) \[model\.backbone\]"):
        new("mean", "vit_tiny_patch16_224", global_pool="").build()


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_the_head_over_each_frames_features(head: str) -> None:
    chosen = new(head)
    model, x = built(chosen), clips(2)
    features = torch.stack([torch.stack([model(frame[None])[0] for frame in clip]) for clip in x])
    expected = model.get_submodule("video_head")(features)
    torch.testing.assert_close(run(chosen, model, x), expected)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("head", HEADS)
def test_no_method_adapts_the_head(head: str, method: Method) -> None:
    chosen = new(head)
    model = inject(built(chosen), method)
    plain = built(new(head))
    assert not [path for path in adapted_layers(model) if path.startswith("video_head")]
    inside = [name for name in trainable(model) if name.startswith("video_head")]
    assert isinstance(method, BitFit | FullFineTuning | Consolidator) or not inside
    without = inject(timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT), method)
    assert list(adapted_layers(model)) == list(adapted_layers(without))
    assert (
        model.get_submodule("video_head").state_dict().keys() == plain.get_submodule("video_head").state_dict().keys()
    )


def test_weights_of_timms_naming_load_without_a_head(tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)
    save_file(plain.state_dict(), tmp_path / "a.safetensors")
    model = built(new(), str(tmp_path / "a.safetensors"))
    assert torch.equal(model.get_parameter("blocks.0.attn.qkv.weight"), plain.get_parameter("blocks.0.attn.qkv.weight"))


def test_a_classifiers_file_loads_and_its_head_is_left_out(tmp_path: Path) -> None:
    """timm's file of a model with its classifier, which this model lacks."""
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=9, **VIT)
    save_file(plain.state_dict(), tmp_path / "a.safetensors")
    model = built(new(), str(tmp_path / "a.safetensors"))
    assert torch.equal(model.get_parameter("norm.weight"), plain.get_parameter("norm.weight"))


@pytest.mark.parametrize("head", HEADS)
def test_the_commands_take_its_files(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """merge, verify, inspect and export, from the files alone; the head's statistics come back."""
    chosen = new(head)
    model = built(chosen)
    save_file(
        {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("video_head")},
        tmp_path / "backbone.safetensors",
    )
    inject(model, RepAdapter(hidden_dim=4))
    model.get_submodule("video_head").requires_grad_(True)
    add_noise(trainable(model).values(), std=0.1)
    model.train()
    for _ in range(3):
        chosen.run(model, clips(4))  # moves the statistics
    model.eval()
    wanted, adapter = run(chosen, model, clips(2)), tmp_path / "adapter.safetensors"
    save_adapter(model, adapter, ("video_head",), {"classes": None}, chosen.record())
    assert architecture(read_header(adapter)["backbone"], "file") == chosen  # type: ignore[arg-type]
    backbone, merged = str(tmp_path / "backbone.safetensors"), tmp_path / "merged.safetensors"
    assert cli.run(["merge", str(adapter), "--backbone", backbone, "--out", str(merged)]) == 0
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["model"]["inputs"] == 8
    assert certificate["model"]["float64"] < 1e-9
    fresh = built(chosen, seed=3)
    fresh.load_state_dict(load_file(merged), strict=True)
    torch.testing.assert_close(run(chosen, fresh, clips(2)), wanted, rtol=1e-4, atol=1e-5)
    assert (
        cli.run(["verify", str(tmp_path / "adapter.safetensors"), str(merged), str(tmp_path / "certificate.json")]) == 0
    )
    capsys.readouterr()
    assert cli.run(["inspect", str(adapter)]) == 0
    told = capsys.readouterr().out
    assert f"frames    {FRAMES}, under the {head} head" in told
    out = tmp_path / "peft"
    assert cli.run(["export", str(adapter), "--to", "peft", "--backbone", backbone, "--out", str(out)]) == 0
    assert "video_head" in (out / "adapter_config.json").read_text()
