"""Which checkpoint a run keeps as its best."""

from __future__ import annotations

from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best monitored value and the last one, in ``checkpoints/`` of the run folder.

    Without validation data there is nothing to select on: then the last checkpoint is the best.

    Args:
        monitor: A logged metric; null for the task's own, such as ``val/acc1`` of classification.
        mode: Whether the best value is the largest or the smallest.
    """

    def __init__(self, monitor: str | None = None, mode: Literal["min", "max"] = "max") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best-{epoch}",
            save_last=True,
            auto_insert_metric_name=True,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Selects on the task's metric where none was given, and on nothing where there is no validation split."""
        if self.monitor is None and stage == "fit":
            self.monitor = getattr(pl_module, "monitor", None)
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and getattr(data, "source", lambda _: True)("val") is None:
            self.monitor = None
        super().setup(trainer, pl_module, stage)

    @property
    def selected_on(self) -> str:
        """What chose the best checkpoint, in words."""
        return "last epoch" if self.monitor is None else f"{self.monitor} ({self.mode})"
