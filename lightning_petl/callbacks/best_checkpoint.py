"""Which checkpoint a run keeps as its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best monitored value and the last one, in ``checkpoints/`` of the run folder.

    The last one is that of the last whole epoch. A fit that goes on from a checkpoint goes on with the best that it
    knew, in whatever folder that is. Without validation data there is nothing to select on: then the last checkpoint is
    the best.

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

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last checkpoint where Lightning (2.6) does not: in an epoch that is not the best."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best so far over from another run folder, too, which Lightning does not, as long as it is there."""
        if Path(state_dict.get("best_model_path", "")).is_file():
            state_dict = {**state_dict, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    @property
    def selected_on(self) -> str:
        """What chose the best checkpoint, in words."""
        return "last epoch" if self.monitor is None else f"{self.monitor} ({self.mode})"
