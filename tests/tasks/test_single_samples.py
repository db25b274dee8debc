"""Training batches of one sample: refused before the first step where a BatchNorm cannot take them, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clips
import pytest
import segmenters
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_petl import ConfigError
from lightning_petl.tasks import PETLTask


def scenes(count: int, batch_size: int, side: int = 32, **options: Any) -> DataLoader[Any]:
    """Images and masks of a training split."""
    images, masks = torch.randn(count, 3, side, side), torch.zeros(count, side, side, dtype=torch.long)
    return DataLoader(TensorDataset(images, masks), batch_size=batch_size, **options)


def fit(task: PETLTask, loader: DataLoader[Any], folder: Path, **options: Any) -> int:
    """Steps of one epoch."""
    trainer = segmenters.trainer(folder, **options)
    trainer.fit(task, loader)
    return trainer.global_step


@pytest.mark.parametrize(
    ("count", "batch_size", "told"),
    [
        (3, 1, "give 2 or more"),
        (5, 2, "set data.drop_last to true, or another data.batch_size: of 5 samples one is left over at the end$"),
    ],
)
def test_upernet_needs_two_images(count: int, batch_size: int, told: str, tmp_path: Path) -> None:
    task = segmenters.new_task(head="upernet")
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(
        ConfigError, match=rf"one sample, and decode_head\S+ \(BatchNorm2d\) .*data.batch_size\] - {told}"
    ):
        fit(task, scenes(count, batch_size), tmp_path)
    changed = [name for name, tensor in task.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed
    assert not any(module._forward_pre_hooks for module in task.backbone.decode_head.modules())


def test_a_last_batch_that_does_not_come_is_no_fault(tmp_path: Path) -> None:
    assert fit(segmenters.new_task(head="upernet"), scenes(5, 2, drop_last=True), tmp_path) == 2
    assert fit(segmenters.new_task(head="upernet"), scenes(5, 2), tmp_path, limit_train_batches=2) == 2


@pytest.mark.parametrize("head", ["naive", "pup", "mla"])
def test_setr_takes_one_image_but_on_a_grid_of_one_place(head: str, tmp_path: Path) -> None:
    assert fit(segmenters.new_task(head=head), scenes(3, 2), tmp_path) == 2
    single = segmenters.new_task(head=head, auxiliary_layers=[1])
    with pytest.raises(ConfigError, match=r"decode_head\S+ \(BatchNorm2d\) .*\[data.batch_size\] - give 2 or more"):
        fit(single, scenes(2, 1, side=8), tmp_path)
    assert fit(segmenters.new_task(head=head), scenes(4, 2, side=8), tmp_path) == 2


def test_an_auxiliary_head_counts(tmp_path: Path) -> None:
    task = segmenters.new_task(head="linear", auxiliary_layers=[1])
    with pytest.raises(ConfigError, match=r"decode_head\.auxiliary_heads\.\S+ \(BatchNorm2d\)"):
        fit(task, scenes(2, 1, side=8), tmp_path)
    assert fit(segmenters.new_task(head="linear"), scenes(2, 1, side=8), tmp_path) == 2


def test_a_head_over_frames(tmp_path: Path) -> None:
    data = TensorDataset(clips.clips(3), torch.tensor([0, 1, 2]))
    normed = clips.new_task(head="mean", head_args={"batch_norm": True})
    with pytest.raises(ConfigError, match=r"video_head\S+ \(BatchNorm1d\) .*of 3 samples one is left over"):
        fit(normed, DataLoader(data, batch_size=2), tmp_path)
    assert fit(clips.new_task(head="mean"), DataLoader(data, batch_size=2), tmp_path) == 2
