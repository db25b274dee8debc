"""The learning rate over a fit, and what weight decay acts on, seen from a real trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import ConfigError, RepAdapter
from lightning_petl.tasks import ClassificationTask

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
STEPS = 3


class Rates(pl.Callback):
    """Notes the learning rate that each step is taken with."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.last: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.last.append(trainer.optimizers[0].param_groups[-1]["lr"])


def run(folder: Path, **options: Any) -> tuple[Rates, ClassificationTask, pl.Trainer]:
    torch.manual_seed(0)
    task = ClassificationTask(
        backbone="vit_tiny_patch16_224",
        backbone_args=SMALL,
        pretrained=False,
        classes=("a", "b"),
        method=RepAdapter(hidden_dim=2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1.0e-2, weight_decay=0.1),
        **options,
    )
    data = DataLoader(TensorDataset(torch.randn(6, 3, 32, 32), torch.tensor([0, 1] * 3)), batch_size=2)
    rates = Rates()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=folder, max_epochs=4, callbacks=[rates], enable_checkpointing=False, **quiet)
    trainer.fit(task, data)
    return rates, task, trainer


def fit(folder: Path, **options: Any) -> tuple[list[float], ClassificationTask, pl.Trainer]:
    rates, task, trainer = run(folder, **options)
    return rates.seen, task, trainer


def cosine(place: float, length: float) -> float:
    return 1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + math.cos(math.pi * place / length))


def test_by_epoch(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-4)
    expected = [rate for epoch in range(4) for rate in [1e-3 if epoch == 0 else cosine(epoch, 4)] * STEPS]
    assert seen == pytest.approx(expected)


def test_by_step(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, warmup_epochs=1, warmup_lr=0.0, min_lr=1e-4, schedule="step")
    warm = [1e-2 * step / STEPS for step in range(STEPS)]
    assert seen == pytest.approx(warm + [cosine(step, 4 * STEPS) for step in range(STEPS, 4 * STEPS)])


def test_a_cosine_after_the_warm_up(tmp_path: Path) -> None:
    options = {"warmup_epochs": 1, "warmup_prefix": True, "min_lr": 1e-4}
    by_step, _, _ = fit(tmp_path, warmup_lr=0.0, schedule="step", **options)
    warm = [1e-2 * step / STEPS for step in range(STEPS)]
    assert by_step == pytest.approx(warm + [cosine(step, 3 * STEPS) for step in range(3 * STEPS)])
    by_epoch, _, _ = fit(tmp_path, warmup_lr=1e-3, **options)
    assert by_epoch == pytest.approx(
        [rate for rate in (1e-3, *(cosine(epoch, 3) for epoch in range(3))) for _ in range(STEPS)]
    )


def test_a_warm_up_as_long_as_the_fit(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, warmup_epochs=10, warmup_prefix=True, warmup_lr=0.0)
    assert seen == pytest.approx([1e-2 * epoch / 4 for epoch in range(4) for _ in range(STEPS)])


def test_weight_decay_leaves_vectors_out(tmp_path: Path) -> None:
    _, task, trainer = fit(tmp_path, decay_vectors=False)
    matrices, vectors = trainer.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() > 1 for parameter in matrices["params"])
    assert all(parameter.dim() == 1 for parameter in vectors["params"])
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    assert len(matrices["params"]) + len(vectors["params"]) == len(trained)


def test_weight_decay_acts_on_all_by_default(tmp_path: Path) -> None:
    _, _, trainer = fit(tmp_path)
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.1]


def polynomial(step: int, top: float = 1e-2, power: float = 0.9) -> float:
    """As mmcv's poly hook has it: ``(top - min_lr) * (1 - step / steps) ** power + min_lr``."""
    return (top - 1e-4) * (1 - step / (4 * STEPS)) ** power + 1e-4


def test_a_polynomial(tmp_path: Path) -> None:
    options: dict[str, Any] = {"warmup_epochs": 0, "min_lr": 1e-4, "schedule": "step", "annealing": "polynomial"}
    seen, _, _ = fit(tmp_path, **options)
    assert seen == pytest.approx([polynomial(step) for step in range(4 * STEPS)])
    seen, _, _ = fit(tmp_path, **options, annealing_power=2.0)
    assert seen == pytest.approx([polynomial(step, power=2.0) for step in range(4 * STEPS)])


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_the_head_has_a_rate_of_its_own(decay_vectors: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"warmup_epochs": 0, "min_lr": 1e-4, "schedule": "step", "annealing": "polynomial"}
    rates, task, trainer = run(tmp_path, head_lr=10.0, decay_vectors=decay_vectors, **options)
    assert rates.seen == pytest.approx([polynomial(step) for step in range(4 * STEPS)])
    assert rates.last == pytest.approx([polynomial(step, top=0.1) for step in range(4 * STEPS)])
    groups, head = trainer.optimizers[0].param_groups, set(task.backbone.head.parameters())
    kinds = 1 if decay_vectors else 2
    assert [group["initial_lr"] for group in groups] == [1e-2, 0.1] * kinds
    assert [set(group["params"]) <= head for group in groups] == [False, True] * kinds
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0, 0.0][: 2 * kinds]
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(parameter) for group in groups for parameter in group["params"])


def test_a_fit_with_two_rates_goes_on(tmp_path: Path) -> None:
    """The rates of a checkpoint's groups are not multiplied once more."""
    _, _, trainer = run(tmp_path, head_lr=10.0, warmup_epochs=0)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)["optimizer_states"][0]
    assert [group["initial_lr"] for group in saved["param_groups"]] == [1e-2, 0.1]
    _, task, _ = run(tmp_path, head_lr=10.0, warmup_epochs=0)
    optimizer = task.optimizers(use_pl_optimizer=False)
    optimizer.load_state_dict(saved)
    task.learning_rate.scheduler(optimizer, 4, STEPS).step(epoch=0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 0.1])


@pytest.mark.parametrize("options", [{"annealing": "linear"}, {"annealing_power": 0.0}, {"head_lr": 0.0}])
def test_wrong_settings_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"model\\.{next(iter(options))}"):
        fit(tmp_path, **options)


def test_an_unknown_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.schedule"):
        fit(tmp_path, schedule="batch")
