"""What predict leaves in the run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter

from lightning_petl import tensorfile
from lightning_petl.tasks import SegmentationTask


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv``: file, predicted class and its probability, one row a sample, in the data's order.

    On several processes each writes the samples that it saw, to ``predictions-RANK.csv``. What segmentation predicts
    is written by `MaskWriter`.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Writes all predictions of this process."""
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not trainer.log_dir or not predictions or isinstance(pl_module, SegmentationTask):
            return
        names, classes = data.predict_names, data.classes
        text = io.StringIO(newline="")
        rows = csv.writer(text)
        rows.writerow(("file", "class", "probability"))
        scores = torch.cat([probabilities for probabilities, _ in predictions])
        indices = torch.cat([index for _, index in predictions])
        best = scores.max(dim=1)
        for index, label, probability in zip(
            indices.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        ):
            rows.writerow((names[index], classes[label], f"{probability:.6f}"))
        name = "predictions.csv" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.csv"
        content = text.getvalue()
        tensorfile.replace(Path(trainer.log_dir) / name, lambda path: _write(path, content))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")
