"""Checkpoints: small, made of tensors and plain values, and refused by field where they do not belong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fake_plugins import Environment, environment
from fake_plugins import method as source
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import (
    AdapterFileError,
    BackboneMismatch,
    ConfigError,
    FullFineTuning,
    LinearProbe,
    Method,
    PETLError,
    RepAdapter,
    save_adapter,
    trainable,
)
from lightning_petl.plugins import load_method
from lightning_petl.tasks import ClassificationTask
from lightning_petl.testing import add_noise

__all__ = ["environment"]

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
Checkpoint = dict[str, Any]


def new_task(method: Method | None = None, seed: int = 7, **changes: Any) -> ClassificationTask:
    """A task on a small ViT; the frozen weights follow from the seed."""
    settings: dict[str, Any] = {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": SMALL,
        "pretrained": False,
        "classes": tuple("abcde"),
        "warmup_epochs": 0,
    }
    torch.manual_seed(seed)
    return ClassificationTask(method=method or RepAdapter(hidden_dim=4, dropout=0.0), **(settings | changes))


def images(size: int = 32, classes: int = 5) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, size, size, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(4) % classes), batch_size=2)


def trainer(folder: Path, epochs: int = 1, steps: int = 2) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        limit_train_batches=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(task: ClassificationTask, folder: Path, **options: int) -> Path:
    """Trains for a moment and saves as the Trainer does."""
    run = trainer(folder, **options)
    run.fit(task, images())
    run.save_checkpoint(folder / "some.ckpt")
    return folder / "some.ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(new_task(), tmp_path_factory.mktemp("saved"))


def load(path: Path) -> Checkpoint:
    found: Checkpoint = torch.load(path, weights_only=True)
    return found


def plain(value: object) -> bool:
    """Whether a value is made of tensors and what JSON has."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, torch.Tensor | str | int | float | bool)


def test_it_holds_what_trains_and_plain_values(saved: Path) -> None:
    found, task = load(saved), new_task()
    assert found["state_dict"].keys() == {f"backbone.{name}" for name in trainable(task.backbone)}
    assert "backbone.head.weight" in found["state_dict"]
    assert "backbone.blocks.1.mlp.fc1.adapter.up.bias" in found["state_dict"]
    assert len(found["optimizer_states"][0]["state"]) == len(found["state_dict"])
    assert plain(found)
    assert found["lightning_petl"]["method.name"] == "RepAdapter"
    assert found["lightning_petl"]["method.distribution"] == "lightning-petl"
    assert found["lightning_petl"]["method.arguments"] == task.method.arguments
    assert found["lightning_petl"]["classes"] == list("abcde")


def test_full_fine_tuning_keeps_every_parameter_once(tmp_path: Path) -> None:
    task = new_task(FullFineTuning())
    found = load(fit(task, tmp_path))
    assert found["state_dict"].keys() == {f"backbone.{name}" for name, _ in task.backbone.named_parameters()}


