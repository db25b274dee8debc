"""Parameters that train besides adapters and head: chosen by name, counted, stored, restored, and folded into."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import ARC, SSF, ConfigError, Consolidator, LoRA, Method, RepAdapter, load_adapter, trainable
from lightning_petl.backbones import create
from lightning_petl.callbacks import Reparameterize
from lightning_petl.store import load_merged
from lightning_petl.tasks import ClassificationTask
from lightning_petl.tensorfile import read_header
from lightning_petl.testing import add_noise

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
METHODS = (RepAdapter(hidden_dim=4, dropout=0.0), ARC(rank=4, dropout=0.0), LoRA(rank=2), SSF(), Consolidator())
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def new_task(method: Method, patterns: list[str], **options: Any) -> ClassificationTask:
    torch.manual_seed(3)
    return ClassificationTask(
        "vit_tiny_patch16_224",
        method,
        backbone_args=SMALL,
        pretrained=False,
        num_classes=3,
        warmup_epochs=0,
        train_parameters=patterns,
        **options,
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_bias_trains_is_stored_and_folds(method: Method, tmp_path: Path) -> None:
    task = new_task(method, [".*bias"])
    plain = create("vit_tiny_patch16_224", SMALL, 3)
    biases = [name for name, _ in plain.named_parameters() if name.endswith("bias")]
    assert list(task.trained_further) == biases
    data = DataLoader(TensorDataset(X, torch.arange(4) % 3), batch_size=2)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        callbacks=[Reparameterize()],
        logger=pl.loggers.CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = {name: tensor.detach().clone() for name, tensor in trainable(task.backbone).items()}
    trainer.fit(task, data)
    for name, tensor in trainable(task.backbone).items():
        assert not torch.equal(tensor, before[name]), name
    header = read_header(tmp_path / "adapter.safetensors")
    assert set(biases) <= set(header["extra"])  # type: ignore[arg-type]
    task.eval()
    torch.manual_seed(3)
    fresh = create("vit_tiny_patch16_224", SMALL, 3)
    with torch.no_grad():
        wanted = task(X)
        loaded = load_adapter(fresh, tmp_path / "adapter.safetensors").eval()
        torch.testing.assert_close(loaded(X), wanted)
        folded = create("vit_tiny_patch16_224", SMALL, 3)
        load_merged(folded, tmp_path / "merged.safetensors")
        torch.testing.assert_close(folded.eval()(X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_gradient_of_an_adapted_layers_bias(method: Method) -> None:
    """Methods have backward passes of their own: a bias that trains must get what differences give."""
    layer = "attn.qkv" if isinstance(method, LoRA) else "mlp.fc1"
    task = new_task(method, [rf"blocks\.1\.{layer}\.bias"]).double().train()
    add_noise(trainable(task.backbone).values(), std=0.05)
    x, name = X.double(), f"blocks.1.{layer}.base.bias"
    task(x).square().sum().backward()
    found = task.backbone.get_parameter(name).grad
    assert found is not None
    step = 1e-6
    slopes = []
    for index in (0, 17, 63):
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(task.backbone).eval()
            with torch.no_grad():
                moved.get_parameter(name)[index] += sign * step
                values.append(float(moved(x).square().sum()))
        slopes.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(found[[0, 17, 63]], torch.tensor(slopes, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_they_are_counted_and_kept_in_checkpoints(tmp_path: Path) -> None:
    task = new_task(RepAdapter(hidden_dim=4), ["norm.*"])
    assert task.trained_further == ("norm.weight", "norm.bias")
    without = sum(p.numel() for p in new_task(RepAdapter(hidden_dim=4), []).parameters() if p.requires_grad)
    assert sum(p.numel() for p in task.parameters() if p.requires_grad) == without + 64
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert {"backbone.norm.weight", "backbone.norm.bias"} <= checkpoint["state_dict"].keys()
    with pytest.raises(Exception, match=r"backbone\.(norm|fingerprint)"):
        new_task(RepAdapter(hidden_dim=4), []).on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["fc_norm.*"], r"matches no parameter of the backbone \[model\.train_parameters\].*near misses: .*norm"),
        (["norm"], r"'norm' matches no parameter"),
        ([".*bias", "nor.*", "what"], r"'what' matches no parameter"),
        (["*bias"], r"is no regular expression"),
        ([".*qkv.*"], r"blocks\.0\.attn\.qkv\.weight belongs to an adapted layer"),
    ],
)
def test_bad_patterns_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        new_task(RepAdapter(hidden_dim=4), patterns)
