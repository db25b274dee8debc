"""What a segmentation run looks like while it trains: images beside their true and their predicted masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image

from lightning_petl import tensorfile
from lightning_petl.callbacks.pictures import Pixels, comparison, picture
from lightning_petl.data.input_config import InputConfig
from lightning_petl.errors import ConfigError
from lightning_petl.tasks import SegmentationTask


class Overlays(pl.Callback):
    """After a validation pass, writes ``overlays/epoch-NNN.png``, and ``overlays/test.png`` after a test.

    Each row shows one of the first samples of the split: the model's input, the true mask over it, and the predicted
    one, in the data set's colours, with a legend. Loggers that take images, such as TensorBoard's, get the picture too.
    Other tasks than segmentation are left alone.

    Args:
        samples: Number of rows; 0 for no pictures.
        every_n_epochs: Epochs from picture to picture, in training.
    """

    def __init__(self, samples: int = 4, every_n_epochs: int = 1) -> None:
        for name, value, least in (("samples", samples, 0), ("every_n_epochs", every_n_epochs, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}", where=f"overlays.{name}", fix=f"give {least} or more")
        self.samples, self.every_n_epochs = samples, every_n_epochs
        self._rows: list[tuple[Image.Image, Pixels, Pixels]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Learns the run folder, on every process: the first tells the others."""
        self._folder = trainer.log_dir

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first samples."""
        fitting = trainer.state.fn == "fit"
        if not trainer.sanity_checking and (not fitting or (trainer.current_epoch + 1) % self.every_n_epochs == 0):
            self._keep(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first samples."""
        self._keep(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture of this epoch."""
        self._write(trainer, pl_module, f"epoch-{trainer.current_epoch:03d}", "val/overlays")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the picture of the test split."""
        self._write(trainer, pl_module, "test", "test/overlays")

    def _keep(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any) -> None:
        wanted = self.samples - len(self._rows)
        if wanted <= 0 or not trainer.is_global_zero or not isinstance(task, SegmentationTask):
            return
        predicted = outputs["predicted"] if isinstance(outputs, Mapping) else []
        config = used_input(trainer, task)
        for image, true, found in list(zip(*batch, predicted, strict=True))[:wanted]:
            masks = (each.cpu().numpy().astype(np.uint8) for each in (true, found))
            self._rows.append((picture(image, config), *masks))

    def _write(self, trainer: pl.Trainer, task: pl.LightningModule, name: str, title: str) -> None:
        rows, self._rows = self._rows, []
        if not rows or not isinstance(task, SegmentationTask):
            return
        sheet = comparison(rows, task.class_names, palette_of(trainer, task))
        if self._folder and not getattr(trainer, "fast_dev_run", False):
            save(sheet, Path(self._folder) / "overlays" / f"{name}.png")
        for logger in trainer.loggers:
            add = getattr(getattr(logger, "experiment", None), "add_image", None)
            if callable(add):
                add(title, np.asarray(sheet), global_step=trainer.global_step, dataformats="HWC")


def used_input(trainer: pl.Trainer, task: SegmentationTask) -> InputConfig:
    """How images became inputs: the data module's settings, or the backbone's own."""
    config = getattr(getattr(trainer, "datamodule", None), "input_config", None)
    return config if isinstance(config, InputConfig) else task.input_config


def palette_of(trainer: pl.Trainer, task: SegmentationTask) -> Pixels:
    """The data set's colours ``(classes, 3)``; Pascal VOC's scheme for data without any."""
    palette = getattr(getattr(trainer, "datamodule", None), "palette", None)
    if palette is not None:
        return np.asarray(palette, dtype=np.uint8)
    from lightning_petl.data.segmentation.palettes import voc_palette

    return voc_palette(task.num_classes)


def save(image: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensorfile.replace(path, lambda temporary: _write_png(temporary, image))


def _write_png(path: Path, image: Image.Image) -> None:
    image.save(path, format="PNG")