def test_a_checkpoint_of_vit_b_is_under_three_per_cent_of_the_backbone(tmp_path: Path) -> None:
    task = new_task(RepAdapter(), backbone="vit_base_patch16_224", backbone_args={}, classes=None, num_classes=100)
    run = trainer(tmp_path, steps=1)
    run.fit(task, DataLoader(TensorDataset(torch.randn(1, 3, 224, 224), torch.tensor([3])), batch_size=1))
    run.save_checkpoint(tmp_path / "vit_b.ckpt")
    adapters = sum(p.numel() for name, p in trainable(task.backbone).items() if not name.startswith("head."))
    assert adapters == 239_808
    backbone = sum(p.numel() * p.element_size() for p in task.backbone.parameters()) - 4 * adapters
    assert backbone > 340e6
    assert (tmp_path / "vit_b.ckpt").stat().st_size < 0.03 * backbone, "two moments of Adam for each parameter included"
    found = load(tmp_path / "vit_b.ckpt")
    assert sum(tensor.numel() for tensor in found["state_dict"].values()) == adapters + 769 * 100
    task.on_load_checkpoint(found)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, run = new_task(), trainer(tmp_path, epochs=2)
    run.callbacks.append(pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    run.fit(whole, images())
    resumed, again = new_task(), trainer(tmp_path, epochs=2)
    assert load(tmp_path / "epoch=0.ckpt")["global_step"] == 2
    again.fit(resumed, images(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert again.global_step == run.global_step == 4
    expected, found = trainable(whole.backbone), trainable(resumed.backbone)
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-6, atol=1e-7)


# -- what does not belong ----------------------------------------------------------------------------------------------


def one_frozen_value() -> ClassificationTask:
    task = new_task()
    with torch.no_grad():
        task.backbone.get_parameter("norm.bias")[0] += 1e-6
    return task


OTHER_TASKS: dict[str, tuple[Callable[[], ClassificationTask], type[PETLError], str]] = {
    "another method": (lambda: new_task(LinearProbe()), ConfigError, "method.name"),
    "other arguments": (lambda: new_task(RepAdapter(hidden_dim=4, scale=2.0)), ConfigError, "method.arguments"),
    "other size": (lambda: new_task(RepAdapter(hidden_dim=8)), ConfigError, "method.arguments"),
    "another backbone": (lambda: new_task(backbone="vit_small_patch16_224"), ConfigError, "backbone.name"),
    "more classes": (lambda: new_task(classes=tuple("abcdef")), ConfigError, "num_classes"),
    "classes in another order": (lambda: new_task(classes=tuple("bacde")), ConfigError, "classes"),
    "classes without names": (lambda: new_task(classes=None, num_classes=5), ConfigError, "classes"),
    "other weights": (lambda: new_task(seed=8), BackboneMismatch, "backbone.fingerprint"),
    "one frozen value": (one_frozen_value, BackboneMismatch, "backbone.fingerprint"),
    "a deeper backbone": (
        lambda: new_task(backbone_args=SMALL | {"depth": 3}), ConfigError, "backbone.arguments.depth",
    ),
}  # fmt: skip


def refused(task: ClassificationTask, found: Checkpoint, error: type[PETLError], field: str) -> str:
    """Asserts that a checkpoint is refused by an error of one line that names the field."""
    with pytest.raises(error) as caught:
        task.on_load_checkpoint(found)
    assert caught.value.where == f"ckpt_path: {field}".removesuffix(": ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("other", "error", "field"), OTHER_TASKS.values(), ids=OTHER_TASKS)
def test_a_checkpoint_of_another_task_is_refused(
    other: Callable[[], ClassificationTask], error: type[PETLError], field: str, saved: Path
) -> None:
    refused(other(), load(saved), error, field)
    new_task().on_load_checkpoint(load(saved))


UP = "backbone.blocks.0.attn.qkv.adapter.up.weight"


def lose(name: str) -> Callable[[Checkpoint], object]:
    return lambda found: found["state_dict"].pop(name)


def put(name: str, value: object) -> Callable[[Checkpoint], object]:
    return lambda found: found["state_dict"].update({name: value})


CHANGED: dict[str, tuple[Callable[[Checkpoint], object], str]] = {
    "missing tensor": (lose(UP), UP),
    "missing head": (lose("backbone.head.bias"), "backbone.head.bias"),
    "unknown tensor": (put(f"{UP}s", torch.ones(2)), f"{UP}s"),
    "frozen tensor": (put("backbone.norm.weight", torch.ones(32)), "backbone.norm.weight"),
    "misshapen tensor": (put(UP, torch.ones(16, 2)), UP),
    "no tensor": (put(UP, 3.0), UP),
    "no tensors": (lambda found: found["state_dict"].clear(), "backbone.blocks.0.attn.qkv.adapter.down.bias"),
    "no state": (lambda found: found.pop("state_dict"), "state_dict"),
    "no record": (lambda found: found.pop("lightning_petl"), ""),
    "record of another kind": (lambda found: found.update(lightning_petl="RepAdapter"), ""),
}


@pytest.mark.parametrize(("change", "field"), CHANGED.values(), ids=CHANGED)
def test_a_checkpoint_with_other_tensors_is_refused(
    change: Callable[[Checkpoint], object], field: str, saved: Path
) -> None:
    found = copy.deepcopy(load(saved))
    change(found)
    refused(new_task(), found, AdapterFileError, field)


def test_the_trainer_refuses_before_it_changes_the_task(saved: Path, tmp_path: Path) -> None:
    found = load(saved)
    lose(UP)(found)
    torch.save(found, tmp_path / "other.ckpt")
    task = new_task()
    before = {name: (id(tensor), tensor.tolist()) for name, tensor in task.state_dict().items()}
    for start in (trainer(tmp_path, epochs=2).fit, trainer(tmp_path).validate):
        with pytest.raises(AdapterFileError, match=r"1 tensors are missing or unknown, backbone\.blocks\.0"):
            start(task, images(), ckpt_path=tmp_path / "other.ckpt")
        after = task.state_dict()
        assert before == {name: (before[name][0], after[name].tolist()) for name in before}


def test_a_checkpoint_of_somebody_else_is_refused(saved: Path, tmp_path: Path) -> None:
    class Other(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = new_task().backbone

    other = trainer(tmp_path)
    other.strategy.connect(Other())
    other.save_checkpoint(tmp_path / "other.ckpt", weights_only=True)
    assert "not one of lightning-petl" in refused(new_task(), load(tmp_path / "other.ckpt"), AdapterFileError, "")


def test_a_checkpoint_is_not_loaded_over_weights(saved: Path, tmp_path: Path) -> None:
    task = new_task()
    save_adapter(task.backbone, tmp_path / "a.safetensors", ("head",))
    task = new_task(weights=str(tmp_path / "a.safetensors"))
    refused(task, load(saved), ConfigError, "")


def test_two_methods_with_one_name_are_told_apart(environment: Environment, tmp_path: Path) -> None:
    for key in "ab":
        environment.install(f"petl-{key}", {"ia3": f"petl_{key}:IA3"}, {f"petl_{key}": source("IA3")})
    found = load(fit(new_task(load_method("petl-a:ia3")()), tmp_path))
    new_task(load_method("petl-a:ia3")()).on_load_checkpoint(found)
    told = refused(new_task(load_method("petl-b:ia3")()), found, ConfigError, "method.distribution")
    assert "petl-a" in told
    assert "petl-b" in told


def test_drifting_statistics_are_kept(tmp_path: Path) -> None:
    """BatchNorm in training mode changes buffers of the frozen backbone: they are part of what was trained."""
    method = RepAdapter(targets=(r"layer\d\.\d\.downsample\.0",))
    options = {"backbone": "resnet18", "backbone_args": {}, "backbone_mode": "train"}
    task = new_task(method, **options)
    found = load(fit(task, tmp_path))
    assert "backbone.layer1.0.bn1.running_mean" in found["state_dict"]
    fresh = new_task(method, **options)
    add_noise([fresh.backbone.get_buffer("layer1.0.bn1.running_mean")])
    trainer(tmp_path).validate(fresh, images(), ckpt_path=tmp_path / "some.ckpt", verbose=False)
    assert torch.equal(
        fresh.backbone.get_buffer("layer1.0.bn1.running_mean"), task.backbone.get_buffer("layer1.0.bn1.running_mean")
    )
    steady = new_task(method, **(options | {"backbone_mode": "bn_eval"}))
    refused(steady, found, BackboneMismatch, "backbone.fingerprint")
